"""Random draws that depend only on a key and an example's position in the global batch.

The results are therefore independent of how a batch is split over devices, hosts and
micro-batches. All draws are integers, because floating-point arithmetic may round
differently in programs of different shapes.

Axis letters: N examples, D draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# log2 of the number of values that represent a Beta distribution.
_QUANTILE_BITS = 15
# Cells of the integral below, and Gauss-Legendre nodes in each.
_CELLS = 4096
_NODES = 8


def example_bits(key: jax.Array, example_index: jax.Array, count: int) -> jax.Array:
    """Returns random bits for each example.

    Args:
      key: a JAX key of any implementation.
      example_index: int32 [N], positions in the global batch.
      count: D, draws per example.

    Returns:
      uint32 [N, D], uniform; row i depends only on `key` and `example_index[i]`.
    """
    # Under vmap, bits of `rbg` keys depend on the batch; those of threefry keys do not.
    seed = jax.random.bits(key, (2,), jnp.uint32)
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")

    def draw(index: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, index), (count,), jnp.uint32)

    return jax.vmap(draw)(example_index)


def below(bits: jax.Array, bound: int) -> jax.Array:
    """Returns uniform int32 in [0, bound), with a relative error of bound / 2^32."""
    return (bits % jnp.uint32(bound)).astype(jnp.int32)


def from_table(bits: jax.Array, table: np.ndarray) -> jax.Array:
    """Returns entries of `table` at the positions in the top bits of `bits`.

    Args:
      bits: uint32 [N].
      table: [2^15, ...], for instance `beta_quantiles`.

    Returns:
      [N, ...], of the dtype of `table`.
    """
    return jnp.asarray(table)[bits >> (32 - _QUANTILE_BITS)]


@functools.lru_cache(maxsize=8)
def beta_quantiles(alpha: float) -> np.ndarray:
    """Returns 2^15 equally likely values that approximate Beta(alpha, alpha).

    They are the quantiles at the probabilities (k + 1/2) / 2^15, so that a uniform choice
    among them has a distribution function within 2^-16 = 1.5e-5 of the exact one. A table
    costs one look-up on the device, where `jax.random.beta` is a rejection loop. Errors of
    the quantiles, compared with scipy: 5e-6 for alpha >= 0.1, 4e-5 for alpha = 0.01.

    The density x^(a-1) (1-x)^(a-1) has a pole at 0 for a < 1. In t = x^p, p = min(a, 1), it
    is proportional to t^(a/p - 1) (1 - t^(1/p))^(a-1), which is bounded for x <= 1/2.
    That half is integrated; the other follows by symmetry.

    Args:
      alpha: both parameters, in (0, 100].

    Returns:
      float64 [2^15], ascending, in [0, 1].
    """
    power = min(alpha, 1.0)
    edges = 0.5**power * np.linspace(0.0, 1.0, _CELLS + 1)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    points = middle[:, None] + half[:, None] * nodes
    density = points ** (alpha / power - 1) * (1 - points ** (1 / power)) ** (alpha - 1)
    integral = np.concatenate([[0.0], np.cumsum(half * (density @ weights))])
    # The lower half of the distribution has probability 1/2.
    probability = 0.5 * integral / integral[-1]
    count = 1 << _QUANTILE_BITS
    wanted = (np.arange(count // 2) + 0.5) / count
    lower = np.interp(wanted, probability, edges) ** (1 / power)
    return np.concatenate([lower, 1 - lower[::-1]])
