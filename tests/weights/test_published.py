"""Published checkpoints: files, trees, identification of the model."""

import pickle

import chex
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models.counting import parameter_shapes
from nfnets.weights.published import count_classes, identify_model, read_published
from tests.weights.helpers import CLASSES, micro_params


@pytest.mark.parametrize("separator", [":", "|"])
def test_real_npz_files(tmp_path, separator):
    path = tmp_path / "w.npz"
    params = micro_params()
    flat = {f"{m}{separator}{n}": v for m, a in params.items() for n, v in a.items()}
    np.savez(path, **flat)
    loaded, state = read_published(path)
    chex.assert_trees_all_equal(loaded, params)
    assert state == {}
    np.savez(path, **{"a:b": np.array([{}], object)})
    with pytest.raises(UserError, match="is refused: .*allow_pickle=False"):
        read_published(path)
    np.savez(path, b=np.ones(2))
    with pytest.raises(UserError, match="an array 'b'; expected MODULE:NAME"):
        read_published(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="is refused"):
        read_published(path)


def test_pairs_of_parameters_and_state(tmp_path):
    path = tmp_path / "w.pkl"
    state = {"bn": {"average": np.ones(2, np.float64), "counter": np.int32(3)}}
    path.write_bytes(pickle.dumps(({"m": {"n": np.ones(1), "x": 0.5}}, state)))
    params, loaded = read_published(path)
    chex.assert_trees_all_equal(loaded, state)
    assert loaded["bn"]["average"].dtype == np.float32
    assert loaded["bn"]["counter"].dtype == np.int32
    chex.assert_trees_all_equal(params, {"m": {"n": np.ones(1), "x": np.float32(0.5)}})


@pytest.mark.parametrize("name", ["nfnet_f0", "nfnet_f0_plus", "nf_regnet_b0", "resnet50"])
def test_models_are_identified_by_their_shapes(name):
    shapes = parameter_shapes(nfnets.create_model(name, 12))
    assert identify_model("FILE", shapes) == name
    assert count_classes("FILE", shapes) == 12


def test_unknown_models():
    params = micro_params()
    assert count_classes("FILE", params) == CLASSES
    with pytest.raises(UserError, match=r"no model \(NFNet of 2 blocks\); give --m"):
        identify_model("FILE", params)
    with pytest.raises(UserError, match="FILE has no classifier NETWORK/~/linear:w"):
        identify_model("FILE", {})


def test_trees_that_are_not_parameters(tmp_path):
    path = tmp_path / "w.pkl"
    for value, message in (
        ([1, 2], "holds a list, not Haiku parameters"),
        ({"m": np.ones(2)}, "'m' is not a module with arrays"),
        ({"m": {"n": "text"}}, "m:n is not an array"),
        ({"m": {"n": {"deep": np.ones(2)}}}, "m:n is not an array"),
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=message):
            read_published(path)
    with pytest.raises(UserError, match="cannot read nowhere: No such file"):
        read_published("nowhere")
