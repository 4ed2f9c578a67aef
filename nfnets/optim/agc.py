"""Adaptive gradient clipping as an optax gradient transformation."""

from collections.abc import Callable, Sequence
import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

# Which axes of a parameter belong to one unit; None: the whole array is one unit.
Axes = int | Sequence[int] | None
AxisRule = Callable[[jax.Array], Axes]

# Lower bound of the gradient norm where it divides, as in the published code and optax.
_DIVISOR_FLOOR = 1e-6

# Arrays up to this size (elements) are worth a copy to share one operation.
_SMALL_ARRAY = 2**14


class AdaptiveGradClipState(NamedTuple):
    """What clipping did at the last update.

    Attributes:
      clipped_fraction: float32 scalar in [0, 1], share of all units that were clipped.
      max_ratio: float32 scalar, the largest |gradient| / max(|weight|, eps) of a unit;
        clipping starts above `clipping`.
      layer_clipped_fraction: the same per array, a tree like the parameters (None where
        nothing is clipped), or () unless `per_layer` was asked for.
      layer_max_ratio: likewise.
    """

    clipped_fraction: chex.Array
    max_ratio: chex.Array
    layer_clipped_fraction: Any = ()
    layer_max_ratio: Any = ()


class _Bundle(NamedTuple):
    """Arrays of one kind that are clipped in one go: B small ones, or a large one.

    Attributes:
      positions: of its arrays among all that are clipped, [B].
      gradient: [B, ...], or [...] of a large array.
      weight: likewise.
      axes: those that form a unit.
    """

    positions: Sequence[int]
    gradient: jax.Array
    weight: jax.Array
    axes: tuple[int, ...]


def default_axes(array: jax.Array) -> Axes:
    """The published rule: which axes form a unit's fan-in.

    Scalars, vectors and arrays of which at most one dimension is larger than 1: the whole
    array. Linear weights [in, out] (rank 2 and 3): axis 0. Convolution weights HWIO and
    DHWIO (rank 4 and 5): all but the last.

    Raises:
      ValueError: rank above 5.
    """
    if sum(size != 1 for size in array.shape) <= 1:
        return None
    if array.ndim in (2, 3):
        return 0
    if array.ndim in (4, 5):
        return tuple(range(array.ndim - 1))
    raise ValueError(
        f"adaptive_grad_clip has no rule for an array of shape {list(array.shape)}; "
        "say with `axis` which axes form a unit"
    )


def unitwise_norm(array: jax.Array, axis: Axes = None) -> jax.Array:
    """L2 norm of each unit.

    Half-precision values are scaled by their largest magnitude and summed in float32, so
    that neither squares nor sums leave the range of numbers.

    Args:
      array: real or complex, any shape.
      axis: the axes that form a unit; None: all.

    Returns:
      Real, at least float32; the shape of `array` with 1 in place of the unit's axes.
    """
    axis = tuple(axis) if isinstance(axis, Sequence) else axis
    is_half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    if not is_half:
        magnitude = jnp.abs(array) if jnp.iscomplexobj(array) else array
        return jnp.sqrt(jnp.sum(jnp.square(magnitude), axis=axis, keepdims=True))
    magnitude = jnp.abs(array.astype(jnp.float32))
    largest = jnp.max(magnitude, axis=axis, keepdims=True, initial=0.0)
    scale = jnp.where(largest > 0, largest, 1.0)
    squares = jnp.square(magnitude / scale)
    return scale * jnp.sqrt(jnp.sum(squares, axis=axis, keepdims=True))


