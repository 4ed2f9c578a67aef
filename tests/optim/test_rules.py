"""Labels and learning-rate multipliers by parameter path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.models.counting import parameter_shapes
from nfnets.models.names import parameter_path
from nfnets.optim import rules
from tests.optim.helpers import BODY, HEAD, one_update, small_params

# A network with two blocks; the leaves are distances to the classifier.
DEPTHS = {
    "NFNet/~/stem_conv0": {"w": 4},
    "NFNet/~/nf_block": {"skip_gain": 3},
    "NFNet/~/nf_block/~/conv0": {"w": 3},
    "NFNet/~/nf_block_1/~/conv0": {"w": 2},
    "NFNet/~/nf_block_1/~/squeeze_excite/~/linear": {"w": 2},
    "NFNet/~/final_conv": {"w": 1},
    "NFNet/~/linear": {"w": 0, "b": 0},
}
FINE_TUNED = jax.tree.map(lambda _: 1.0, DEPTHS)


@pytest.mark.parametrize("name", ["nfnet_f0", "nfnet_tiny"])
def test_every_parameter_has_one_label(name):
    shapes = parameter_shapes(nfnets.create_model(name))
    labels = jax.tree_util.tree_leaves_with_path(rules.label_parameters(shapes))
    by_path = {parameter_path(path): label for path, label in labels}
    heads = [path for path, label in by_path.items() if label == "classifier_weight"]
    assert heads == ["NFNet/~/linear:w"]
    for path, label in by_path.items():
        assert (label == "gain_or_bias") == (not path.endswith(":w"))


@pytest.mark.parametrize(
    "name", ["gain", "bias", "b", "skip_gain", "scale", "offset", "bias0", "bias2b"]
)
def test_gains_and_biases(name):
    labels = rules.label_parameters({BODY: {name: jnp.ones(1)}})
    assert labels == {BODY: {name: "gain_or_bias"}}


@pytest.mark.parametrize("name", ["kernel", "again", "bias2c", "scales", "ww"])
def test_a_parameter_without_a_label_is_named(name):
    with pytest.raises(nfnets.UserError, match=f"parameter Net/~/conv:{name} is not a"):
        nfnets.create_optimizer(0.1).init({BODY: {name: jnp.ones((2, 2))}})


def test_masks_leave_out_labels():
    mask = rules.mask(rules.label_parameters, "classifier_weight", "gain_or_bias")
    expected = jax.tree.map(lambda _: False, small_params())
    expected[BODY]["w"] = True
    assert mask(small_params()) == expected


def test_labels_of_ones_own_are_checked():
    mask = rules.mask(lambda params: {"a": "gain"}, "gain_or_bias")
    with pytest.raises(nfnets.UserError, match=r"returned \{'gain'\}; labels: classifier_"):
        mask({"a": jnp.ones(1)})


def test_learning_rates_fall_from_the_classifier_down():
    rates = rules.learning_rate_multipliers(
        FINE_TUNED, head_multiplier=10.0, layer_decay=0.5, frozen=("squeeze",)
    )
    expected = jax.tree.map(lambda depth: 0.5**depth, DEPTHS)
    expected["NFNet/~/linear"] = {"w": 10.0, "b": 10.0}
    expected["NFNet/~/nf_block_1/~/squeeze_excite/~/linear"] = {"w": 0.0}
    assert rates == expected


def test_multipliers_reach_the_updates():
    params = jax.tree.map(jnp.asarray, FINE_TUNED)
    optimizer = nfnets.create_optimizer(
        1.0,
        clipping=None,
        momentum=0.0,
        weight_decay=0.0,
        head_multiplier=3.0,
        layer_decay=0.5,
        frozen=("gain",),
    )
    updates, _ = one_update(optimizer, params, params)
    np.testing.assert_allclose(updates["NFNet/~/linear"]["w"], -3.0)
    np.testing.assert_allclose(updates["NFNet/~/final_conv"]["w"], -0.5)
    np.testing.assert_array_equal(updates["NFNet/~/nf_block"]["skip_gain"], 0.0)


def test_updates_keep_their_dtype():
    updates = {HEAD: {"w": jnp.ones(2, jnp.bfloat16)}}
    scale = rules.scale_by_path(head_multiplier=jnp.float32(2.0))
    got, _ = scale.update(updates, scale.init(updates))
    assert got[HEAD]["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got[HEAD]["w"], 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen": ("stem",)}, "'stem' matches no parameter, such as Net/~/conv"),
        ({"layer_decay": 0.5}, "layer_decay needs parameters named"),
        ({"head_multiplier": 2.0}, "head_multiplier needs parameters named"),
    ],
)
def test_options_that_apply_to_nothing(options, message):
    optimizer = nfnets.create_optimizer(0.1, **options)
    with pytest.raises(nfnets.UserError, match=message):
        optimizer.init({BODY: small_params()[BODY]})
