"""Two-dimensional convolution, in the form that each backend runs fastest.

On accelerators that is XLA's own operation. On CPU it is composed of others: matrix
products for 1x1 kernels, a loop of dense convolutions for groups, and gradients that stay
fast in loops (`benchmarks/RESULTS.md` has the measurements).

Axis letters: N examples, H height, W width, C channels, O output channels.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp

_CONV_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# On CPU, groups narrower than this are convolved several at a time (channels).
_CPU_GROUP_WIDTH = 64


def conv2d(
    inputs: jax.Array, weight: jax.Array, stride: int = 1, groups: int = 1
) -> jax.Array:
    """Two-dimensional convolution with SAME padding.

    Args:
      inputs: [N, H, W, C].
      weight: [kernel H, kernel W, C / groups, O], of the dtype of `inputs`.
      stride: in both directions.
      groups: number of channel groups, each convolved on its own.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), O], of the dtype of `inputs`.
    """
    if jax.default_backend() == "cpu":
        if groups == 1 and weight.shape[:2] == (1, 1):
            # As a convolution it reaches half the speed, its gradient a third.
            return jnp.dot(inputs[:, ::stride, ::stride], weight[0, 0])
        return _conv2d_on_cpu(inputs, weight, stride, groups)
    return jax.lax.conv_general_dilated(
        inputs,
        weight,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=_CONV_DIMENSIONS,
        feature_group_count=groups,
    )


@functools.partial(jax.jit, static_argnames=("stride", "groups"))  # traced once a shape
def _conv2d_on_cpu(
    inputs: jax.Array, weight: jax.Array, stride: int, groups: int
) -> jax.Array:
    """`conv2d` as one dense convolution per group or per few narrow groups.

    XLA's CPU backend runs grouped convolutions, and above all their gradients, many times
    slower than dense ones: F0's training step fell from 14.5 s to 4.0 s, the gradient of
    an NF-RegNet's 43 groups of 8 channels from 3 s to 17 ms. Narrow groups share one
    convolution whose weight is zero between groups, because compiling one for each takes
    longer (12 s instead of 2.6 s for 92 groups) than running them saves.
    """
    shared = max(1, min(groups, _CPU_GROUP_WIDTH // weight.shape[2]))
    if shared == 1:
        return _conv2d_by_groups(inputs, weight, stride, groups)
    parts = []
    rest = groups % shared
    for first, last in ((0, groups - rest), (groups - rest, groups)):
        if first == last:
            continue
        channels, units = weight.shape[2], weight.shape[3] // groups
        together = min(shared, last - first)
        part = _conv2d_by_groups(
            inputs[..., first * channels : last * channels],
            _join_groups(weight[..., first * units : last * units], last - first, together),
            stride,
            (last - first) // together,
        )
        parts.append(part)
    return jnp.concatenate(parts, axis=-1)


def _join_groups(weight: jax.Array, groups: int, together: int) -> jax.Array:
    """Joins every few groups of a weight to one, with zeros between them.

    Args:
      weight: [kernel H, kernel W, C / groups, O].
      groups: a multiple of `together`.
      together: how many become one.

    Returns:
      [kernel H, kernel W, C / groups x together, O].
    """
    height, width, channels, units = weight.shape
    split = weight.reshape(height, width, channels, groups // together, together, -1)
    same = jnp.eye(together, dtype=weight.dtype)
    joined = jnp.einsum("hwcgto,st->hwscgto", split, same)
    return joined.reshape(height, width, together * channels, units)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d_by_groups(
    inputs: jax.Array, weight: jax.Array, stride: int, groups: int
) -> jax.Array:
    """`conv2d` as one convolution per group, with gradients in the same layout.

    XLA's CPU backend brings convolutions into the layout that it has fast code for in a
    program's outermost computation only. In the body of a loop, as where gradients are
    accumulated, the gradients that JAX derives ran 5 to 100 times slower. Written out,
    they also share the transpositions of all groups.
    """
    padding = [
        _same_padding(size, kernel, stride)
        for size, kernel in zip(inputs.shape[1:3], weight.shape[:2], strict=True)
    ]

    def convolve(inputs: jax.Array, weight: jax.Array) -> jax.Array:
        return _convolve(inputs, weight, padding, stride=stride)

    (outputs,) = _for_each_group(
        groups, (3, 3), (3,), lambda *parts: (convolve(*parts),), inputs, weight
    )
    return outputs


def _for_each_group(
    groups: int,
    in_axes: Sequence[int],
    out_axes: Sequence[int],
    function: Callable[..., tuple[jax.Array, ...]],
    *operands: jax.Array,
) -> tuple[jax.Array, ...]:
    """Applies `function` to each group's part of the operands and joins the results.

    In a loop: what runs six times is compiled once.

    Args:
      groups: their number.
      in_axes: of each operand, the axis that consists of groups.
      out_axes: likewise of the results.
      function: from parts of the operands to parts of the results.
      *operands: arrays.
    """
    if groups == 1:
        return function(*operands)

    def part(index: jax.Array, array: jax.Array, axis: int) -> jax.Array:
        size = array.shape[axis] // groups
        return jax.lax.dynamic_slice_in_dim(array, index * size, size, axis)

    def run(index: jax.Array) -> tuple[jax.Array, ...]:
        return function(
            *(part(index, x, a) for x, a in zip(operands, in_axes, strict=True))
        )

    def body(index: jax.Array, joined: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, new, index * new.shape[axis], axis)
            for whole, new, axis in zip(joined, run(index), out_axes, strict=True)
        )

    def whole(shape: jax.ShapeDtypeStruct, axis: int) -> jax.Array:
        sizes = list(shape.shape)
        sizes[axis] *= groups
        return jnp.zeros(sizes, shape.dtype)

    shapes = jax.eval_shape(run, 0)
    start = tuple(whole(s, a) for s, a in zip(shapes, out_axes, strict=True))
    return jax.lax.fori_loop(0, groups, body, start)


def _conv2d_by_groups_forward(
    inputs: jax.Array, weight: jax.Array, stride: int, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv2d_by_groups(inputs, weight, stride, groups), (inputs, weight)


def _conv2d_by_groups_backward(
    stride: int, groups: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, weight = residuals
    of_inputs, of_weight = [], []  # padding before and after, in both directions
    for size, kernel in zip(inputs.shape[1:3], weight.shape[:2], strict=True):
        before, after = _same_padding(size, kernel, stride)
        of_weight.append((before, after))
        of_inputs.append((kernel - 1 - before, kernel - 1 - after))
    # Channels take the part of examples, and examples that of channels.
    swapped_inputs = jnp.transpose(inputs, (3, 1, 2, 0))
    swapped_gradient = jnp.transpose(gradient, (1, 2, 0, 3))
    flipped = weight[::-1, ::-1]

    def convolve(
        inputs: jax.Array, gradient: jax.Array, swapped: jax.Array, flipped: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        turned = jnp.swapaxes(flipped, 2, 3)
        return (
            _convolve(gradient, turned, of_inputs, lhs_dilation=stride),
            _convolve(inputs, swapped, of_weight, rhs_dilation=stride),
        )

    inputs_gradient, weight_gradient = _for_each_group(
        groups,
        (0, 3, 3, 3),
        (3, 3),
        convolve,
        swapped_inputs,
        gradient,
        swapped_gradient,
        flipped,
    )
    return inputs_gradient, jnp.transpose(weight_gradient, (1, 2, 0, 3))


_conv2d_by_groups.defvjp(_conv2d_by_groups_forward, _conv2d_by_groups_backward)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Returns SAME padding before and after; after is negative where pixels are left over.

    Then every padded pixel is in a window, as the gradients need it.
    """
    span = (-(-size // stride) - 1) * stride + kernel
    before = max(span - size, 0) // 2
    return before, span - size - before


def _convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    padding: Sequence[tuple[int, int]],
    *,
    stride: int = 1,
    lhs_dilation: int = 1,
    rhs_dilation: int = 1,
) -> jax.Array:
    """A dense convolution of [N, H, W, C] and [kernel H, kernel W, C, O] by Eigen.

    Where XLA's CPU backend can, it gives convolutions to YNNPACK, which without AVX-512
    computes the gradients of weights at a third of Eigen's speed and everything else no
    faster. It can't where the left side is dilated, so rows are set twice as far apart,
    on both sides and in the steps; the sums are the same.
    """
    row = 2 if lhs_dilation == 1 else 1
    (top, bottom), columns = padding
    return jax.lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides=(row * stride, stride),
        padding=((row * top, row * bottom), columns),
        lhs_dilation=(row * lhs_dilation, lhs_dilation),
        rhs_dilation=(row * rhs_dilation, rhs_dilation),
        dimension_numbers=_CONV_DIMENSIONS,
    )
