"""timm's names and layouts, its files, and its forward pass."""

import argparse
import contextlib
import csv
import importlib.machinery
import pickle
import sys
import types

import chex
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
from tests.weights.helpers import (
    GOLDEN_TIMM,
    golden_array,
    golden_params,
    micro_params,
    timm_listing_hash,
)

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
    chex.assert_trees_all_equal(from_timm(tensors), params)
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


@pytest.mark.parametrize("name", ["nf_ecaresnet26", "timm_nf_regnet_b0", "test_nfnet"])
def test_layouts_of_timms_own_networks(name):
    model = nfnets.create_model(name, 5, depths=(1, 2), widths=(16, 32), strides=(2, 2))
    tensors = golden_params(model)
    params = from_timm(tensors)
    chex.assert_trees_all_equal({"": to_timm(params)}, {"": tensors})
    shapes = {m: {n: x.shape for n, x in a.items()} for m, a in params.items()}
    wanted = model.shapes()[0]
    assert shapes == {m: {n: x.shape for n, x in a.items()} for m, a in wanted.items()}
    if name == "nf_ecaresnet26":
        kernel = params["NF_ResNet/~/nf_res_block_2/~/channel_attention"]["w"][:, 0, 0]
        theirs = tensors["stages.1.1.attn_last.conv.weight"]
        np.testing.assert_array_equal(theirs[0, 0], kernel)
        assert theirs.shape == (1, 1, 3)
        assert tensors["stem.conv.weight"].shape == (64, 3, 7, 7)
    elif name == "timm_nf_regnet_b0":
        gate = params["NF_RegNet/~/nf_block/~/squeeze_excite/~/linear"]["w"]
        np.testing.assert_array_equal(
            tensors["stages.0.0.attn.fc1.weight"][:, :, 0, 0], gate.T
        )
    assert not any("skip" in key for key in tensors)


def test_a_network_that_timm_lacks():
    with pytest.raises(UserError, match="FILE: timm has no ResNet"):
        to_timm({"ResNet/~/linear": {"w": np.zeros((2, 3))}}, "FILE")


def test_timms_own_networks_need_no_compat(tmp_path, capsys):
    tensors = golden_params(nfnets.create_model("test_nfnet", 3))
    theirs, ours, back = (str(tmp_path / name) for name in ("theirs", "ours", "back"))
    safetensors.numpy.save_file(tensors, theirs, {"format": "pt"})
    convert.main([theirs, f"--out={ours}"])
    assert "ours: test_nfnet, 3 classes, from timm" in capsys.readouterr().out
    info = nfnets.read_weights_info(ours)
    assert info.overrides is None
    assert (info.image_size, info.preprocessing) == (160, "center")
    assert info.crop_fraction == 0.95
    assert info.mean_rgb == info.stddev_rgb == (127.5, 127.5, 127.5)
    convert.main([ours, "--to=timm", f"--out={back}"])
    assert "compat" not in capsys.readouterr().out
    chex.assert_trees_all_equal({"": read_timm(back)[0]}, {"": tensors})


def test_parameters_that_are_not_timms():
    tensors = to_timm(micro_params())
    for key, message in (
        ("stem.conv5.weight", "'stem.conv5.weight' is not a parameter"),
        ("stages.0.0.conv1.running_mean", "is not a parameter of timm's n"),
        ("stages.4.0.conv1.weight", "is not a parameter"),
        ("weight", "is not a parameter"),
    ):
        with pytest.raises(UserError, match=message):
            from_timm({**tensors, key: np.zeros(2)})
    for key in ("head.fc.weight", "stages.0.0.skipinit_gain"):
        with pytest.raises(UserError, match=rf"FILE: {key} has the shape \[2\]"):
            from_timm({**tensors, key: np.zeros(2)}, "FILE")
    with pytest.raises(
        UserError, match="timm's networks have no NFNet/~/nf_block/~/conv3:w"
    ):
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
    chex.assert_trees_all_equal({"": loaded}, {"": tensors})
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
    chex.assert_trees_all_equal({"": found[0]}, {"": STATE})
    assert found[1] == entry
    if averaged_entry is None:
        with pytest.raises(UserError, match="FILE has no state_dict_ema or model_ema"):
            unwrap(content, "FILE", ema=True)
    else:
        found = unwrap(content, "FILE", ema=True)
        chex.assert_trees_all_equal({"": found[0]}, {"": AVERAGE})
        assert found[1] == averaged_entry


