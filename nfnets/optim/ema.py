"""Exponential moving averages of parameters."""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def warmed_up_decay(decay: float, step: chex.Numeric) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)): early averages forget the initial values.

    Args:
      decay: in [0, 1).
      step: updates before this one, from 0.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(average: Tree, values: Tree, decay: float, step: chex.Numeric) -> Tree:
    """Returns decay * average + (1 - decay) * values, with the decay warmed up.

    Leaves that are no floating-point numbers (counters) are taken over from `values`.

    Args:
      average: tree of arrays.
      values: a tree of the same structure, the newest values.
      decay: in [0, 1).
      step: updates before this one, from 0.
    """
    rate = 1.0 - warmed_up_decay(decay, step)

    return jax.tree.map(lambda old, new: _blend(old, new, rate), average, values)


@jax.jit  # traced once for each shape
def _blend(old: jax.Array, new: jax.Array, rate: jax.Array) -> jax.Array:
    if not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    return old + (rate * (new - old)).astype(old.dtype)
