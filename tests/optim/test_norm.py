"""The norm of a whole tree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets.optim import global_norm


@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_the_norm_of_many_arrays_is_that_of_all_their_elements(count):
    rng = np.random.default_rng(count)
    arrays = [rng.normal(size=(k % 5 + 1, 3)).astype(np.float32) for k in range(count)]
    tree = {"arrays": arrays, "nothing": None}
    expected = np.sqrt(sum(np.sum(np.float64(a) ** 2) for a in arrays))
    for norm in (global_norm(tree), jax.jit(global_norm)(tree)):
        assert norm.dtype == jnp.float32
        assert norm.shape == ()
        np.testing.assert_allclose(norm, expected, rtol=1e-6)
    np.testing.assert_allclose(global_norm(tree), optax.tree.norm(tree), rtol=1e-6)


def test_half_precision_is_squared_in_single():
    tree = [jnp.full((4,), 300.0, jnp.float16), jnp.full((), 3 + 4j)]
    np.testing.assert_allclose(global_norm(tree), np.sqrt(4 * 300.0**2 + 25))


def test_nothing_has_the_norm_zero():
    assert float(global_norm({})) == 0