def test_checkpoints_of_averages_alone():
    content = {"model_ema": {"n_averaged": np.int64(7), "module.w": AVERAGE["w"]}}
    tensors, entry = unwrap(content, "FILE")
    chex.assert_trees_all_equal({"": tensors}, {"": AVERAGE})
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
    chex.assert_trees_all_equal({"": to_timm(params)}, {"": want})


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
    chex.assert_trees_all_equal({"": tensors}, {"": STATE})
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
    chex.assert_trees_all_equal({"": tensors}, {"": want})
    assert {array.dtype.name for array in tensors.values()} == {"float32"}
    assert entry == "state_dict"
    averaged, entry = read_timm(path, ema=True)
    chex.assert_trees_all_equal({"": averaged}, {"": {"whole": np.zeros(3)}})
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
def nfnet():
    """timm's module of normalizer-free networks."""
    pytest.importorskip("torch")
    sys.meta_path.append(StandInFinder)
    return pytest.importorskip("timm.models.nfnet")


@pytest.fixture(scope="module")
def timm_f0(nfnet):
    """timm's own network with random parameters."""
    import torch

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
        chex.assert_trees_all_equal({"": read_timm(path)[0]}, {"": tensors})
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


def fill_with_noise(model):
    """Random values for every parameter, also for gains and biases."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                fan_in = parameter[0].numel()
                parameter.normal_(0.01, 1.5 / fan_in**0.5)
            elif name.endswith("gain"):
                parameter.normal_(1, 0.3)
            else:
                parameter.normal_(0, 0.2)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "nfnet_l0",
        "eca_nfnet_l0",
        "eca_nfnet_l1",
        "timm_nfnet_f0",
        "timm_nf_regnet_b1",
        "timm_nf_resnet50",
        "nf_seresnet26",
        "nf_ecaresnet26",
        "test_nfnet",
    ],
)
def test_other_networks_are_those_of_timm_both_ways(nfnet, tmp_path, name):
    import torch

    theirs = getattr(nfnet, name.removeprefix("timm_"))(num_classes=100).eval()
    fill_with_noise(theirs)
    tensors = {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
    params = from_timm(tensors)
    chex.assert_trees_all_equal({"": to_timm(params)}, {"": tensors})

    ours = nfnets.create_model(name, 100)
    run = jax.jit(lambda p, x: ours.apply(p, {}, None, x)[0])
    for size in (64, 72):  # even and odd numbers of pixels at some stage
        inputs = torch.randn(2, 3, size, size)
        with torch.no_grad():
            features = theirs.forward_features(inputs)
            want = {
                "pool": theirs.forward_head(features, pre_logits=True).numpy(),
                "logits": theirs.forward_head(features).numpy(),
            }
        got = run(params, inputs.numpy().transpose(0, 2, 3, 1))
        for key, array in want.items():
            difference = relative_difference(got[key], array)
            print(f"{name}, {size} px, {key}: {difference:.1e}")
            assert difference < 1e-4

    theirs_path, own = str(tmp_path / "theirs.pth"), str(tmp_path / "own")
    back = str(tmp_path / "back.safetensors")
    torch.save(theirs.state_dict(), theirs_path)
    convert.main([theirs_path, f"--out={own}"])
    assert nfnets.read_weights_info(own).model == name
    convert.main([own, "--to=timm", f"--out={back}"])
    chex.assert_trees_all_equal({"": read_timm(back)[0]}, {"": tensors})


@pytest.mark.long
def test_golden_sizes_are_those_of_timm(nfnet):
    import torch

    with (reference.DATA / "timm_models.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        with torch.device("meta"):
            model = getattr(nfnet, row["name"].removeprefix("timm_"))()
        state = model.state_dict()
        assert sum(tensor.numel() for tensor in state.values()) == int(row["params"])
        assert len(state) == int(row["leaves"])
        assert timm_listing_hash(state) == row["sha256"], row["name"]


@pytest.mark.long
@pytest.mark.parametrize("case", GOLDEN_TIMM)
def test_golden_outputs_are_those_of_timm(nfnet, case):
    expected = np.load(reference.DATA / "timm.npz")
    for key, array in timm_outputs(nfnet, case).items():
        assert relative_difference(expected[key], array) < 1e-5, key


def timm_outputs(nfnet, case):
    """The outputs of timm's small networks; `np.savez` of all of them is timm.npz."""
    import torch

    name, _, fields = GOLDEN_TIMM[case]
    config = nfnet.model_cfgs[name.removeprefix("timm_")]
    model = nfnet.NormFreeNet(config, num_classes=10, **fields).eval()
    state = model.state_dict()
    arrays = {key: golden_array(key, tuple(value.shape)) for key, value in state.items()}
    model.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()})
    images = reference.formula_images(2, 48).transpose(0, 3, 1, 2)
    with torch.no_grad():
        features = model.forward_features(torch.from_numpy(images.copy()))
        return {
            f"{case}:logits": model.forward_head(features).numpy(),
            f"{case}:pool": model.forward_head(features, pre_logits=True).numpy(),
        }
