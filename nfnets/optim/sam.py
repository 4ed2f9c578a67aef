"""Sharpness-aware minimisation: the gradient at the worst point nearby."""

import jax
import jax.numpy as jnp
import optax

from nfnets.optim.norm import global_norm


def sam_perturbation(gradient: optax.Updates, rho: float) -> optax.Updates:
    """Returns the step of length `rho` along the gradient: rho * g / |g|.

    Foret et al.: "Sharpness-Aware Minimization for Efficiently Improving Generalization"
    (2021), equation 2 with p = 2. The norm is over the whole tree, in float32.

    Example:

        gradient = jax.grad(loss)(params, part_of_batch)
        nearby = optax.tree.add(params, nfnets.sam_perturbation(gradient, 0.05))
        gradient = jax.grad(loss)(nearby, batch)  # goes to the optimizer
        updates, opt_state = optimizer.update(gradient, opt_state, params)

    Args:
      gradient: tree of float arrays.
      rho: length of the step, >= 0.

    Returns:
      A tree like `gradient`; zeros where the whole gradient is zero.

    Raises:
      ValueError: `rho` is negative.
    """
    if rho < 0:
        raise ValueError(f"rho must be at least 0, not {rho}")
    norm = global_norm(gradient)
    is_zero = norm == 0
    scale = jnp.where(is_zero, 0.0, rho / jnp.where(is_zero, 1.0, norm))
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)
