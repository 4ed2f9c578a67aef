"""timm's names and layouts, its files, and its forward pass."""

import argparse
import contextlib
import csv
import importlib.machinery
import pickle
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

import nfnets
from nfnets.errors import UserError
from nfnets.models import listing_hash
from nfnets.tools import convert
from nfnets.weights.timm import from_timm, read_timm, to_timm, unwrap
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


def test_parameters_that_are_not_timms():
    tensors = to_timm(micro_params())
    for key, message in (
        ("stem.conv5.weight", "'stem.conv5.weight' is not a parameter"),
        ("stages.0.0.conv1.running_mean", "is not a parameter of timm's dm_nfnet"),
        ("stages.4.0.conv1.weight", "is not a parameter"),
        ("weight", "is not a parameter"),
    ):
        with pytest.raises(UserError, match=message):
            from_timm({**tensors, key: np.zeros(2)})
    for key in ("head.fc.weight", "stages.0.0.skipinit_gain"):
        with pytest.raises(UserError, match=rf"FILE: {key} has the shape \[2\]"):
            from_timm({**tensors, key: np.zeros(2)}, "FILE")
    with pytest.raises(UserError, match="timm's NFNets have no NFNet/~/nf_block/~/conv3:w"):
        to_timm({**micro_params(), "NFNet/~/nf_block/~/conv3": {"w": np.zeros(2)}})


def test_files_there_and_back(tmp_path, capsys):
    shapes = {k: s for k, s in timm_shapes(1).items() if not k.startswith("head")}
    shapes |= {"head.fc.weight": (3, 3072), "head.fc.bias": (3,)}
    rng = np.random.default_rng(0)
    tensors = {k: rng.random(shape, np.float32) for k, shape in shapes.items()}
    theirs, ours, back = (str(tmp_path / name) for name in ("theirs", "ours", "back"))
    safetensors.numpy.save_file(tensors, theirs, {"format": "pt"})
    convert.main([theirs, f"--out={ours}"])
    line = capsys.readouterr().out
    assert "ours: nfnet_f0, 3 classes, from timm checkpoint theirs\n" in line
    info = nfnets.read_weights_info(ours)
    assert info.overrides == {"timm_compat": True}
    convert.main([ours, "--to=timm", f"--out={back}"])
    assert "timm_compat" not in capsys.readouterr().out
    loaded, entry = read_timm(back)
    assert entry == ""
    assert_same_trees({"": loaded}, {"": tensors})
    plain, other = str(tmp_path / "plain"), str(tmp_path / "other")
    info = nfnets.WeightsInfo(model="nfnet_f0", num_classes=3)
    nfnets.save_weights(plain, *nfnets.load_weights(ours), info)
    convert.main([plain, "--to=timm", f"--out={back}"])
    assert "without timm_compat" in capsys.readouterr().out
    nfnets.save_weights(other, {}, {}, nfnets.WeightsInfo(model="resnet50", num_classes=3))
    with pytest.raises(UserError, match="timm has no resnet50; it has nfnet_f0, "):
        convert.main([other, "--to=timm", f"--out={back}"])
    with pytest.raises(UserError, match="only .safetensors files are written"):
        convert.main([ours, "--to=timm", f"--out={back}.pth"])


STATE = {"w": np.arange(3, dtype=np.float32)}
AVERAGE = {"w": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("content", "entry", "averaged_entry"),
    [
        (STATE, "", None),
        ({"state_dict": STATE, "epoch": 3, "arch": "dm_nfnet_f0"}, "state_dict", None),
        (
            {"state_dict": STATE, "state_dict_ema": AVERAGE},
            "state_dict",
            "state_dict_ema",
        ),
        ({"model": STATE, "model_ema": AVERAGE}, "model", "model_ema"),
        ({"module.w": STATE["w"]}, "", None),
        ({"_orig_mod.module.w": STATE["w"]}, "", None),
    ],
)
def test_training_checkpoints_are_unwrapped(content, entry, averaged_entry):
    found = unwrap(content, "FILE")
    assert_same_trees({"": found[0]}, {"": STATE})
    assert found[1] == entry
    if averaged_entry is None:
        with pytest.raises(UserError, match="FILE has no state_dict_ema or model_ema"):
            unwrap(content, "FILE", ema=True)
    else:
        found = unwrap(content, "FILE", ema=True)
        assert_same_trees({"": found[0]}, {"": AVERAGE})
        assert found[1] == averaged_entry


