"""Loaded arrays are compared with a model's parameters name by name."""

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.weights import fit_weights, initial_weights
from tests.weights.helpers import MICRO, micro_model, micro_params

HEAD = "NFNet/~/linear"


@pytest.fixture(scope="module")
def params():
    return micro_params()


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


def test_differences_are_named_in_both_directions(params):
    wrong = changed(
        params, final_conv__gain=None, other__w=np.ones(3), linear__b=np.ones(7)
    )
    with pytest.raises(UserError) as error:
        fit_weights("FILE", wrong, {}, micro_model())
    assert str(error.value) == (
        "FILE does not fit the model: 1 missing (NFNet/~/final_conv:gain); 1 unexpected "
        "(NFNet/~/other:w); 1 with mismatched shapes (NFNet/~/linear:b [7] for [5])"
    )
    with pytest.raises(UserError, match=r"1 unexpected \(bn:counter\)"):
        fit_weights("FILE", params, {"bn": {"counter": np.zeros(())}}, micro_model())


def test_long_lists_are_shortened_in_order(params):
    with pytest.raises(UserError) as error:
        fit_weights("FILE", {HEAD: params[HEAD]}, {}, micro_model())
    message = str(error.value)
    count = sum(map(len, params.values())) - 2
    assert f"{count} missing (NFNet/~/final_conv:bias, " in message
    assert message.endswith("NFNet/~/final_conv:w, ...)")


def test_images_of_other_channels(params):
    weight = params["NFNet/~/stem_conv0"]["w"][:, :, :1]
    message = r"stem_conv0:w \[3, 3, 1, 16\] for \[3, 3, 3, 16\]"
    with pytest.raises(UserError, match=message):
        fit_weights("FILE", changed(params, stem_conv0__w=weight), {}, micro_model())


def test_skipped_parameters_are_initialized_and_the_others_kept(params):
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
    chex.assert_trees_all_equal(loaded, want)
    assert list(loaded) == list(fresh)
    with pytest.raises(UserError, match="1 missing"):
        fit_weights("FILE", wrong, {}, model, skip[:2])
    with pytest.raises(UserError, match="no parameter matches 'conv'"):
        fit_weights("FILE", params, {}, model, ("conv",))


def test_another_number_of_classes_re_initializes_the_classifier(tmp_path, params, capsys):
    path = str(tmp_path / "w.safetensors")
    nfnets.save_weights(path, params)
    model = nfnets.create_model("nfnet_tiny", 7, **MICRO)
    loaded, _ = initial_weights(path, model, seed=1)
    fresh, _ = model.init(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32))
    chex.assert_trees_all_equal(loaded, {**params, HEAD: fresh[HEAD]})
    line = capsys.readouterr().out
    assert "has 5 classes, this run has 7: the classifier is re-initialized" in line
    with pytest.raises(UserError, match="2 with mismatched shapes"):
        nfnets.load_weights(path, model)
    loaded, _ = nfnets.load_weights(path, model, skip=["*linear:?"])
    assert loaded[HEAD]["w"].shape[-1] == 7
    initial_weights(path, micro_model(), seed=1)
    assert capsys.readouterr().out == ""
    assert initial_weights(None, model, seed=1) is None


def test_weights_in_half_precision_start_a_run_in_single(tmp_path):
    model = nfnets.create_model("nfnet_tiny", num_classes=3)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    half = jax.tree.map(lambda a: a.astype("float16"), params)
    nfnets.save_weights(tmp_path / "w", half, state)
    started, _ = initial_weights(tmp_path / "w", model, 0)
    chex.assert_trees_all_equal(started, jax.tree.map(lambda a: a.astype("float32"), half))
    assert {a.dtype.name for a in jax.tree.leaves(started)} == {"float32"}


def test_models_of_ones_own_are_compared_name_by_name(tmp_path, capsys):
    def forward(images, is_training):
        del is_training
        return {"logits": hk.Linear(4)(hk.Flatten()(images))}

    model = hk.transform_with_state(forward)
    path = str(tmp_path / "w.safetensors")
    params = {"linear": {"w": np.ones((8 * 8 * 3, 4), np.float16), "b": np.ones(4)}}
    nfnets.save_weights(path, params)
    loaded, state = initial_weights(path, model, seed=0, image_size=8)
    chex.assert_trees_all_equal(loaded, params)
    assert {a.dtype.name for a in jax.tree.leaves(loaded)} == {"float32"}
    assert state == {}
    nfnets.save_weights(path, {"linear": {**params["linear"], "b": np.ones(5)}})
    message = r"1 with mismatched shapes \(linear:b \[5\] for \[4\]"
    with pytest.raises(UserError, match=message):
        initial_weights(path, model, seed=0, image_size=8)
    loaded, _ = initial_weights(path, model, seed=0, skip=("linear:b",), image_size=8)
    chex.assert_trees_all_equal(loaded, {"linear": {**params["linear"], "b": np.zeros(4)}})
    assert capsys.readouterr().out == ""
