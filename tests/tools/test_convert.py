"""Published checkpoints become weights files; mistakes are named."""

import os
import pickle

import chex
from haiku._src import data_structures
import jax
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models.counting import parameter_shapes
from nfnets.tools import convert
from nfnets.weights.files import write_safetensors
from nfnets.weights.timm import to_timm
from tests import reference
from tests.weights.helpers import micro_params


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
    names.write_text("".join(f" class {n}\n" for n in range(7)))
    convert.main([str(source), f"--out={out}", f"--class_names={names}"])
    line = capsys.readouterr().out
    assert "nfnet_tiny, 7 classes, from haiku checkpoint F0_haiku.npz" in line
    params, state = nfnets.load_weights(out)
    chex.assert_trees_all_equal(
        params, jax.tree.map(lambda array: array.astype(np.float32), half)
    )
    assert params["NFNet/~/linear"]["w"].dtype == np.float32
    assert state == {}
    info = nfnets.read_weights_info(out)
    assert (info.model, info.num_classes) == ("nfnet_tiny", 7)
    assert info.source == "haiku checkpoint F0_haiku.npz"
    assert info.class_names[6] == "class 6"
    assert info.image_size == 32
    assert info.preprocessing == "resize_crop_32"
    assert info.overrides is None


def test_a_given_model_is_not_identified(tiny, tmp_path):
    path, out = tmp_path / "w.pkl", tmp_path / "out.safetensors"
    path.write_bytes(pickle.dumps(tiny))
    convert.main([str(path), f"--out={out}", "--model=nfnet_tiny", "--from=haiku"])
    assert nfnets.read_weights_info(out).num_classes == 7


def test_mistakes_are_named(tiny, tmp_path):
    path, out = tmp_path / "w.pkl", tmp_path / "out.safetensors"
    path.write_bytes(pickle.dumps(tiny))
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    own, micro = tmp_path / "own", tmp_path / "micro"
    nfnets.save_weights(own, tiny)
    write_safetensors(micro, to_timm(micro_params()), {})
    for file, arguments, message in (
        (path, [f"--class_names={names}"], "2 class names for 7 classes"),
        (path, ["--class_names=nowhere"], "cannot read nowhere: No such file"),
        (path, ["--model=nfnet_f0"], "does not fit the model: .* missing"),
        (path, ["--model=nfnet_g0"], "unknown model 'nfnet_g0'"),
        (path, ["--to=timm"], "cannot convert .* from haiku to timm"),
        (path, ["--from=timm"], "is not a .safetensors file|not a PyTorch file"),
        (path, ["--form=timm"], "unrecognized arguments: --form=timm"),
        (own, [], "cannot convert .* from nfnets to nfnets"),
        (own, ["--to=timm"], "timm has no None; it has nfnet_f0, "),
        (micro, [], "no model .*; give --model=NAME"),
        (micro, ["--ema"], "has no state_dict_ema or model_ema"),
        ("nowhere", [], "no weights file nowhere: "),
    ):
        with pytest.raises(UserError, match=message):
            convert.main([str(file), f"--out={out}", *arguments])
    names.write_text("one\n\ntwo\n")
    with pytest.raises(UserError, match="one class name on every line"):
        convert.read_class_names(str(names))
    assert not out.exists()


class Malicious:
    def __reduce__(self):
        return os.system, ("touch gone",)


def test_a_malicious_file_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.npz"
    path.write_bytes(pickle.dumps({"m": {"w": Malicious()}}))
    with pytest.raises(UserError, match="is refused: it names 'posix.system'") as error:
        convert.main([str(path), "--out=out"])
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]
