"""Weights in safetensors files: round trips, damage, metadata, formats."""

import dataclasses
import json
import pickle
import subprocess
import sys
import zipfile

import chex
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import nfnets
from nfnets.errors import UserError
from nfnets.weights import WeightsInfo, describe_model, model_of
from nfnets.weights.files import identify_format
from tests.weights.helpers import (
    CLASSES,
    MICRO,
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
    chex.assert_trees_all_equal(loaded, params)
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
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.float32(3),
        "jax": jax.numpy.ones((2, 2)),
        "brain": jax.numpy.ones((2,), "bfloat16"),
        "empty": np.zeros((0, 3), np.float32),
    }
    nfnets.save_weights(tmp_path / "w", {"m": arrays})
    loaded, _ = nfnets.load_weights(tmp_path / "w")
    chex.assert_trees_all_equal(loaded, {"m": arrays})
    assert loaded["m"]["half"].dtype == np.float16
    assert loaded["m"]["brain"].dtype == "bfloat16"


def test_the_format_of_the_files(tmp_path):
    path = tmp_path / "w.safetensors"
    array = np.arange(3, dtype=np.float32)
    nfnets.save_weights(path, {"m/~/n": {"w": array}}, {"bn": {"x": array}})
    with safetensors.safe_open(path, "numpy") as file:
        assert sorted(file.keys()) == ["params|m/~/n|w", "state|bn|x"]
    # Files written so far carry this checksum.
    nfnets.save_weights(path, {"m/~/n": {"w": array}}, info=WeightsInfo(model="nfnet_tiny"))
    with safetensors.safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["nfnets"]) == {
            "model": "nfnet_tiny",
            "checksum": "d498c2841f7bdb1b73032c75ce95aeaa79a8862791a129892ff50f0989554a2f",
        }


def test_a_changed_value_name_or_shape_is_noticed(path):
    with safetensors.safe_open(path, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    key = "params|NFNet/~/linear|b"
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


def test_files_of_other_programs(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"stem.conv1.weight": np.ones(2, np.float32)}, path)
    with pytest.raises(UserError, match=r"stem.conv1.weight has the shape \[2\]"):
        nfnets.load_weights(path)
    for name in ("params|m", "opt|m|n", "params|m|n|k"):
        safetensors.numpy.save_file({name: np.ones(2)}, path)
        with pytest.raises(UserError, match="was not written by nfnets.save_weights"):
            nfnets.load_weights(path)
    path.write_bytes(b"text")
    with pytest.raises(UserError, match="is not a weights file"):
        nfnets.load_weights(path)
    with pytest.raises(UserError, match="no weights file nowhere"):
        nfnets.load_weights("nowhere")
    with pytest.raises(UserError, match="cannot write .*: No such file or directory"):
        nfnets.save_weights(tmp_path / "no" / "where", {"m": {"n": np.ones(1)}})


def test_invalid_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    for fields, message in (
        ("[]", "expected a JSON object"),
        ("{", "has invalid metadata"),
        ('{"num_classes": "many"}', "info.num_classes must be .*, not 'many'"),
        ('{"num_classes": 0}', "info.num_classes must be an integer in"),
        ('{"mean_rgb": [1, NaN, 1]}', "mean_rgb"),
        ('{"mean_rgb": [1, 1]}', "mean_rgb must have 3 entries, not 2"),
        ('{"stddev_rgb": [1, 0, 1]}', "stddev_rgb"),
        ('{"class_names": [1]}', "class_names"),
        ('{"overrides": [1]}', "overrides"),
    ):
        safetensors.numpy.save_file({"params|m|n": np.ones(2)}, path, {"nfnets": fields})
        with pytest.raises(UserError, match=message):
            nfnets.read_weights_info(path)
    safetensors.numpy.save_file({"params|m|n": np.ones(2)}, path, {"nfnets": '{"new": 1}'})
    assert nfnets.read_weights_info(path) == WeightsInfo()
    for info, message in (
        (WeightsInfo(num_classes=3), "FILE has no metadata 'model'"),
        (WeightsInfo(model="nfnet_f0"), "FILE has no metadata 'num_classes'"),
        (WeightsInfo(model="nfnet_f99", num_classes=3), "FILE: unknown model"),
        (dataclasses.replace(INFO, overrides={"x": 1}), "FILE: .*'x'"),
    ):
        with pytest.raises(UserError, match=message):
            model_of(info, "FILE")


def test_formats_are_identified_by_content(path, tmp_path):
    assert identify_format(path) == "nfnets"
    other = tmp_path / "other"
    safetensors.numpy.save_file({"stem.conv1.weight": np.ones(2)}, other)
    assert identify_format(other) == "timm"
    np.savez(tmp_path / "w.npz", **{"a:b": np.ones(2)})
    assert identify_format(tmp_path / "w.npz") == "haiku"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("archive/data.pkl", "")
    assert identify_format(other) == "timm"
    other.write_bytes(pickle.dumps({"m": {"n": np.ones(2)}}))
    assert identify_format(other) == "haiku"
    other.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"more")
    assert identify_format(other) == "timm"
    other.write_bytes(b"text")
    with pytest.raises(UserError, match="neither safetensors, PyTorch nor pickle"):
        identify_format(other)
    with pytest.raises(UserError, match="cannot read nowhere: No such file"):
        identify_format("nowhere")


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
