"""The norm of all gradients together."""

from typing import Any

import jax
import jax.numpy as jnp

from nfnets.outlining import inlined, map_in_parts


def global_norm(tree: Any) -> jax.Array:
    """Returns the L2 norm of all arrays of a tree as one vector, a float32 scalar.

    `optax.tree.norm`, but half precision is summed in float32, each shape is traced once,
    and the sums are functions of their own, which compiles sooner.

    Args:
      tree: of real or complex arrays; 0 without any.
    """
    parts = map_in_parts(_sum_of_squares_of_part, jax.tree.leaves(tree))
    return jnp.sqrt(sum(parts, jnp.zeros(())))


@jax.jit
def _sum_of_squares_of_part(arrays: list[jax.Array]) -> jax.Array:
    with inlined():
        return sum(map(_sum_of_squares, arrays), jnp.zeros(()))


@jax.jit  # traced once for each shape
def _sum_of_squares(array: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jnp.abs(array).astype(jnp.float32)))
