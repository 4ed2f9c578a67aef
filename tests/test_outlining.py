"""Functions that stay functions in the program compiled for CPU."""

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.outlining import inlined, map_in_parts, outlined


@jax.jit
def _square(x):
    return x * x


@jax.jit
def _step(x, weight):
    with inlined():
        return jnp.tanh(_square(x @ weight))


@jax.jit
def _sums(left, right, scale):
    return sum(a.sum() * scale for a in left) - sum(b.sum() for b in right)


def calls(function, *args):
    """Calls in the whole compiled program."""
    return jax.jit(function).lower(*args).compile().as_text().count(" call(")


def test_calls_and_their_gradients_stay_calls_and_what_they_call_does_not():
    weights = [jnp.eye(8) * k for k in range(1, 4)]

    def loss(run, weights):
        x = jnp.ones((2, 8))
        for weight in weights:
            x = run(x, weight)
        return x.sum()

    assert calls(lambda w: loss(_step, w), weights) == 0
    assert calls(lambda w: loss(outlined(_step), w), weights) == 3
    assert calls(jax.grad(lambda w: loss(outlined(_step), w)), weights) == 6
    expected = jax.grad(lambda w: loss(_step, w))(weights)
    got = jax.jit(jax.grad(lambda w: loss(outlined(_step), w)))(weights)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_long_lists_in_parts():
    left = [jnp.full((2,), float(k)) for k in range(130)]
    right = [jnp.ones(())] * 130
    parts = map_in_parts(_sums, left, right, scale=2.0)
    assert len(parts) == 3
    assert float(sum(parts)) == 2 * 2 * sum(range(130)) - 130
    assert map_in_parts(_sums, [], [], scale=2.0) == []
    assert calls(lambda a, b: map_in_parts(_sums, a, b, scale=2.0), left, right) == 3
