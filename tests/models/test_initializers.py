"""Initial values: those of `jax.random`, drawn by one compiled function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.models import initializers

PIECE = initializers._PIECE


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("stream", [None, 2**32 - 1])
def test_values_are_those_of_jax_random(truncated, stream):
    key = jax.random.key(3)
    shape = (PIECE // 4 + 1, 4)  # ends in a second piece
    normal = initializers.ScaledNormal(stddev=0.5, truncated=truncated)
    values = normal.draw(key, shape, jnp.float32, stream)

    folded = key if stream is None else jax.random.fold_in(key, np.uint32(stream))
    keys = [jax.random.fold_in(folded, index) for index in range(2)]
    if truncated:
        pieces = [jax.random.truncated_normal(k, -2, 2, (PIECE,)) for k in keys]
    else:
        pieces = [jax.random.normal(k, (PIECE,)) for k in keys]
    expected = 0.5 * np.concatenate(pieces)[: PIECE + 4]
    np.testing.assert_array_equal(values, expected.reshape(shape))


def test_all_distributions_are_drawn_by_one_compiled_function():
    initializers._draw_piece.clear_cache()
    for normal in (initializers.CONV, initializers.HE, initializers.LINEAR):
        normal.draw(jax.random.key(0), (3, 5), jnp.float32, 1)
        normal.draw(jax.random.key(1), (7,), jnp.float16, 2)
    assert initializers._draw_piece._cache_size() == 1
