"""Layers of normalizer-free networks.

Axis letters: N examples, H height, W width, C channels, O output channels. Images and
feature maps are [N, H, W, C], convolution weights [kernel H, kernel W, C / groups, O].
"""

import math

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.cpu import convolution as cpu_convolution
from nfnets.errors import UserError
from nfnets.models import initializers
from nfnets.models.spec import Padding, WeightEpsRule
from nfnets.models.standardization import standardize_weight
from nfnets.platform import target_platform


def conv2d(
    inputs: jax.Array,
    weight: jax.Array,
    stride: int = 1,
    groups: int = 1,
    padding: Padding = "same",
) -> jax.Array:
    """Two-dimensional convolution.

    Args:
      inputs: [N, H, W, C].
      weight: [kernel H, kernel W, C / groups, O], of the dtype of `inputs`.
      stride: in both directions.
      groups: number of channel groups, each convolved on its own.
      padding: see `Padding`; symmetric padding is for odd kernels.

    Returns:
      [N, ceil(H / stride), ceil(W / stride), O], of the dtype of `inputs`.
    """
    if target_platform() == "cpu":
        return cpu_convolution.conv2d(inputs, weight, stride, groups, padding)
    halves = [(size // 2, size // 2) for size in weight.shape[:2]]
    return jax.lax.conv_general_dilated(
        inputs,
        weight,
        window_strides=(stride, stride),
        padding="SAME" if padding == "same" else halves,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def average_pool_2x2(inputs: jax.Array) -> jax.Array:
    """Halves [N, H, W, C]; windows at an odd edge average over existing pixels only."""
    # No padding of axes of length 1, for which XLA's CPU backend (JAX 0.10) returns wrong
    # sums in large batches.
    window = (1, min(2, inputs.shape[1]), min(2, inputs.shape[2]), 1)
    return hk.avg_pool(inputs, window, strides=window, padding="SAME")


def max_pool_3x3(inputs: jax.Array, padding: Padding = "same") -> jax.Array:
    """Halves [N, H, W, C] with overlapping 3x3 windows; see `Padding`."""
    return jax.lax.reduce_window(
        inputs,
        -jnp.inf,
        jax.lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        "SAME" if padding == "same" else [(0, 0), (1, 1), (1, 1), (0, 0)],
    )


class Conv2D(hk.Module):
    """Convolution, by default without bias.

    Parameters, float32 for inputs of any dtype (unlike those of `hk.Conv2D`): `w`
    [kernel, kernel, C / groups, O] and optionally `b` [O].
    """

    def __init__(
        self,
        output_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "same",
        with_bias: bool = False,
        w_init: hk.initializers.Initializer = initializers.LINEAR,
        name: str,
    ) -> None:
        """Creates the layer.

        Args:
          output_channels: number of output channels O.
          kernel_size: side of the square kernel, pixels.
          stride: in both directions.
          groups: number of channel groups, each convolved on its own.
          padding: see `Padding`.
          with_bias: add a bias, initially 0.
          w_init: initializer of `w`.
          name: Haiku name.
        """
        super().__init__(name=name)
        self.output_channels = output_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups
        self.padding = padding
        self.with_bias = with_bias
        self.w_init = w_init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves [N, H, W, C] in the dtype of `inputs`."""
        shape = self.weight_shape(inputs.shape[-1])
        weight = hk.get_parameter("w", shape, init=self.w_init)
        outputs = self.convolve(inputs, weight.astype(inputs.dtype))
        if not self.with_bias:
            return outputs
        bias = hk.get_parameter("b", (self.output_channels,), init=jnp.zeros)
        return outputs + bias.astype(outputs.dtype)

    def convolve(self, inputs: jax.Array, weight: jax.Array) -> jax.Array:
        """Convolves [N, H, W, C] with [kernel, kernel, C / groups, O], without bias."""
        return conv2d(inputs, weight, self.stride, self.groups, self.padding)

    def weight_shape(self, channels: int) -> tuple[int, int, int, int]:
        """Returns the shape of `w` for a number of input channels.

        Raises:
          UserError: the channels do not divide into the groups.
        """
        if channels % self.groups:
            raise UserError(
                f"{self.module_name}: {channels} input channels do not divide into "
                f"{self.groups} groups"
            )
        size = self.kernel_size
        return (size, size, channels // self.groups, self.output_channels)


class WSConv2D(Conv2D):
    """Convolution with scaled weight standardization, gain and bias.

    Parameters, float32: `w` [kernel, kernel, C / groups, O], `gain` [O] and `bias` [O].
    """

    def __init__(
        self,
        output_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "same",
        eps: float,
        eps_rule: WeightEpsRule,
        scale: float = 1.0,
        zero_gain: bool = False,
        name: str,
    ) -> None:
        """Creates the layer; see `Conv2D` and `standardize_weight`.

        `scale` multiplies the standardized weight; with `zero_gain` the gain is initially 0
        instead of 1.
        """
        super().__init__(
            output_channels,
            kernel_size,
            stride=stride,
            groups=groups,
            padding=padding,
            w_init=initializers.CONV,
            name=name,
        )
        self.eps = eps
        self.eps_rule = eps_rule
        self.scale = scale
        self.gain_init = jnp.zeros if zero_gain else jnp.ones

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves [N, H, W, C] in the dtype of `inputs`."""
        shape = self.weight_shape(inputs.shape[-1])
        units = (self.output_channels,)
        weight = hk.get_parameter("w", shape, init=self.w_init)
        gain = hk.get_parameter("gain", units, init=self.gain_init) * self.scale
        bias = hk.get_parameter("bias", units, init=jnp.zeros)
        weight = standardize_weight(weight, gain, self.eps, self.eps_rule)
        weight = weight.astype(inputs.dtype)
        outputs = self.convolve(inputs, weight)
        return outputs + bias.astype(outputs.dtype)


class Linear(hk.Module):
    """Linear layer with bias.

    Parameters, float32 for inputs of any dtype (unlike those of `hk.Linear`): `w` [C, O]
    and `b` [O].
    """

    def __init__(
        self,
        output_channels: int,
        w_init: hk.initializers.Initializer,
        name: str,
    ) -> None:
        """Creates the layer.

        Args:
          output_channels: number of outputs O.
          w_init: initializer of `w`; `b` is initially 0.
          name: Haiku name.
        """
        super().__init__(name=name)
        self.output_channels = output_channels
        self.w_init = w_init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [N, C] to [N, O] in the dtype of `inputs`."""
        shape = (inputs.shape[-1], self.output_channels)
        weight = hk.get_parameter("w", shape, init=self.w_init)
        bias = hk.get_parameter("b", shape[1:], init=jnp.zeros)
        return inputs @ weight.astype(inputs.dtype) + bias.astype(inputs.dtype)


class SqueezeExcite(hk.Module):
    """Gates per channel, computed from the spatial means of all channels.

    Hu, Shen, Sun: "Squeeze-and-Excitation Networks" (2018).
    """

    def __init__(self, channels: int, hidden: int, name: str = "squeeze_excite") -> None:
        """Creates the two linear layers.

        Args:
          channels: number of channels of input and gates.
          hidden: number of units between the two layers.
          name: Haiku name.
        """
        super().__init__(name=name)
        self._reduce = Linear(hidden, initializers.LINEAR, name="linear")
        self._expand = Linear(channels, initializers.LINEAR, name="linear_1")

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the gates [N, 1, 1, C], in (0, 1), for [N, H, W, C]."""
        means = jnp.mean(inputs, axis=(1, 2))
        gates = jax.nn.sigmoid(self._expand(jax.nn.relu(self._reduce(means))))
        return gates[:, None, None, :]


class ChannelAttention(hk.Module):
    """Gates per channel, computed from the spatial means of neighboring channels.

    Efficient channel attention (ECA), without bias: Wang et al.: "ECA-Net: Efficient
    Channel Attention for Deep Convolutional Neural Networks" (2020). Parameter, float32:
    `w` [kernel, 1, 1].
    """

    def __init__(self, gamma: float, name: str = "channel_attention") -> None:
        """Creates the layer.

        Args:
          gamma: the kernel covers (log2(C) + 1) / gamma channels, rounded down and then up
            to an odd number, at least 3 (equation 12 with b = 1).
          name: Haiku name.
        """
        super().__init__(name=name)
        self._gamma = gamma

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the gates [N, 1, 1, C], in (0, 1), for [N, H, W, C]."""
        channels = inputs.shape[-1]
        size = max(3, int((math.log2(channels) + 1) / self._gamma) // 2 * 2 + 1)
        weight = hk.get_parameter("w", (size, 1, 1), init=initializers.ECA)
        weight = weight.astype(inputs.dtype)
        means = jnp.mean(inputs, axis=(1, 2))
        padded = jnp.pad(means, ((0, 0), (size // 2, size // 2)))
        hidden = sum(weight[k] * padded[:, k : k + channels] for k in range(size))
        return jax.nn.sigmoid(hidden)[:, None, None, :]


def example_keys(key: jax.Array, example_index: jax.Array) -> jax.Array:
    """Returns random keys [N], each a function of `key` and the example's global index."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_index)


def dropout(inputs: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

    Args:
      inputs: [N, C].
      rate: in [0, 1).
      keys: random keys [N], one per example.

    Returns:
      [N, C].
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, inputs.shape[1:]))(keys)
    return jnp.where(keep, inputs / (1 - rate), jnp.zeros_like(inputs))
