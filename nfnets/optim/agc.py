"""Adaptive gradient clipping as an optax gradient transformation."""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from nfnets.outlining import inlined, map_in_parts

# Which axes of a parameter belong to one unit; None: the whole array is one unit.
Axes = int | Sequence[int] | None
AxisRule = Callable[[jax.Array], Axes]


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
        parts = map_in_parts(
            _headrooms,
            [g for g, (_, c) in zip(gradients, clip, strict=True) if c],
            [param for param, c in clip if c],
            tuple(_hashable(axis_rule(param)) for param, c in clip if c),
            clipping=clipping,
            eps=eps,
        )
        found = [headroom for part in parts for headroom in part]
        of_clipped = iter(found)
        headrooms = [next(of_clipped) if c else None for _, c in clip]
        outputs = [
            gradient if headroom is None else _scale(gradient, headroom)
            for gradient, headroom in zip(gradients, headrooms, strict=True)
        ]
        # Behind the barrier: XLA would count every array on its own, which takes longer to
        # compile than clipping.
        everywhere = jnp.concatenate([jnp.zeros(0), *(h.reshape(-1) for h in found)])
        everywhere = jax.lax.optimization_barrier(everywhere)
        state = AdaptiveGradClipState(
            _clipped_fraction(everywhere), _max_ratio(everywhere, clipping)
        )
        if per_layer:
            by_layer = treedef.unflatten(headrooms)
            state = state._replace(
                layer_clipped_fraction=jax.tree.map(_clipped_fraction, by_layer),
                layer_max_ratio=jax.tree.map(lambda h: _max_ratio(h, clipping), by_layer),
            )
        return treedef.unflatten(outputs), state

    return optax.GradientTransformation(init, update)


def _fixed_axes(axis: Axes) -> AxisRule:
    return lambda array: axis if array.ndim >= 2 else None


def _hashable(axis: Axes) -> int | tuple[int, ...] | None:
    return tuple(axis) if isinstance(axis, Sequence) else axis


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


@functools.partial(jax.jit, static_argnums=2)
def _headrooms(
    gradients: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    axes: Sequence[Axes],
    clipping: chex.Numeric,
    eps: chex.Numeric,
) -> list[jax.Array]:
    """`_headroom` of each array; one function, so that it is compiled sooner on CPU."""
    with inlined():
        return [
            _headroom(gradient, weight, axis, clipping, eps)
            for gradient, weight, axis in zip(gradients, weights, axes, strict=True)
        ]


@functools.partial(jax.jit, static_argnames="axis")  # traced once for each shape
def _headroom(
    gradient: jax.Array,
    weight: jax.Array,
    axis: Axes,
    clipping: chex.Numeric,
    eps: chex.Numeric,
) -> jax.Array:
    """clipping x max(|W|, eps) / |G| of each unit: below 1 where it is to be clipped.

    A quotient at the end, because XLA's CPU backend computes it once for each unit; what
    ends in a product or a choice it computes anew in each operation that takes it. And the
    same few operations for every array, because the backend compiles equal ones once.
    """
    max_norm = clipping * jnp.maximum(unitwise_norm(weight, axis), eps)
    tiny = jnp.finfo(max_norm.dtype).tiny  # a gradient of zeros gives inf, never 0 / 0
    return jnp.maximum(max_norm, tiny) / unitwise_norm(gradient, axis)


@jax.jit
def _scale(gradient: jax.Array, headroom: jax.Array) -> jax.Array:
    """The clipped gradient, whose units that are not clipped keep their bits."""
    return (gradient * jnp.minimum(headroom, 1)).astype(gradient.dtype)


def _clipped_fraction(headroom: jax.Array) -> jax.Array:
    """Share of the units that are clipped; 0 without any."""
    return jnp.sum(headroom < 1).astype(jnp.float32) / max(headroom.size, 1)


def _max_ratio(headroom: jax.Array, clipping: chex.Numeric) -> jax.Array:
    """The largest |G| / max(|W|, eps) of a unit; 0 without any."""
    least = jnp.min(headroom, initial=jnp.inf)
    return (clipping / least).astype(jnp.float32)
