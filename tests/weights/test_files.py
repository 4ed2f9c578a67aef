"""safetensors: what is written comes back, and what does not fit is named."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import nfnets
from nfnets.errors import UserError
from nfnets.weights import (
    WeightsInfo,
    describe_model,
    fit_weights,
    initial_weights,
    model_of,
)
from tests.weights.helpers import (
    CLASSES,
    MICRO,
    assert_same_trees,
    micro_model,
    micro_params,
)

INFO = dataclasses.replace(
    describe_model(micro_model(), MICRO),
    class_names=("a", "b", "c", "d", "e"),
    image_size=24,
    preprocessing="resize",
    source="made up",
)
HEAD = "NFNet/~/linear"


@pytest.fixture(scope="module")
def params():
    return micro_params()


@pytest.fixture
def path(tmp_path, params):
    path = tmp_path / "w.safetensors"
    nfnets.save_weights(path, params, {"bn": {"counter": np.int32(1)}}, INFO)
    return path


def test_everything_comes_back(path, params):
    loaded, state = nfnets.load_weights(path)
    assert_same_trees(loaded, params)
    assert state["bn"]["counter"] == 1
    assert state["bn"]["counter"].dtype == np.int32
    info = nfnets.read_weights_info(path)
    assert dataclasses.replace(info, checksum=None) == INFO
    assert len(info.checksum) == 64
    model = model_of(info, path)
    assert model.spec == micro_model().spec
    assert model.num_classes == CLASSES
    assert info.mean_rgb == (0.485 * 255, 0.456 * 255, 0.406 * 255)
    assert info.stddev_rgb == (0.229 * 255, 0.224 * 255, 0.225 * 255)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    usual = path.with_name("usual")
    usual.touch()
    assert path.stat().st_mode == usual.stat().st_mode


def test_arrays_in_any_layout_and_dtype(tmp_path):
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.float32(3),
        "jax": jax.numpy.ones((2, 2)),
        "empty": np.zeros((0, 3), np.float32),
    }
    nfnets.save_weights(tmp_path / "w", {"m": arrays})
    loaded, _ = nfnets.load_weights(tmp_path / "w")
    assert_same_trees(loaded, {"m": arrays})
    assert loaded["m"]["half"].dtype == np.float16


def test_a_changed_value_name_or_shape_is_noticed(path):
    with safetensors.safe_open(path, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    key = f"params|{HEAD}|b"
    changes = (
        {key: tensors[key] + 1e-6},
        {key: tensors[key].reshape(1, -1)},
        {key: tensors[key].view(np.int32)},
        {"params|NFNet/~/linear|c": tensors[key]},
    )
    for change in changes:
        rest = {k: v for k, v in tensors.items() if k != key}
        safetensors.numpy.save_file({**rest, **change}, path, metadata)
        with pytest.raises(UserError, match="is damaged: its tensors have the checksum"):
            nfnets.load_weights(path)
    safetensors.numpy.save_file(tensors, path, metadata)
    nfnets.load_weights(path)


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"stem.conv1.weight": np.ones(2, np.float32)}, path)
    with pytest.raises(UserError, match=r"'stem.conv1.weight'.*weights.convert reads timm"):
        nfnets.load_weights(path)
    for fields, message in (
        ("[]", "expected a JSON object"),
        ("{", "unreadable metadata"),
        ('{"num_classes": "many"}', "num_classes is 'many'"),
        ('{"stddev_rgb": [1, 0, 1]}', "stddev_rgb"),
        ('{"class_names": [1]}', "class_names"),
    ):
        safetensors.numpy.save_file({"params|m|n": np.ones(2)}, path, {"nfnets": fields})
        with pytest.raises(UserError, match=message):
            nfnets.read_weights_info(path)
    safetensors.numpy.save_file({"params|m|n": np.ones(2)}, path, {"nfnets": '{"new": 1}'})
    assert nfnets.read_weights_info(path) == WeightsInfo()
    for info, message in (
        (WeightsInfo(num_classes=3), "does not say its model"),
        (WeightsInfo(model="nfnet_f0"), "does not say its number of classes"),
        (WeightsInfo(model="nfnet_f99", num_classes=3), "unknown model"),
        (dataclasses.replace(INFO, overrides={"x": 1}), "no option 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            model_of(info, path)
    with pytest.raises(UserError, match="cannot write"):
        nfnets.save_weights(tmp_path / "no" / "where", {"m": {"n": np.ones(1)}})


def changed(params, **arrays):
    """Parameters with `module__name` replaced or, by None, removed."""
    tree = {module: dict(entries) for module, entries in params.items()}
    for key, array in arrays.items():
        module, name = f"NFNet/~/{key}".rsplit("__", 1)
        tree.setdefault(module, {})
        if array is None:
            del tree[module][name]
        else:
            tree[module][name] = array
    return tree


def test_what_does_not_fit_is_named_in_both_directions(params):
    wrong = changed(
        params, final_conv__gain=None, other__w=np.ones(3), linear__b=np.ones(7)
    )
    with pytest.raises(UserError) as error:
        fit_weights("FILE", wrong, {}, micro_model())
    assert str(error.value) == (
        "FILE does not fit the model: 1 missing (NFNet/~/final_conv:gain); 1 unexpected "
        "(NFNet/~/other:w); 1 wrongly shaped (NFNet/~/linear:b [7] for [5])"
    )
    with pytest.raises(UserError, match=r"1 unexpected \(bn:counter\)"):
        fit_weights("FILE", params, {"bn": {"counter": np.zeros(())}}, micro_model())


def test_skipped_parameters_are_drawn_afresh_and_the_rest_kept(params):
    model = micro_model()
    wrong = changed(
        params, final_conv__gain=None, other__w=np.ones(3), linear__b=np.ones(7)
    )
    skip = ("NFNet/~/linear:*", "*other:w", "*:gain")
    loaded, _ = fit_weights("FILE", wrong, {}, model, skip, seed=3)
    fresh, _ = model.init(jax.random.key(3), np.zeros((1, 32, 32, 3), np.float32))
    want = changed(
        params,
        final_conv__gain=fresh["NFNet/~/final_conv"]["gain"],
        linear__b=fresh[HEAD]["b"],
    )
    assert_same_trees(loaded, want)
    assert list(loaded) == list(fresh)
    with pytest.raises(UserError, match="1 missing"):
        fit_weights("FILE", wrong, {}, model, skip[:2])
    with pytest.raises(UserError, match="no parameter matches 'conv'"):
        fit_weights("FILE", params, {}, model, ("conv",))


def test_images_of_other_channels_are_an_error_that_says_so(params):
    weight = params["NFNet/~/stem_conv0"]["w"][:, :, :1]
    with pytest.raises(UserError, match="for images of 1 channels: the models take 3"):
        fit_weights("FILE", changed(params, stem_conv0__w=weight), {}, micro_model())


def test_another_number_of_classes_gets_a_new_head_and_says_so(path, tmp_path, capsys):
    nfnets.save_weights(path, micro_params(), {}, INFO)
    model = nfnets.create_model("nfnet_tiny", 7, **MICRO)
    loaded, _ = initial_weights(str(path), model, seed=1)
    fresh, _ = model.init(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32))
    want = {**micro_params(), HEAD: fresh[HEAD]}
    assert_same_trees(loaded, want)
    said = capsys.readouterr().out
    assert "for 5 classes, this run has 7: the classifier starts anew" in said
    with pytest.raises(UserError, match="2 wrongly shaped"):
        nfnets.load_weights(path, model)
    loaded, _ = nfnets.load_weights(path, model, skip=["*linear:?"])
    assert loaded[HEAD]["w"].shape[-1] == 7


def test_the_package_imports_without_safetensors():
    code = (
        "import sys; sys.modules['safetensors'] = None; import nfnets, json; "
        "print(json.dumps([nfnets.create_model('nfnet_tiny').name, "
        "'nfnets.weights' in sys.modules, 'load_weights' in dir(nfnets)]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(output) == ["nfnet_tiny", False, True]
    with pytest.raises(AttributeError, match="no attribute 'lode_weights'"):
        nfnets.lode_weights  # noqa: B018


def test_weights_in_half_precision_start_a_run_in_single(tmp_path):
    model = nfnets.create_model("nfnet_tiny", num_classes=3)
    params, state = model.init(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))
    half = jax.tree.map(lambda a: a.astype("float16"), params)
    nfnets.save_weights(tmp_path / "w", half, state)
    started, _ = initial_weights(tmp_path / "w", model, 0)
    assert_same_trees(started, jax.tree.map(lambda a: a.astype("float32"), half))
    assert {a.dtype.name for a in jax.tree.leaves(started)} == {"float32"}