def adaptive_grad_clip(
    clipping: chex.Numeric,
    eps: chex.Numeric = 1e-3,
    *,
    axis: Axes | AxisRule = default_axes,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    per_layer: bool = False,
) -> optax.GradientTransformation:
    """Scales down each unit's gradient whose norm is large beside its weight's norm.

    For a unit's weight W and gradient G, with w = max(|W|, eps):

        G <- G * clipping * w / |G|    where |G| >= clipping * w

    "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
    section 4, equation 3. Equal to `optax.adaptive_grad_clip` where that is defined, with
    a choice of axes and arrays and a state that says what was clipped.

    Example, with a classifier that is not to be clipped:

        optimizer = optax.chain(
            nfnets.adaptive_grad_clip(
                0.01, mask=lambda params: {name: name != "head" for name in params}
            ),
            optax.sgd(0.1, momentum=0.9, nesterov=True),
        )
        updates, state = optimizer.update(gradients, state, params)
        state[0].clipped_fraction  # share of units clipped, float32 scalar

    Args:
      clipping: largest ratio of gradient norm to weight norm, > 0; the paper's lambda,
        0.01 at batch size 4096 (more at smaller batches).
      eps: lower bound of the weight norm, > 0, so that units at zero can grow.
      axis: the axes that form a unit: a function of an array, by default `default_axes`
        for JAX's layouts, or axes for every array of rank 2 or more, as (1, 2, 3) for
        OIHW; smaller arrays are then one unit each.
      mask: a tree of bools like the parameters or a prefix of it, or a function from
        parameters to one; False leaves an array alone. None: everything is clipped.
      per_layer: keep the figures of each array in the state as well.

    Returns:
      An `optax.GradientTransformation` whose update needs `params`. Gradients keep their
      dtype; leaves that are None stay None.

    Raises:
      ValueError: at once if `clipping` or `eps` is not positive; in `update` when `params`
        is missing, or an array has more than five dimensions under the default rule.
    """
    for name, value in (("clipping", clipping), ("eps", eps)):
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"adaptive_grad_clip: {name} must be above 0, not {value}")
    axis_rule = axis if callable(axis) else _fixed_axes(axis)

    def init(params: optax.Params) -> AdaptiveGradClipState:
        # One buffer per scalar: a shared one could not be donated twice.
        clip, treedef = _leaves_to_clip(params, params, mask)

        def per_layer_zeros() -> Any:
            if not per_layer:
                return ()
            return treedef.unflatten([jnp.zeros(()) if c else None for _, c in clip])

        return AdaptiveGradClipState(
            jnp.zeros(()), jnp.zeros(()), per_layer_zeros(), per_layer_zeros()
        )

    def update(
        updates: optax.Updates,
        state: AdaptiveGradClipState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, AdaptiveGradClipState]:
        del state
        if params is None:
            raise ValueError(
                "adaptive_grad_clip compares gradients with weights: call "
                "update(gradients, state, params) with the parameters"
            )
        clip, treedef = _leaves_to_clip(updates, params, mask)
        gradients = treedef.flatten_up_to(updates)
        bundles = _bundle(
            [
                (gradient, param, axis_rule(param))
                for gradient, (param, c) in zip(gradients, clip, strict=True)
                if c
            ]
        )
        scaled, state = _clip_bundles(bundles, clipping, eps)
        places = itertools.count()
        places = [next(places) if c else None for _, c in clip]
        outputs = treedef.unflatten(
            [
                g if at is None else scaled[at]
                for g, at in zip(gradients, places, strict=True)
            ]
        )
        if not per_layer:
            state = state._replace(layer_clipped_fraction=(), layer_max_ratio=())
            return outputs, state

        def tree_of(figures: Sequence[jax.Array]) -> Any:
            return treedef.unflatten([at if at is None else figures[at] for at in places])

        return outputs, state._replace(
            layer_clipped_fraction=tree_of(state.layer_clipped_fraction),
            layer_max_ratio=tree_of(state.layer_max_ratio),
        )

    return optax.GradientTransformation(init, update)


def _fixed_axes(axis: Axes) -> AxisRule:
    return lambda array: axis if array.ndim >= 2 else None


def _leaves_to_clip(
    updates: optax.Updates, params: optax.Params, mask: Any
) -> tuple[list[tuple[Any, bool]], Any]:
    """Each parameter with whether it is clipped, in the order of the updates' leaves."""
    treedef = jax.tree.structure(updates, is_leaf=lambda x: x is None)
    gradients = treedef.flatten_up_to(updates)
    leaves = treedef.flatten_up_to(params)
    wanted = mask(params) if callable(mask) else mask
    if wanted is None:
        flags = [True] * len(leaves)
    else:
        spread = jax.tree.map(
            lambda flag, part: jax.tree.map(
                lambda _: bool(flag), part, is_leaf=lambda x: x is None
            ),
            wanted,
            updates,
        )
        flags = jax.tree.leaves(spread)
    clip = [
        (param, flag and gradient is not None and param is not None)
        for gradient, param, flag in zip(gradients, leaves, flags, strict=True)
    ]
    return clip, treedef


