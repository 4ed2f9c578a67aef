"""Adaptive gradient clipping (AGC) as an optax gradient transformation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
import optax

from nfnets.errors import UserError
from nfnets.optim.ranges import check_range

# Axes of an array over which a unit's norm is taken; None: all.
Axes = int | Sequence[int] | None
AxisRule = Callable[[jax.Array], Axes]


class AdaptiveGradClipState(NamedTuple):
    """Statistics of the last update.

    Attributes:
      clipped_fraction: float32 scalar in [0, 1], share of all units that were clipped.
      max_ratio: float32 scalar, largest |gradient| / max(|weight|, eps) of all units
        before clipping.
      layer_clipped_fraction: the same for each array, as a tree like the parameters (None
        for arrays that are not clipped); () without `per_layer`.
      layer_max_ratio: likewise.
    """

    clipped_fraction: jax.Array
    max_ratio: jax.Array
    layer_clipped_fraction: Any = ()
    layer_max_ratio: Any = ()


def default_axes(array: jax.Array) -> Axes:
    """Returns the axes of a unit's fan-in for the layouts of JAX libraries.

    Scalars, vectors and arrays with at most one dimension larger than 1: all axes. Linear
    weights [in, out] (rank 2 and 3): axis 0. Convolution weights HWIO and DHWIO (rank 4
    and 5): all axes but the last.

    Raises:
      UserError: the rank is above 5.
    """
    if sum(size != 1 for size in array.shape) <= 1:
        return None
    if array.ndim in (2, 3):
        return 0
    if array.ndim in (4, 5):
        return tuple(range(array.ndim - 1))
    raise UserError(
        f"adaptive_grad_clip has no rule for an array of shape {list(array.shape)}; "
        "pass the axes that form a unit as `axis`"
    )


def unitwise_norm(array: jax.Array, axis: Axes = None) -> jax.Array:
    """Returns the L2 norm of each unit.

    Half-precision values are scaled by the largest magnitude and summed in float32, so
    that neither squares nor sums overflow.

    Args:
      array: real or complex, any shape.
      axis: axes that form a unit; None: all.

    Returns:
      Real array, at least float32, with 1 in place of the unit's axes in its shape.
    """
    axis = tuple(axis) if isinstance(axis, Sequence) else axis
    magnitude = jnp.abs(array)
    if magnitude.dtype.itemsize >= 4:
        return jnp.sqrt(jnp.sum(jnp.square(magnitude), axis=axis, keepdims=True))
    magnitude = magnitude.astype(jnp.float32)
    largest = jnp.max(magnitude, axis=axis, keepdims=True, initial=0.0)
    scale = jnp.where(largest > 0, largest, 1.0)
    return scale * unitwise_norm(magnitude / scale, axis)


def adaptive_grad_clip(
    clipping: ArrayLike,
    eps: ArrayLike = 1e-3,
    *,
    axis: Axes | AxisRule = None,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    per_layer: bool = False,
) -> optax.GradientTransformation:
    """Clips the gradient of each unit to at most `clipping` times the norm of its weight.

    For a unit's weight W and gradient G:

        G <- clipping * max(|W|, eps) / |G| * G    if |G| / max(|W|, eps) > clipping

    "High-Performance Large-Scale Image Recognition Without Normalization" (Brock et al.
    2021), section 4, equation 3. Equal to `optax.adaptive_grad_clip` where that is defined.

    Example, with a classifier that is not clipped:

        params = {"body": jnp.ones((3, 8)), "head": jnp.ones((8, 10))}
        optimizer = optax.chain(
            nfnets.adaptive_grad_clip(0.01, mask={"body": True, "head": False}),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        )
        state = optimizer.init(params)
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        state[0].clipped_fraction  # 1.0: all units of `body`

    Args:
      clipping: largest ratio of gradient norm to weight norm, > 0; the paper's lambda:
        0.01 at batch size 4096, larger for smaller batches.
      eps: lower bound of the weight norm, > 0, so that units can grow from zero.
      axis: axes that form a unit, such as (1, 2, 3) for OIHW; an array of lower rank is
        reduced over those it has, and a vector is one unit. Or a function from an array
        to its axes. None: `default_axes`.
      mask: tree of bools like the parameters or a prefix of it, or a function from the
        parameters to one; False leaves an array alone. None: all arrays are clipped.
      per_layer: record the statistics of each array in the state, too.

    Returns:
      An `optax.GradientTransformation` whose `update` needs `params`. Gradients keep their
      dtype; leaves that are not arrays of real or complex numbers pass through.

    Raises:
      UserError: at once if `clipping` or `eps` is not positive; in `update` if `params` is
        missing or an array has more than five dimensions and no `axis`.
    """
    check_range("(0, inf)", clipping=clipping, eps=eps)

    def clip_factor(is_clipped: bool, weight: Any, gradient: Any) -> jax.Array | None:
        """Returns clipping * max(|W|, eps) / |G| for each unit; clipped if below 1."""
        if not is_clipped:
            return None
        if not _is_array(gradient):
            return jnp.ones(0)  # no units
        axes = _unit_axes(jnp.asarray(weight), axis)
        max_norm = jnp.maximum(unitwise_norm(weight, axes), eps) * clipping
        return max_norm / unitwise_norm(gradient, axes)

    def max_ratio(factor: jax.Array) -> jax.Array:
        ratio = jnp.divide(clipping, jnp.min(factor, initial=jnp.inf))
        return ratio.astype(jnp.float32)

    def init(params: optax.Params) -> AdaptiveGradClipState:
        def zeros(tree: Any) -> Any:
            return jax.tree.map(lambda x: jnp.zeros((), jnp.float32) if x else None, tree)

        layers = _is_clipped(mask, params) if per_layer else ()
        # Four separate trees: arrays that share a buffer cannot be donated.
        return AdaptiveGradClipState(zeros(True), zeros(True), zeros(layers), zeros(layers))

    def update(
        updates: optax.Updates,
        state: AdaptiveGradClipState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, AdaptiveGradClipState]:
        del state
        if params is None:
            raise UserError(
                "adaptive_grad_clip compares gradients with weights; call "
                "update(gradients, state, params) with the parameters"
            )
        factors = jax.tree.map(clip_factor, _is_clipped(mask, params), params, updates)
        updates = jax.tree.map(_scale, factors, updates, is_leaf=lambda x: x is None)
        units = jnp.concatenate([jnp.ones(0), *map(jnp.ravel, jax.tree.leaves(factors))])
        state = AdaptiveGradClipState(_clipped_fraction(units), max_ratio(units))
        if per_layer:
            state = state._replace(
                layer_clipped_fraction=jax.tree.map(_clipped_fraction, factors),
                layer_max_ratio=jax.tree.map(max_ratio, factors),
            )
        return updates, state

    return optax.GradientTransformation(init, update)


def _scale(factor: jax.Array | None, gradient: Any) -> Any:
    if factor is None or not _is_array(gradient):
        return gradient
    return (gradient * jnp.minimum(factor, 1)).astype(jnp.result_type(gradient))


def _clipped_fraction(factor: jax.Array) -> jax.Array:
    return jnp.sum(factor < 1).astype(jnp.float32) / max(factor.size, 1)


def _unit_axes(array: jax.Array, axis: Axes | AxisRule) -> Axes:
    if axis is None:
        return default_axes(array)
    if callable(axis):
        return axis(array)
    if array.ndim < 2:
        return None
    axes = (axis,) if isinstance(axis, int) else axis
    return tuple(a for a in axes if -array.ndim <= a < array.ndim)


def _is_clipped(mask: Any, params: optax.Params) -> Any:
    """Returns a tree of bools like `params`; None in a mask counts as False."""
    # A module may be callable, but unlike a function it is a tree.
    if callable(mask) and jax.tree_util.all_leaves([mask]):
        mask = mask(params)

    def spread(flag: Any, part: Any) -> Any:
        return jax.tree.map(lambda leaf: _is_array(leaf) and bool(flag), part)

    mask = True if mask is None else mask
    return jax.tree.map(spread, mask, params, is_leaf=lambda x: x is None)


def _is_array(leaf: Any) -> bool:
    """Whether a leaf holds real or complex numbers."""
    return isinstance(leaf, float | complex) or (
        isinstance(leaf, jax.Array | np.ndarray | np.generic)
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
