"""Exponential moving averages, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.optim import update_ema


def test_the_average_warms_up_and_counters_are_copied():
    old = {"w": jnp.zeros(2), "count": jnp.zeros((), jnp.int32)}
    new = {"w": jnp.ones(2), "count": jnp.ones((), jnp.int32)}
    for step, decay in ((0, 1 / 10), (8, 9 / 18), (10**6, 0.99)):
        average = update_ema(old, new, 0.99, step)
        np.testing.assert_allclose(average["w"], 1 - decay, rtol=1e-5)
        assert average["count"] == 1


def test_two_steps_by_hand():
    average = update_ema((jnp.array([1.0]),), (jnp.array([3.0]),), 0.5, 0)
    np.testing.assert_allclose(average[0], 0.1 * 1 + 0.9 * 3, rtol=1e-6)
    average = update_ema(average, (jnp.array([0.0]),), 0.5, 8)
    np.testing.assert_allclose(average[0], 0.5 * 2.8, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.9, np.float64(0.9), jnp.float32(0.9)])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_averages_keep_their_dtype_in_a_loop(dtype, decay):
    values = {"w": jnp.ones(3, dtype), "none": None}

    def step(average, count):
        return update_ema(average, values, decay, count), None

    with jax.enable_x64(True):
        average, _ = jax.lax.scan(step, values, jnp.arange(4))
    assert average["w"].dtype == dtype
    np.testing.assert_array_equal(average["w"], values["w"])