def _bundle(arrays: Sequence[tuple[jax.Array, jax.Array, Axes]]) -> list[_Bundle]:
    """Bundles (gradient, weight, axis of a unit) by what they have in common."""
    alike: dict[Any, list[int]] = {}
    axes_of = []
    for position, (gradient, weight, axis) in enumerate(arrays):
        axes = range(weight.ndim) if axis is None else np.atleast_1d(axis)
        axes_of.append(tuple(int(a) % max(weight.ndim, 1) for a in axes))
        kind = (gradient.shape, gradient.dtype, weight.dtype, axes_of[position])
        key = kind if weight.size <= _SMALL_ARRAY else position
        alike.setdefault(key, []).append(position)
    bundles = []
    for positions in alike.values():
        gradient, weight, _ = arrays[positions[0]]
        axes = axes_of[positions[0]]
        if len(positions) > 1:
            gradient = jnp.stack([arrays[position][0] for position in positions])
            weight = jnp.stack([arrays[position][1] for position in positions])
            axes = tuple(a + 1 for a in axes)
        bundles.append(_Bundle(positions, gradient, weight, axes))
    return bundles


def _clip_bundles(
    bundles: Sequence[_Bundle], clipping: chex.Numeric, eps: chex.Numeric
) -> tuple[dict[int, jax.Array], AdaptiveGradClipState]:
    """Clips every array; results and the state's figures of layers go by position."""
    scaled, layer_fractions, layer_ratios = {}, {}, {}
    gradient_norms, weight_norms, max_norms = [], [], []
    for positions, gradient, weight, axes in bundles:
        gradient_norm = unitwise_norm(gradient, axes)
        weight_norm = jnp.maximum(unitwise_norm(weight, axes), eps)
        max_norm = clipping * weight_norm
        # What is not clipped is multiplied by 1, which keeps its bits. A quotient of
        # choices instead of a choice of quotients, because XLA's CPU backend computes what
        # ends in a choice anew in each operation that takes it.
        keeps = gradient_norm < max_norm
        factor = jnp.where(keeps, 1, max_norm) / jnp.where(
            keeps, 1, jnp.maximum(gradient_norm, _DIVISOR_FLOOR)
        )
        results = (gradient * factor).astype(gradient.dtype)

        by_array = (len(positions), -1)
        gradient_norms.append(gradient_norm.reshape(by_array))
        weight_norms.append(weight_norm.reshape(by_array))
        max_norms.append(max_norm.reshape(by_array))
        fractions = _fraction(gradient_norms[-1] > max_norms[-1])
        ratios = _largest(gradient_norms[-1] / weight_norms[-1])
        for index, position in enumerate(positions):
            scaled[position] = results if len(positions) == 1 else results[index]
            layer_fractions[position] = fractions[index]
            layer_ratios[position] = ratios[index]
    # All units at once: array by array, counting took longer to compile than clipping.
    gradient_norm, weight_norm, max_norm = map(
        _concatenate, (gradient_norms, weight_norms, max_norms)
    )
    return scaled, AdaptiveGradClipState(
        _fraction(gradient_norm > max_norm),
        _largest(gradient_norm / weight_norm),
        layer_fractions,
        layer_ratios,
    )


def _concatenate(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.ones(0), *(array.reshape(-1) for array in arrays)])


def _fraction(flags: jax.Array) -> jax.Array:
    """Share of the last axis that is set."""
    return jnp.sum(flags, axis=-1).astype(jnp.float32) / max(flags.shape[-1], 1)


def _largest(ratios: jax.Array) -> jax.Array:
    """Maximum of the last axis."""
    return jnp.max(ratios, axis=-1, initial=0.0).astype(jnp.float32)
