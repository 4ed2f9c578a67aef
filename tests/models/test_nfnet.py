"""NFNets against the published implementation and the paper's table."""

import csv
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models import (
    count_multiply_adds,
    count_parameters,
    get_spec,
    initializers,
    listing_hash,
)
from nfnets.models.counting import parameter_shapes
from tests import reference
from tests.models.helpers import block_input_variances

# Paper, table 1: billions of multiply-adds at test size, millions of parameters.
PAPER = {
    "nfnet_f0": (256, 12.38, 71.5),
    "nfnet_f1": (320, 35.54, 132.6),
    "nfnet_f2": (352, 62.59, 193.8),
    "nfnet_f3": (416, 114.76, 254.9),
    "nfnet_f4": (512, 215.24, 316.1),
    "nfnet_f5": (544, 289.76, 377.2),
    "nfnet_f6": (576, 377.28, 438.4),
}


def published_rows():
    with (reference.DATA / "models.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == "NFNet"]
    return {"nfnet_" + r["variant"].lower().replace("+", "_plus"): r for r in rows}


PUBLISHED = published_rows()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    shapes = parameter_shapes(nfnets.create_model(name))
    row = PUBLISHED[name]
    assert count_parameters(shapes) == int(row["params"])
    assert len(jax.tree.leaves(shapes)) == int(row["leaves"])
    assert listing_hash(shapes) == row["sha256"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_sizes_are_the_published_ones(name):
    recipe = nfnets.create_model(name).spec.recipe
    assert recipe.train_size == int(PUBLISHED[name]["train_size"])
    assert recipe.test_size == int(PUBLISHED[name]["test_size"])


@pytest.mark.parametrize(
    ("number", "drop_rate", "magnitude", "top1"),
    [
        (0, 0.2, 5, 83.6),
        (1, 0.3, 10, 84.7),
        (2, 0.4, 10, 85.1),
        (3, 0.4, 15, 85.7),
        (4, 0.5, 15, 85.9),
        (5, 0.5, 15, 86.0),
        (6, 0.5, 15, None),  # 86.5 with SAM
        (7, 0.5, 15, None),
    ],
)
def test_recipes_are_those_of_the_paper(number, drop_rate, magnitude, top1):
    for suffix in ("", "_plus"):
        spec = get_spec(f"nfnet_f{number}{suffix}")
        assert (spec.drop_rate, spec.stochdepth_rate) == (drop_rate, 0.25)
        assert spec.recipe.randaugment_layers == 4
        assert spec.recipe.randaugment_magnitude == magnitude
        assert spec.recipe.weight_decay == 2e-5
        assert spec.recipe.top1 == (None if suffix else top1)


@pytest.mark.parametrize("name", PAPER)
def test_multiply_adds_are_those_of_the_paper(name):
    size, billions, millions = PAPER[name]
    model = nfnets.create_model(name)
    cost = count_multiply_adds(model, size)
    assert round(cost / 1e9, 2) == billions
    assert cost == int(PUBLISHED[name]["macs_at_test_size"])
    assert round(count_parameters(parameter_shapes(model)) / 1e6, 1) == millions


def test_outputs_and_gradients_are_the_published_ones():
    expected = np.load(reference.DATA / "NFNet-F0.npz")
    model = nfnets.create_model("nfnet_f0", drop_rate=0.0, stochdepth_rate=0.0)
    params = reference.formula_params(parameter_shapes(model))
    images = reference.formula_images(2, 64)

    def loss_fn(params):
        outputs, _ = model.apply(params, {}, None, images, is_training=True)
        log_probs = jax.nn.log_softmax(outputs["logits"])
        return -jnp.mean(log_probs[jnp.arange(2), jnp.array([1, 7])]), outputs

    (loss, outputs), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    for key in ("logits", "pool"):
        error = np.abs(outputs[key] - expected[key]).max() / expected[key].std()
        assert error < 1e-4, key
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-3)
    assert len(expected["grad_names"]) == len(jax.tree.leaves(grads))
    for path, norm in zip(expected["grad_names"], expected["grad_norms"], strict=True):
        module, _, name = path.rpartition(":")
        np.testing.assert_allclose(
            np.linalg.norm(grads[module][name]), norm, rtol=1e-3, err_msg=path
        )


def test_predicted_standard_deviations_by_hand():
    spec = nfnets.create_model("nfnet_tiny", depths=(3, 1, 2, 1), alpha=0.5).spec
    # Each block adds 1/4 to the variance; a stage's first one starts from 1.
    variances = [1, 1.25, 1.5, 1.75, 1.25, 1.25, 1.5]
    np.testing.assert_allclose(np.square(spec.expected_stds()), variances)


def stage_slices(depths):
    """Blocks whose input comes from the same stage: all but each stage's first."""
    start = 0
    for depth in depths:
        yield slice(start + 1, start + depth + 1)
        start += depth


@pytest.mark.parametrize(
    ("name", "overrides", "size", "batch"),
    [
        ("nfnet_f0", {}, 192, 2),
        ("nfnet_tiny", {"widths": (256,), "depths": (16,), "strides": (1,)}, 64, 4),
        pytest.param(
            "nfnet_tiny",
            {"widths": (256,), "depths": (100,), "strides": (1,)},
            64,
            4,
            marks=pytest.mark.long,
        ),
    ],
)
def test_signal_keeps_the_predicted_variance_within_stages(name, overrides, size, batch):
    model = nfnets.create_model(name, **overrides)
    ratios = block_input_variances(model, size, batch)
    assert len(ratios) == sum(model.spec.depths)
    for stage in stage_slices(model.spec.depths):
        values = ratios[stage]
        if len(values):
            np.testing.assert_allclose(values, values.mean(), rtol=0.1)


def test_skip_gains_start_at_zero_and_branches_add_nothing():
    model = nfnets.create_model("nfnet_tiny", num_classes=3)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert not state
    gains = [a["skip_gain"] for a in params.values() if "skip_gain" in a]
    assert len(gains) == sum(model.spec.depths)
    assert all(gain == 0 for gain in gains)


def test_initial_values_have_the_published_distributions():
    model = nfnets.create_model("nfnet_f0", depths=(1, 1, 4, 1))
    params, _ = model.init(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))
    conv = params["NFNet/~/nf_block_5/~/conv1"]
    np.testing.assert_allclose(conv["w"].std(), 1 / np.sqrt(9 * 128), rtol=0.01)
    np.testing.assert_allclose(conv["w"].mean(), 0, atol=1e-4)
    assert (conv["gain"] == 1).all()
    assert (conv["bias"] == 0).all()
    head = params["NFNet/~/linear"]
    np.testing.assert_allclose(head["w"].std(), 0.01, rtol=0.01)
    gate = params["NFNet/~/nf_block_5/~/squeeze_excite/~/linear"]["w"]
    # Truncated at two standard deviations: 0.8796 of the untruncated one.
    np.testing.assert_allclose(gate.std() * np.sqrt(1536), 0.8796, rtol=0.01)
    assert np.abs(gate).max() <= 2 / np.sqrt(1536)


