"""Exponential moving averages of parameters."""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp

from nfnets.outlining import inlined, map_in_parts

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
    treedef = jax.tree.structure(average)
    parts = map_in_parts(
        _blend_part, jax.tree.leaves(average), treedef.flatten_up_to(values), rate=rate
    )
    return treedef.unflatten([leaf for part in parts for leaf in part])


@jax.jit
def _blend_part(
    old: list[jax.Array], new: list[jax.Array], rate: jax.Array
) -> list[jax.Array]:
    with inlined():
        return [_blend(a, b, rate) for a, b in zip(old, new, strict=True)]


@jax.jit  # traced once for each shape
def _blend(old: jax.Array, new: jax.Array, rate: jax.Array) -> jax.Array:
    if not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    return old + (rate * (new - old)).astype(old.dtype)
