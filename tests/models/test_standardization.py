"""Scaled weight standardization against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.models.standardization import standardize_weight


def test_standardized_weights_by_hand():
    weight = jnp.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0], [7.0, 6.0]])
    # Unit 0: mean 4, variance 5, fan-in 4: (w - 4) / sqrt(20), times the gain 2.
    # Unit 1: mean 3, variance 3: (w - 3) / sqrt(12).
    expected = np.stack(
        [
            2 * np.array([-3, -1, 1, 3]) / np.sqrt(20),
            np.array([-1, -1, -1, 3]) / np.sqrt(12),
        ],
        axis=-1,
    )
    got = standardize_weight(weight, jnp.array([2.0, 1.0]), 1e-4, "floor")
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_standardization_floors_variance_times_fan_in():
    # Variance 1e-6 and fan-in 4: 4e-6 is below the floor 1e-4, whose root is 1e-2.
    weight = jnp.array([1e-3, -1e-3, 1e-3, -1e-3])[:, None]
    got = standardize_weight(weight, jnp.ones(1), 1e-4, "floor")
    np.testing.assert_allclose(got, weight / 1e-2, rtol=1e-6)


def test_standardization_is_float32_whatever_comes_in():
    weight = jax.random.normal(jax.random.key(0), (3, 3, 64, 8)).astype(jnp.bfloat16)
    gain = jnp.ones(8, jnp.bfloat16)
    got = standardize_weight(weight, gain, 1e-4, "floor")
    want = standardize_weight(weight.astype(jnp.float32), gain, 1e-4, "floor")
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("rule", ["floor", "added"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 16, 3), (7, 2)])
def test_standardization_and_its_gradient_follow_the_formula(shape, rule):
    keys = jax.random.split(jax.random.key(0), 3)
    # The last unit's variance is below the floor; the means are not zero.
    weight = 0.5 + jax.random.normal(keys[0], shape)
    weight = weight.at[..., -1].set(0.3 + 1e-4 * weight[..., -1])
    gain = jax.random.uniform(keys[1], shape[-1:], minval=0.5)
    given = np.asarray(jax.random.normal(keys[2], shape), np.float64)
    got, pullback = jax.vjp(lambda w, g: standardize_weight(w, g, 1e-3, rule), weight, gain)
    w = np.asarray(weight, np.float64).reshape(-1, shape[-1])
    given = given.reshape(w.shape)
    fan_in, centered = len(w), w - w.mean(axis=0)
    variance = (centered**2).mean(axis=0)
    if rule == "added":
        bounded, moves = (variance + 1e-3) * fan_in, 1.0
    else:
        bounded = np.maximum(variance * fan_in, 1e-3)
        moves = variance * fan_in > 1e-3
        assert list(moves) == [True] * (shape[-1] - 1) + [False]
    unit = centered / np.sqrt(bounded)
    along = (given * unit).sum(axis=0)
    grad = (given - given.mean(axis=0) - moves * along * unit) / np.sqrt(bounded) * gain
    for found, expected in zip(
        (got, *pullback(jnp.asarray(given.reshape(shape), jnp.float32))),
        ((unit * gain).reshape(shape), grad.reshape(shape), along),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
