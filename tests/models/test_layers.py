"""Layers against hand-computed values."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.models import layers, normalize_images


def test_the_gradient_of_a_standardized_convolution_stores_two_weights():
    conv = hk.without_apply_rng(
        hk.transform(
            lambda x: layers.WSConv2D(8, 3, eps=1e-4, eps_rule="floor", name="conv")(x)
        )
    )
    inputs = jax.ShapeDtypeStruct((1, 2, 2, 64), jnp.float32)
    params = jax.eval_shape(conv.init, jax.random.key(0), inputs)
    pullback = jax.eval_shape(lambda p, x: jax.vjp(conv.apply, p, x)[1], params, inputs)
    stored = sum(leaf.size for leaf in jax.tree.leaves(pullback))
    weight = params["conv"]["w"].size  # the weight itself, and the standardized one
    assert stored < 2.5 * weight


def test_average_pool_counts_only_pixels_that_exist():
    inputs = jnp.arange(9.0).reshape(1, 3, 3, 1)
    expected = np.array([[(0 + 1 + 3 + 4) / 4, (2 + 5) / 2], [(6 + 7) / 2, 8]])
    np.testing.assert_allclose(layers.average_pool_2x2(inputs)[0, :, :, 0], expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5)])
def test_average_pool_of_large_batches_is_that_of_each_example(size):
    inputs = jax.random.normal(jax.random.key(0), (128, *size, 96))
    pool = jax.jit(layers.average_pool_2x2)
    alone = jnp.concatenate([pool(inputs[k : k + 1]) for k in range(0, 128, 31)])
    np.testing.assert_allclose(pool(inputs)[::31], alone, atol=1e-6)


def test_squeeze_excite_by_hand():
    def forward(x):
        return layers.SqueezeExcite(2, 1)(x)

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = {
        "squeeze_excite/~/linear": {"w": jnp.array([[1.0], [2.0]]), "b": jnp.array([-1.0])},
        "squeeze_excite/~/linear_1": {"w": jnp.array([[1.0, -1.0]]), "b": jnp.zeros(2)},
    }
    inputs = jnp.array([[[[0.0, 1.0], [2.0, 1.0]]]])  # channel means 1 and 1
    gates = transformed.apply(params, inputs)
    hidden = 1 + 2 - 1
    expected = 1 / (1 + np.exp([-hidden, hidden]))
    np.testing.assert_allclose(gates[0, 0, 0], expected, rtol=1e-6)
    # A negative hidden value is cut off by the ReLU: both gates are 1/2.
    np.testing.assert_allclose(transformed.apply(params, -inputs)[0, 0, 0], [0.5, 0.5])


def test_channel_attention_by_hand():
    def forward(x):
        return layers.ChannelAttention(2.0)(x)

    transformed = hk.without_apply_rng(hk.transform(forward))
    weight = jnp.array([1.0, 2.0, 4.0])[:, None, None]
    # Means 0.01, 0.1 and 1.
    inputs = jnp.array([[[[0.0, 0.1, 3.0], [0.02, 0.1, -1.0]]]])
    gates = transformed.apply({"channel_attention": {"w": weight}}, inputs)
    # Neighbors before, at and after each channel; zeros beyond the ends.
    hidden = np.array([0.02 + 0.4, 0.01 + 0.2 + 4, 0.1 + 2])
    np.testing.assert_allclose(gates[0, 0, 0], 1 / (1 + np.exp(-hidden)), rtol=1e-6)
    # "ECA-Net", equation 12: (log2(C) + 1) / 2 is 2.5, 3.5, 4.5 and 6.5.
    for channels, size in ((16, 3), (64, 3), (256, 5), (4096, 7)):
        images = jax.ShapeDtypeStruct((1, 2, 2, channels), jnp.float32)
        shapes = jax.eval_shape(transformed.init, jax.random.key(0), images)
        assert shapes["channel_attention"]["w"].shape == (size, 1, 1)


def test_symmetric_padding_by_hand():
    inputs = jnp.arange(4.0).reshape(1, 1, 4, 1)
    weight = jnp.array([1.0, 10.0, 100.0])[None, :, None, None]
    same = layers.conv2d(inputs, weight, 2)[0, 0, :, 0]
    np.testing.assert_array_equal(same, [0 + 10 + 200, 2 + 30])
    symmetric = layers.conv2d(inputs, weight, 2, padding="symmetric")[0, 0, :, 0]
    np.testing.assert_array_equal(symmetric, [0 + 100, 1 + 20 + 300])
    np.testing.assert_array_equal(layers.max_pool_3x3(inputs)[0, 0, :, 0], [2, 3])
    pooled = layers.max_pool_3x3(-inputs, "symmetric")[0, 0, :, 0]
    np.testing.assert_array_equal(pooled, [0, -1])


def test_dropout_keeps_the_mean_and_belongs_to_examples():
    keys = layers.example_keys(jax.random.key(0), jnp.arange(8))
    inputs = jnp.ones((8, 5000))
    dropped = np.asarray(layers.dropout(inputs, 0.3, keys))
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    np.testing.assert_allclose((dropped == 0).mean(), 0.3, atol=0.01)
    rows = jnp.array([5, 2])
    again = layers.dropout(inputs[:2], 0.3, layers.example_keys(jax.random.key(0), rows))
    np.testing.assert_array_equal(again, dropped[rows])


def test_stochastic_depth_drops_branches_at_rates_that_grow_with_depth():
    model = nfnets.create_model(
        "nfnet_tiny", num_classes=2, stochdepth_rate=0.8, drop_rate=0.0
    )
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for arrays in params.values():
        if "skip_gain" in arrays:
            arrays["skip_gain"] = jnp.ones(())
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    images = jnp.tile(image, (400, 1, 1, 1))
    outputs, _ = jax.jit(
        lambda key, images: model.apply(params, {}, key, images, is_training=True)
    )(jax.random.key(2), images)
    kept, _ = jax.jit(lambda image: model.apply(params, {}, None, image))(image)
    # Block i of 5 is dropped at the rate 0.8 i / 5; the stages have 1, 1, 2 and 1 blocks.
    for stage, rate in (("stage_1", 1), ("stage_2", 0.84), ("stage_4", 0.1069)):
        error = np.abs(outputs[stage] - kept[stage]).max(axis=(1, 2, 3))
        whole = error < 1e-3 * np.abs(kept[stage]).max()
        np.testing.assert_allclose(whole.mean(), rate, atol=0.04 * (rate < 1))


def test_random_numbers_are_those_of_documented_keys():
    rng, index = jax.random.key(3), jnp.arange(32)
    key = hk.transform(hk.next_rng_key).apply({}, rng)
    images = jnp.tile(jax.random.normal(jax.random.key(1), (1, 16, 16, 3)), (32, 1, 1, 1))
    model = nfnets.create_model("nfnet_tiny", 2, stochdepth_rate=0.9, drop_rate=0.5)
    params, _ = model.init(jax.random.key(0), images)
    params = jax.tree.map(lambda x: x + 1 if x.ndim == 0 else x, params)
    evaluated, outputs = jax.jit(
        lambda p, x: [model.apply(p, {}, rng, x, train)[0] for train in (False, True)]
    )(params, images)
    head = params["NFNet/~/linear"]

    # Evaluation ignores the key, and dropout follows `pool`.
    logits = evaluated["pool"] @ head["w"] + head["b"]
    np.testing.assert_allclose(evaluated["logits"], logits, rtol=1e-4, atol=1e-6)
    keys = layers.example_keys(jax.random.fold_in(key, 1), index)
    logits = layers.dropout(outputs["pool"], 0.5, keys) @ head["w"] + head["b"]
    np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-6)

    # Block 1 of 5, the second stage, is dropped at the rate 0.9 / 5.
    keys = layers.example_keys(jax.random.fold_in(key, 0), index)
    keep = jnp.stack([jax.random.uniform(k, (5,))[1] for k in keys]) >= 0.9 / 5
    assert 0 < keep.sum() < 32
    error = jnp.abs(outputs["stage_2"] - evaluated["stage_2"]).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(error < 1e-4, keep)


def test_randomness_follows_the_example_not_its_place():
    model = nfnets.create_model(
        "nfnet_tiny", num_classes=2, stochdepth_rate=0.5, drop_rate=0.5
    )
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    params, _ = model.init(jax.random.key(0), images)
    for arrays in params.values():
        if "skip_gain" in arrays:
            arrays["skip_gain"] = jnp.ones(())

    @jax.jit
    def logits(images, index):
        outputs, _ = model.apply(
            params, {}, jax.random.key(5), images, is_training=True, example_index=index
        )
        return outputs["logits"]

    whole = logits(images, jnp.arange(4))
    part = logits(images[2:], jnp.array([2, 3]))
    np.testing.assert_allclose(part, whole[2:], rtol=1e-4, atol=1e-6)
    moved = logits(images[2:], jnp.array([0, 1]))
    assert np.abs(moved - whole[2:]).max() > 1e-4


def test_normalization_by_hand():
    image = jnp.array([[0, 128, 255]], jnp.uint8)
    expected = [
        (0 - 123.675) / 58.395,
        (128 - 116.28) / 57.12,
        (255 - 103.53) / 57.375,
    ]
    np.testing.assert_allclose(normalize_images(image)[0], expected, rtol=1e-5)