def test_init_is_a_function_of_the_key_and_of_nothing_else():
    model = nfnets.create_model("nfnet_tiny", num_classes=5)
    small = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    large = jnp.zeros((2, 64, 64, 3))
    first, _ = model.init(jax.random.key(0), small)
    again, _ = jax.jit(model.init)(jax.random.key(0), large)
    other, _ = model.init(jax.random.key(1), small)
    chex.assert_trees_all_equal(first, again)
    module = "NFNet/~/nf_block/~/conv0"
    assert np.abs(first[module]["w"] - other[module]["w"]).max() > 0.1
    # What seeds of published results rely on: the stream of an array follows from its name.
    weight = initializers.CONV.draw(
        jax.random.key(0),
        first[module]["w"].shape,
        jnp.float32,
        zlib.crc32(b"%s:w" % module.encode()),
    )
    np.testing.assert_array_equal(first[module]["w"], weight)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first))


def test_end_points_have_the_documented_shapes():
    model = nfnets.create_model("nfnet_tiny", num_classes=7)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    outputs, _ = jax.eval_shape(
        lambda: model.apply(params, state, None, jnp.zeros((2, 64, 64, 3)))
    )
    assert {key: value.shape for key, value in outputs.items()} == {
        "stem": (2, 16, 16, 16),
        "stage_1": (2, 16, 16, 32),
        "stage_2": (2, 8, 8, 64),
        "stage_3": (2, 4, 4, 96),
        "stage_4": (2, 2, 2, 96),
        "final_conv": (2, 2, 2, 192),
        "pool": (2, 192),
        "logits": (2, 7),
    }


def test_bfloat16_computes_close_to_float32():
    key, images = jax.random.key(0), jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    exact = nfnets.create_model("nfnet_tiny", num_classes=5)
    half = nfnets.create_model("nfnet_tiny", num_classes=5, compute_dtype=jnp.bfloat16)
    params, _ = half.init(key, images)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    got, want = jax.jit(
        lambda: [m.apply(params, {}, None, images)[0] for m in (half, exact)]
    )()
    assert got["stage_2"].dtype == jnp.bfloat16
    assert got["logits"].dtype == got["pool"].dtype == jnp.float32
    error = np.abs(got["pool"] - want["pool"]).max() / np.std(want["pool"])
    assert 0 < error < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "nfnet_f9"}, "unknown model 'nfnet_f9'; did you mean nfnet_f"),
        ({"name": "nfnet_f0", "drop_rat": 0.1}, "nfnet_f0 has no option 'drop_rat'"),
        ({"name": "nfnet_f0", "drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), not 1.0"),
        ({"name": "nfnet_f0", "num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"name": "nfnet_f0", "widths": (1,)}, "one entry per stage"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        nfnets.create_model(**arguments)


def test_wrong_images_are_named():
    model = nfnets.create_model("nfnet_tiny")
    with pytest.raises(UserError, match=r"images \[N, H, W, 3\], not \[1, 32, 32, 1\]"):
        model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
