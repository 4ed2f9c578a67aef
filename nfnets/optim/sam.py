"""Sharpness-aware minimization (SAM)."""

import jax
import jax.numpy as jnp
import optax

from nfnets.optim.ranges import check_range


def sam_perturbation(gradient: optax.Updates, rho: float) -> optax.Updates:
    """Returns SAM's ascent step, of length `rho` along the gradient: rho * g / |g|.

    "Sharpness-Aware Minimization for Efficiently Improving Generalization" (Foret et al.
    2021), equation 2 with p = 2. The norm is over the whole tree.

    Example:

        params = {"w": jnp.array([3.0, 4.0])}
        grad_fn = jax.grad(lambda params: jnp.sum(params["w"] ** 2))
        nearby = optax.tree.add(params, nfnets.sam_perturbation(grad_fn(params), 0.05))
        gradient = grad_fn(nearby)  # for the optimizer

    Args:
      gradient: tree of float arrays.
      rho: length of the step, >= 0.

    Returns:
      A tree like `gradient`; zeros where the whole gradient is zero.

    Raises:
      UserError: `rho` is negative.
    """
    check_range("[0, inf)", rho=rho)
    # The squares of half-precision gradients would overflow.
    wide = jax.tree.map(
        lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradient
    )
    norm = optax.tree.norm(wide)
    is_zero = norm == 0
    scale = jnp.where(is_zero, 0.0, rho / jnp.where(is_zero, 1.0, norm))
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)
