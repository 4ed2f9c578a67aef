"""Published checkpoints become weights files; whatever is wrong is one line."""

import os
import pickle
import subprocess
import sys

from haiku._src import data_structures
import jax
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models.counting import parameter_shapes
from nfnets.weights import convert
from nfnets.weights.published import guess_model, read_published
from tests import reference
from tests.weights.helpers import assert_same_trees, micro_params


@pytest.fixture(scope="module")
def tiny():
    """Parameters of the smallest model that is in the list."""
    model = nfnets.create_model("nfnet_tiny", 7)
    return reference.formula_params(parameter_shapes(model))


def test_a_published_file_becomes_a_weights_file(tiny, tmp_path, capsys):
    source, out = tmp_path / "F0_haiku.npz", tmp_path / "f0.safetensors"
    half = jax.tree.map(lambda array: array.astype(np.float16), tiny)
    source.write_bytes(pickle.dumps(data_structures.FlatMap(half), 4))
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {n}\n" for n in range(7)))
    convert.main([str(source), f"--out={out}", f"--class_names={names}"])
    assert "nfnet_tiny, 7 classes, from haiku's" in capsys.readouterr().out
    params, state = nfnets.load_weights(out)
    assert_same_trees(params, jax.tree.map(lambda array: array.astype(np.float32), half))
    assert params["NFNet/~/linear"]["w"].dtype == np.float32
    assert state == {}
    info = nfnets.read_weights_info(out)
    assert (info.model, info.num_classes) == ("nfnet_tiny", 7)
    assert info.source == "haiku checkpoint F0_haiku.npz"
    assert info.class_names[6] == "class 6"
    assert info.image_size == 32
    assert info.preprocessing == "resize_crop_32"
    assert info.overrides is None


@pytest.mark.parametrize("separator", [":", "|"])
def test_real_npz_files(tiny, tmp_path, separator):
    path = tmp_path / "w.npz"
    flat = {f"{m}{separator}{n}": v for m, a in tiny.items() for n, v in a.items()}
    np.savez(path, **flat)
    params, _ = read_published(path)
    assert_same_trees(params, tiny)
    np.savez(path, **{"a:b": np.array([{}], object)})
    with pytest.raises(UserError, match="is refused: .*allow_pickle=False"):
        read_published(path)
    np.savez(path, b=np.ones(2))
    with pytest.raises(UserError, match="an array 'b'; expected MODULE:NAME"):
        read_published(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="is refused"):
        read_published(path)


def test_pairs_with_a_state_keep_it(tmp_path):
    path = tmp_path / "w.pkl"
    state = {"bn": {"average": np.ones(2, np.float64), "counter": np.int32(3)}}
    path.write_bytes(pickle.dumps(({"m": {"n": np.ones(1)}}, state)))
    params, loaded = read_published(path)
    assert_same_trees(loaded, state)
    assert loaded["bn"]["average"].dtype == np.float32
    assert loaded["bn"]["counter"].dtype == np.int32
    assert_same_trees(params, {"m": {"n": np.ones(1)}})


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0", "resnet50"])
def test_models_are_told_by_their_shapes(name):
    shapes = parameter_shapes(nfnets.create_model(name, 12))
    assert guess_model("FILE", shapes) == (name, 12)


def test_models_that_are_none_of_the_list():
    with pytest.raises(UserError, match="none has exactly these 2 blocks.*--model=NAME"):
        guess_model("FILE", micro_params())
    with pytest.raises(UserError, match="--model"):
        guess_model("FILE", {})


def test_trees_that_are_no_parameters(tmp_path):
    path = tmp_path / "w.pkl"
    for value, message in (
        ([1, 2], "holds a list, not Haiku parameters"),
        ({"m": np.ones(2)}, "'m' is no module with arrays"),
        ({"m": {"n": "text"}}, "m:n is no array"),
        ({"m": {"n": {"deep": np.ones(2)}}}, "m:n is no array"),
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=message):
            read_published(path)
    with pytest.raises(UserError, match="cannot read nowhere: No such file"):
        read_published("nowhere")


def test_mistakes_of_the_command_line(tiny, tmp_path):
    path, out = tmp_path / "w.pkl", tmp_path / "out.safetensors"
    path.write_bytes(pickle.dumps(tiny))
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    for arguments, message in (
        ([f"--class_names={names}"], "2 class names for 7 classes"),
        (["--class_names=nowhere"], "cannot read the class names in nowhere"),
        (["--model=nfnet_f0"], "does not fit the model: .* missing"),
        (["--model=nfnet_g0"], "unknown model 'nfnet_g0'"),
        (["--to=timm"], "is no safetensors file"),
        (["--to=timm", "--from=timm"], "without --from"),
        (["--from=nfnets"], "need not be converted"),
        (["--form=timm"], "unrecognized arguments: --form=timm"),
    ):
        with pytest.raises(UserError, match=message):
            convert.main([str(path), f"--out={out}", *arguments])
    names.write_text("one\n\ntwo\n")
    with pytest.raises(UserError, match="one class name on every line"):
        convert.read_class_names(str(names))
    assert not out.exists()


class Malicious:
    def __reduce__(self):
        return os.system, ("touch gone",)


def test_a_malicious_file_ends_with_one_line_and_runs_nothing(tmp_path):
    path = tmp_path / "w.npz"
    path.write_bytes(pickle.dumps({"m": {"w": Malicious()}}))
    command = [sys.executable, "-m", "nfnets.weights.convert", str(path), "--out=out"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "is refused: it names 'posix.system'" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]