def test_checkpoints_of_averages_alone():
    content = {"model_ema": {"n_averaged": np.int64(7), "module.w": AVERAGE["w"]}}
    tensors, entry = unwrap(content, "FILE")
    assert_same_trees({"": tensors}, {"": AVERAGE})
    assert entry == "model_ema"


def test_contents_that_are_not_state_dictionaries():
    with pytest.raises(UserError, match="FILE holds a list, not a state dictionary"):
        unwrap([1], "FILE")
    with pytest.raises(UserError, match="FILE: 'epoch' is not a tensor"):
        unwrap({"epoch": 3}, "FILE")


def test_half_precision_and_prefixes_in_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = to_timm(micro_params())
    half = {f"module.{k}": v.astype(jax.numpy.bfloat16) for k, v in tensors.items()}
    safetensors.numpy.save_file(
        {k: np.asarray(v, order="C") for k, v in half.items()}, path
    )
    params = from_timm(read_timm(path)[0])
    assert {a.dtype.name for a in jax.tree.leaves(params)} == {"float32"}
    want = {k.removeprefix("module."): v.astype(np.float32) for k, v in half.items()}
    assert_same_trees({"": to_timm(params)}, {"": want})


def test_pytorch_files_need_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "w.pth"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"w.pth is not a .safetensors .*pip install torch"):
        read_timm(path)
    with pytest.raises(UserError, match="cannot read nowhere: No such file"):
        read_timm("nowhere")


class FakeTensor:
    """An array with the methods of a tensor that are used."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        return self.array


def test_pytorch_loads_nothing_but_tensors(tmp_path, monkeypatch):
    calls = []

    @contextlib.contextmanager
    def safe_globals(names):
        calls.append(names)
        yield

    def load(path, **options):
        calls.append((path, options))
        if isinstance(content, Exception):
            raise content
        return content

    torch = types.ModuleType("torch")
    torch.serialization = types.SimpleNamespace(safe_globals=safe_globals)
    torch.load = load
    monkeypatch.setitem(sys.modules, "torch", torch)
    path = tmp_path / "w.pth"
    path.write_bytes(b"PK")
    content = {"state_dict": {"module.w": FakeTensor(np.arange(3, dtype=np.float16))}}
    tensors, entry = read_timm(path)
    assert_same_trees({"": tensors}, {"": STATE})
    assert tensors["w"].dtype == np.float32
    assert entry == "state_dict"
    assert calls == [
        [argparse.Namespace],
        (path, {"map_location": "cpu", "weights_only": True}),
    ]
    content = pickle.UnpicklingError(
        "Weights only load failed. In future, run with weights_only=False.\n"
        "\tWeightsUnpickler error: Unsupported global: GLOBAL os.system was not an allowed "
        "global by default. Please use `torch.serialization.add_safe_globals`.\nCheck"
    )
    with pytest.raises(UserError) as error:
        read_timm(path)
    assert str(error.value) == (
        f"{path} is not a PyTorch file of tensors: Unsupported global: GLOBAL os.system "
        "was not an allowed global by default"
    )


@pytest.mark.parametrize("new_format", [True, False])
def test_pytorch_files(tmp_path, new_format):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    state = {
        "module.whole": torch.arange(12.0).reshape(3, 4),
        "module.transposed": torch.arange(12.0).reshape(3, 4).T,
        "module.half": torch.ones(2, dtype=torch.float16),
        "module.brain": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
    }
    content = {
        "state_dict": state,
        "state_dict_ema": {"whole": torch.zeros(3)},
        "args": argparse.Namespace(model="dm_nfnet_f0", lr=0.1),
        "epoch": 3,
    }
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    tensors, entry = read_timm(path)
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    half = np.ones(2, np.float32)
    want = {"whole": whole, "transposed": whole.T, "half": half, "brain": half}
    assert_same_trees({"": tensors}, {"": want})
    assert {array.dtype.name for array in tensors.values()} == {"float32"}
    assert entry == "state_dict"
    averaged, entry = read_timm(path, ema=True)
    assert_same_trees({"": averaged}, {"": {"whole": np.zeros(3)}})
    assert entry == "state_dict_ema"
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(UserError, match="w.pth is not a PyTorch file of tensors: "):
        read_timm(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="w.pth is not a PyTorch file of tensors: "):
        read_timm(path)


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
        assert_same_trees({"": read_timm(path)[0]}, {"": tensors})
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
