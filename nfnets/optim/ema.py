"""Exponential moving averages of parameters."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Tree = TypeVar("Tree")


def warmed_up_decay(decay: float, step: ArrayLike) -> jax.Array:
    """Returns min(decay, (1 + step) / (10 + step)), which discounts the initial values.

    Args:
      decay: in [0, 1).
      step: number of updates before this one.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(average: Tree, values: Tree, decay: float, step: ArrayLike) -> Tree:
    """Returns decay * average + (1 - decay) * values, with the decay warmed up.

    Example:

        from nfnets import optim
        average = params = {"w": jnp.zeros(3)}
        for step in range(10):
            params = {"w": params["w"] + 1.0}
            average = optim.update_ema(average, params, 0.99, step)

    Args:
      average: tree of arrays.
      values: the newest values, a tree like `average`.
      decay: in [0, 1).
      step: number of updates before this one.

    Returns:
      A tree like `average`, of its dtypes. Integers (counters) are those of `values`.
    """
    rate = 1.0 - warmed_up_decay(decay, step)

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + (rate * (new - old)).astype(old.dtype)

    return jax.tree.map(blend, average, values)
