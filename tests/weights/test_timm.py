"""timm's names and layouts, its files without PyTorch, and its forward pass."""

import collections
import csv
import importlib.machinery
import io
import pickle
import struct
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import nfnets
from nfnets.errors import UserError
from nfnets.models import listing_hash
from nfnets.weights import convert
from nfnets.weights.timm import from_timm, read_timm, to_timm
from nfnets.weights.torch_files import read_torch
from tests import reference
from tests.weights.helpers import assert_same_trees, micro_params

WIDTHS = (256, 512, 1536, 1536)


def conv(name, size, channels, outputs):
    return {
        f"{name}.weight": (outputs, channels, size, size),
        f"{name}.bias": (outputs,),
        f"{name}.gain": (outputs, 1, 1, 1),
    }


def timm_shapes(scale):
    """timm's listing of dm_nfnet_f{scale - 1}, 1000 classes."""
    shapes = {}
    stem = (3, 16, 32, 64, 128)
    for number in range(1, 5):
        shapes |= conv(f"stem.conv{number}", 3, stem[number - 1], stem[number])
    channels = 128
    for stage, (width, depth) in enumerate(zip(WIDTHS, (1, 2, 6, 3), strict=True)):
        for position in range(depth * scale):
            block = f"stages.{stage}.{position}"
            inner = width // 2
            shapes |= conv(f"{block}.conv1", 1, channels, inner)
            shapes |= conv(f"{block}.conv2", 3, 128, inner)
            shapes |= conv(f"{block}.conv2b", 3, 128, inner)
            shapes |= conv(f"{block}.conv3", 1, inner, width)
            if position == 0:
                shapes |= conv(f"{block}.downsample.conv", 1, channels, width)
            shapes[f"{block}.attn_last.fc1.weight"] = (width // 2, width, 1, 1)
            shapes[f"{block}.attn_last.fc1.bias"] = (width // 2,)
            shapes[f"{block}.attn_last.fc2.weight"] = (width, width // 2, 1, 1)
            shapes[f"{block}.attn_last.fc2.bias"] = (width,)
            shapes[f"{block}.skipinit_gain"] = ()
            channels = width
    shapes |= conv("final_conv", 1, 1536, 3072)
    return shapes | {"head.fc.weight": (1000, 3072), "head.fc.bias": (1000,)}


@pytest.mark.parametrize("number", range(7))
def test_names_and_shapes_of_all_variants(number):
    with (reference.DATA / "models.csv").open() as file:
        (row,) = [
            row
            for row in csv.DictReader(file)
            if (row["family"], row["variant"]) == ("NFNet", f"F{number}")
        ]
    shapes = timm_shapes(number + 1)
    tensors = {k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()}
    params = from_timm(tensors)
    assert listing_hash(params) == row["sha256"]
    assert {k: array.shape for k, array in to_timm(params).items()} == shapes


def test_layouts_and_the_exact_inverse():
    params = micro_params()
    tensors = to_timm(params)
    assert_same_trees(from_timm(tensors), params)
    block = "NFNet/~/nf_block_1"
    weight = params[f"{block}/~/conv1b"]["w"]
    assert tensors["stages.1.0.conv2b.weight"][5, 3, 0, 2] == weight[0, 2, 3, 5]
    assert tensors["stages.1.0.conv2b.gain"].shape == (weight.shape[3], 1, 1, 1)
    gate = params[f"{block}/~/squeeze_excite/~/linear_1"]["w"]
    assert tensors["stages.1.0.attn_last.fc2.weight"][7, 3, 0, 0] == gate[3, 7]
    head = params["NFNet/~/linear"]["w"]
    assert tensors["head.fc.weight"][2, 9] == head[9, 2]
    assert tensors["stages.1.0.skipinit_gain"] == params[block]["skip_gain"]
    again = to_timm(from_timm(tensors))
    assert again.keys() == tensors.keys()
    for key in tensors:
        np.testing.assert_array_equal(again[key], tensors[key])


def test_what_is_not_timms():
    tensors = to_timm(micro_params())
    for key, message in (
        ("stem.conv5.weight", "'stem.conv5.weight' is no parameter"),
        ("stages.0.0.conv1.running_mean", "is no parameter of timm's dm_nfnet"),
        ("weight", "is no parameter"),
    ):
        with pytest.raises(UserError, match=message):
            from_timm({**tensors, key: np.zeros(2)})
    with pytest.raises(UserError, match=r"FILE: head.fc.weight has the shape \[2\]"):
        from_timm({**tensors, "head.fc.weight": np.zeros(2)}, "FILE")
    with pytest.raises(UserError, match="NFNet/~/nf_block/~/conv3:w has no place in timm"):
        to_timm({**micro_params(), "NFNet/~/nf_block/~/conv3": {"w": np.zeros(2)}})


def test_files_there_and_back(tmp_path, capsys):
    shapes = {k: s for k, s in timm_shapes(1).items() if not k.startswith("head")}
    shapes |= {"head.fc.weight": (3, 3072), "head.fc.bias": (3,)}
    rng = np.random.default_rng(0)
    tensors = {k: rng.random(shape, np.float32) for k, shape in shapes.items()}
    theirs, ours, back = (str(tmp_path / name) for name in ("theirs", "ours", "back"))
    safetensors.numpy.save_file(tensors, theirs, {"format": "pt"})
    convert.main([theirs, "--from=timm", f"--out={ours}", "--model=nfnet_f0"])
    assert "nfnet_f0, 3 classes, from timm's" in capsys.readouterr().out
    info = nfnets.read_weights_info(ours)
    assert info.overrides == {"timm_compat": True}
    convert.main([ours, "--to=timm", f"--out={back}"])
    assert "timm_compat" not in capsys.readouterr().out
    assert_same_trees({"": read_timm(back)}, {"": tensors})
    with pytest.raises(UserError, match=r"timm's weights are written as .safetensors"):
        convert.main([ours, "--to=timm", f"--out={tmp_path}/back.pth"])
    nfnets.save_weights(ours, micro_params(), {}, nfnets.WeightsInfo(model="nfnet_f7"))
    with pytest.raises(UserError, match="timm has no nfnet_f7; it has nfnet_f0, "):
        convert.main([ours, "--to=timm", f"--out={back}"])


# A small torch.save, so that its formats are tested without PyTorch.


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class Tensor:
    def __init__(self, storage, shape, strides, offset=0):
        self.parts = (storage, offset, shape, strides)

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, {})


@pytest.fixture
def fake_torch(monkeypatch):
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "HalfStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*_): pass", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def dump_tensors(torch, value, legacy):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            half = obj.array.dtype == np.float16
            kind = torch.HalfStorage if half else torch.FloatStorage
            end = (None,) if legacy else ()
            return ("storage", kind, obj.key, "cpu", obj.array.size, *end)

    out = io.BytesIO()
    Pickler(out, 2).dump(value)
    return out.getvalue()


def save_zip(path, torch, value, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dump_tensors(torch, value, legacy=False))
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())


def save_legacy(path, torch, value, storages):
    with open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, file, 2)
        file.write(dump_tensors(torch, value, legacy=True))
        pickle.dump([storage.key for storage in storages], file, 2)
        for storage in storages:
            file.write(struct.pack("<q", storage.array.size) + storage.array.tobytes())


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_pytorch_files_without_pytorch(save, fake_torch, tmp_path):
    one = Storage("0", np.arange(12, dtype=np.float32))
    two = Storage("1", np.arange(2, dtype=np.float16))
    state = {
        "whole": Tensor(one, (3, 4), (4, 1)),
        "turned": Tensor(one, (4, 3), (1, 4)),
        "part": Tensor(one, (2,), (5,), offset=1),
        "scalar": Tensor(one, (), (), offset=7),
        "half": Tensor(two, (2,), (1,)),
    }
    state = collections.OrderedDict(state)
    state._metadata = {"": {"version": 1}}  # as PyTorch's modules have it
    path = tmp_path / "w.pth"
    want = {
        "whole": one.array.reshape(3, 4),
        "turned": one.array.reshape(3, 4).T,
        "part": one.array[[1, 6]],
        "scalar": one.array[7],
        "half": two.array,
    }
    for value in (state, {"state_dict": state, "epoch": 3}):
        save(path, fake_torch, value, (one, two))
        assert_same_trees({"": read_timm(path)}, {"": want})
    for damaged in (
        Tensor(one, (13,), (1,)),
        Tensor(one, (2,), (12,)),
        Tensor(one, (1,), (1,), offset=-1),
        Tensor(one, (99, 99), (0, 0)),
    ):
        save(path, fake_torch, {"x": damaged}, (one,))
        with pytest.raises(UserError, match="'x' is damaged"):
            read_torch(path)
    save(path, fake_torch, {"x": 3}, ())
    with pytest.raises(UserError, match="'x' is no tensor"):
        read_torch(path)
    save(path, fake_torch, [1], ())
    with pytest.raises(UserError, match="no state dictionary"):
        read_torch(path)
    save(path, fake_torch, state, (one, Storage("1", np.arange(3, dtype=np.float16))))
    with pytest.raises(UserError, match="a storage's length is wrong"):
        read_torch(path)
    save(path, fake_torch, {"x": print}, ())
    with pytest.raises(UserError, match=r"is refused: it names '__builtin__.print'"):
        read_torch(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged|no readable pickle"):
        read_torch(path)


def test_files_that_are_neither(tmp_path):
    path = tmp_path / "w.pth"
    for data, message in (
        (pickle.dumps({"x": 1}), "neither a PyTorch nor a safetensors file"),
        (b"text", "no readable pickle"),
        (b"", "no readable pickle"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read_timm(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(UserError, match="zip archive, but not one of PyTorch"):
        read_timm(path)
    with pytest.raises(UserError, match="cannot read nowhere"):
        read_timm("nowhere")


class Anything(type):
    """Of classes that have every attribute: its name."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(types.ModuleType):
    """A module of torchvision, which timm imports for other models than NFNets."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class StandInFinder:
    """Finds every module of torchvision where it is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, StandInFinder, is_package=True)

    @staticmethod
    def create_module(spec):
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module):
        pass


@pytest.fixture(scope="module")
def timm_f0():
    """timm's own network with random parameters."""
    torch = pytest.importorskip("torch")
    sys.meta_path.append(StandInFinder)
    nfnet = pytest.importorskip("timm.models.nfnet")
    torch.manual_seed(0)
    model = nfnet.dm_nfnet_f0(pretrained=False, num_classes=1000).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def relative_difference(got, want):
    return np.max(np.abs(got - want)) / np.std(want)


@pytest.mark.long
def test_logits_are_those_of_timm_both_ways(timm_f0, tmp_path):
    import torch

    # An odd number of pixels at some stage: every edge counts.
    images = reference.formula_images(2, 72)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def timm_logits():
        with torch.no_grad():
            return timm_f0(inputs).numpy()

    ours = nfnets.create_model("nfnet_f0", timm_compat=True)
    apply = jax.jit(lambda p: ours.apply(p, {}, None, images)[0]["logits"])
    tensors = {k: v.numpy() for k, v in timm_f0.state_dict().items()}
    for name, options in (
        ("new.pth", {}),
        ("old.pth", {"_use_new_zipfile_serialization": False}),
    ):
        path = tmp_path / name
        torch.save(timm_f0.state_dict(), path, **options)
        assert_same_trees({"": read_timm(path)}, {"": tensors})
    difference = relative_difference(apply(from_timm(tensors)), timm_logits())
    print(f"timm's weights here: {difference:.1e}")
    assert difference < 1e-4

    # And weights of this project there, through a file.
    params = reference.formula_params(jax.eval_shape(lambda: from_timm(tensors)))
    nfnets.save_weights(
        tmp_path / "w", params, {}, nfnets.WeightsInfo(model="nfnet_f0", num_classes=1000)
    )
    convert.to_timm_file(str(tmp_path / "w"), str(tmp_path / "timm.safetensors"))
    from safetensors.torch import load_file

    timm_f0.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    difference = relative_difference(apply(params), timm_logits())
    print(f"weights of this project in timm: {difference:.1e}")
    assert difference < 1e-4
    plain = nfnets.create_model("nfnet_f0")
    without = jax.jit(lambda p: plain.apply(p, {}, None, images)[0]["logits"])(params)
    print(f"without timm_compat: {relative_difference(without, timm_logits()):.1e}")
