"""Two-dimensional convolution in the form that XLA's CPU backend runs fastest.

Matrix products for 1x1 kernels, a loop of dense convolutions for groups, and gradients
that stay fast inside of loops. `nfnets.models.layers.conv2d` computes the same with XLA's
own operation, up to rounding.

Axis letters: N examples, H height, W width, C channels, O output channels.
"""

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp

from nfnets.models.spec import Padding

# Groups with fewer channels are convolved several at a time.
_MIN_CHANNELS = 64


def conv2d(
    inputs: jax.Array,
    weight: jax.Array,
    stride: int,
    groups: int,
    padding: Padding = "same",
) -> jax.Array:
    """Two-dimensional convolution.

    XLA's CPU backend runs grouped convolutions, and above all their gradients, many times
    slower than dense ones: dense ones reduced NFNet-F0's training step from 14.5 s to
    4.0 s, and the gradient of an NF-RegNet's 43 groups of 8 channels from 3 s to 17 ms.
    Narrow groups share a convolution whose weight is zero between groups. Without that,
    compiling 92 groups took 12 s instead of 2.6 s, more than running them saves.

    Args:
      inputs: [N, H, W, C].
      weight: [kernel H, kernel W, C / groups, O], of the dtype of `inputs`.
      stride: in both directions.
      groups: number of channel groups, each convolved on its own.
      padding: see `Padding`.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), O], of the dtype of `inputs`.
    """
    if groups == 1 and weight.shape[:2] == (1, 1):
        # Twice as fast as a convolution, and three times in the gradient.
        return jnp.dot(inputs[:, ::stride, ::stride], weight[0, 0])
    channels, units = weight.shape[2], weight.shape[3] // groups
    together = max(1, min(groups, _MIN_CHANNELS // channels))
    if together == 1:
        return _conv2d_by_groups(inputs, weight, stride, groups, padding)

    def convolve(first: int, last: int, together: int) -> jax.Array:
        return _conv2d_by_groups(
            inputs[..., first * channels : last * channels],
            _join_groups(weight[..., first * units : last * units], last - first, together),
            stride,
            (last - first) // together,
            padding,
        )

    rest = groups % together
    parts = [convolve(0, groups - rest, together)]
    if rest:
        parts.append(convolve(groups - rest, groups, rest))
    return jnp.concatenate(parts, axis=-1)


def _join_groups(weight: jax.Array, groups: int, together: int) -> jax.Array:
    """Merges each `together` groups of a weight into one, with zeros between them.

    Args:
      weight: [kernel H, kernel W, C / groups, O].
      groups: number of groups, a multiple of `together`.
      together: number of groups that become one.

    Returns:
      [kernel H, kernel W, together x C / groups, O].
    """
    height, width, channels, units = weight.shape
    split = weight.reshape(height, width, channels, groups // together, together, -1)
    same = jnp.eye(together, dtype=weight.dtype)
    joined = jnp.einsum("hwcgto,st->hwscgto", split, same)
    return joined.reshape(height, width, together * channels, units)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d_by_groups(
    inputs: jax.Array, weight: jax.Array, stride: int, groups: int, padding: Padding
) -> jax.Array:
    """Computes `conv2d` as one dense convolution per group.

    The gradients are written out because those that JAX derives need a layout for which
    XLA's CPU backend has fast code only in the outermost computation of a program. In the
    body of a loop, as in gradient accumulation, they ran 5 to 100 times slower. The groups
    also share the transpositions this way.
    """
    amounts = [
        _padding(size, kernel, stride, padding)
        for size, kernel in zip(inputs.shape[1:3], weight.shape[:2], strict=True)
    ]

    def convolve(inputs: jax.Array, weight: jax.Array) -> tuple[jax.Array]:
        return (_convolve(inputs, weight, amounts, stride=stride),)

    (outputs,) = _for_each_group(groups, convolve, (inputs, weight), (3, 3), (3,))
    return outputs


def _conv2d_by_groups_forward(
    inputs: jax.Array, weight: jax.Array, stride: int, groups: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv2d_by_groups(inputs, weight, stride, groups, padding), (inputs, weight)


def _conv2d_by_groups_backward(
    stride: int,
    groups: int,
    padding: Padding,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    inputs, weight = residuals
    inputs_padding, weight_padding = [], []
    for size, kernel in zip(inputs.shape[1:3], weight.shape[:2], strict=True):
        before, after = _padding(size, kernel, stride, padding)
        weight_padding.append((before, after))
        inputs_padding.append((kernel - 1 - before, kernel - 1 - after))
    # In the gradient of the weight, channels and examples change places.
    inputs_chwn = jnp.transpose(inputs, (3, 1, 2, 0))
    gradient_hwno = jnp.transpose(gradient, (1, 2, 0, 3))
    flipped = weight[::-1, ::-1]

    def convolve(
        gradient: jax.Array,
        flipped: jax.Array,
        inputs_chwn: jax.Array,
        gradient_hwno: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        flipped = jnp.swapaxes(flipped, 2, 3)
        return (
            _convolve(gradient, flipped, inputs_padding, lhs_dilation=stride),
            _convolve(inputs_chwn, gradient_hwno, weight_padding, rhs_dilation=stride),
        )

    inputs_gradient, weight_gradient = _for_each_group(
        groups,
        convolve,
        (gradient, flipped, inputs_chwn, gradient_hwno),
        (3, 3, 0, 3),
        (3, 3),
    )
    return inputs_gradient, jnp.transpose(weight_gradient, (1, 2, 0, 3))


_conv2d_by_groups.defvjp(_conv2d_by_groups_forward, _conv2d_by_groups_backward)


def _for_each_group(
    groups: int,
    function: Callable[..., tuple[jax.Array, ...]],
    operands: Sequence[jax.Array],
    in_axes: Sequence[int],
    out_axes: Sequence[int],
) -> tuple[jax.Array, ...]:
    """Applies a function to each group's slices and concatenates the results.

    It runs in a loop, so that the function is compiled once.

    Args:
      groups: number of groups.
      function: function of the operands' slices.
      operands: arrays.
      in_axes: for each operand, the axis that is divided into groups.
      out_axes: for each result, the axis along which the groups are concatenated.
    """
    if groups == 1:
        return function(*operands)

    def run(index: jax.Array) -> tuple[jax.Array, ...]:
        slices = []
        for operand, axis in zip(operands, in_axes, strict=True):
            size = operand.shape[axis] // groups
            slices.append(jax.lax.dynamic_slice_in_dim(operand, index * size, size, axis))
        return function(*slices)

    def body(index: jax.Array, results: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, new, index * new.shape[axis], axis)
            for whole, new, axis in zip(results, run(index), out_axes, strict=True)
        )

    results = []
    for part, axis in zip(jax.eval_shape(run, 0), out_axes, strict=True):
        shape = list(part.shape)
        shape[axis] *= groups
        results.append(jnp.zeros(shape, part.dtype))
    return jax.lax.fori_loop(0, groups, body, tuple(results))


def _padding(size: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """Returns the padding before and after an axis.

    The padding after is negative where the last pixels are in no window: the gradients
    need an axis that the windows fill.
    """
    span = (-(-size // stride) - 1) * stride + kernel
    before = kernel // 2 if padding == "symmetric" else max(span - size, 0) // 2
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
    """Convolves [N, H, W, C] with [kernel H, kernel W, C, O], always by Eigen.

    XLA's CPU backend prefers YNNPACK, which without AVX-512 computes the gradients of
    weights at a third of Eigen's speed and everything else no faster. YNNPACK rejects a
    dilated left side. Dilating rows by 2 in both operands and in the stride leaves the sums
    unchanged.
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
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
