"""Layers of normalizer-free networks.

Axis letters: N examples, H height, W width, C channels, O output channels. Images and
feature maps are [N, H, W, C], convolution weights [kernel H, kernel W, C / groups, O].
"""

import functools

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.models import initializers
from nfnets.models.convolution import conv2d
from nfnets.models.spec import WeightEpsRule

# Of `standardize_weight`, as in the published code.
WEIGHT_EPS = 1e-4


@functools.partial(jax.jit, static_argnames=("eps", "eps_rule"))  # traced once a shape
def standardize_weight(
    weight: jax.Array,
    gain: jax.Array,
    eps: float = WEIGHT_EPS,
    eps_rule: WeightEpsRule = "floor",
) -> jax.Array:
    """Scaled weight standardisation.

    Each output unit's weights get mean zero and variance 1 / fan-in, then its gain:
    "Characterizing signal propagation ..." (2021), equation 3. Computed in float32
    whatever the compute dtype, because the variance of a few thousand weights has too few
    digits in bfloat16.

    Args:
      weight: float [..., C, O]; all axes but the last are one unit's fan-in.
      gain: float [O].
      eps: with the rule `floor` a lower bound of variance x fan-in, with `added` a term
        added to the variance.
      eps_rule: see `eps`.

    Returns:
      float32, the shape of `weight`.
    """
    # The gradient computes it again: it would keep two more arrays of the weight's size.
    standardize = functools.partial(_standardize, eps=eps, eps_rule=eps_rule)
    return jax.checkpoint(standardize)(weight, gain)


def _standardize(
    weight: jax.Array, gain: jax.Array, eps: float, eps_rule: WeightEpsRule
) -> jax.Array:
    """See `standardize_weight`."""
    # Two axes and one scale per unit: fewer passes over the weight, and XLA's CPU backend
    # takes ten times as long for the sums of the gradient over axes of length 1.
    units = weight.astype(jnp.float32).reshape(-1, weight.shape[-1])
    fan_in = units.shape[0]
    mean = jnp.mean(units, axis=0)
    variance = jnp.mean(jnp.square(units - mean), axis=0)
    if eps_rule == "added":
        bounded = (variance + eps) * fan_in
    else:
        bounded = jnp.maximum(variance * fan_in, eps)
    scale = jax.lax.rsqrt(bounded) * gain
    return (units * scale - mean * scale).reshape(weight.shape)


def average_pool_2x2(inputs: jax.Array) -> jax.Array:
    """Halves [N, H, W, C]; at an odd edge the average is over the pixels that exist."""
    return hk.avg_pool(
        inputs, window_shape=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="SAME"
    )


def max_pool_3x3(inputs: jax.Array) -> jax.Array:
    """Halves [N, H, W, C] by the maxima of overlapping 3x3 windows."""
    return hk.max_pool(
        inputs, window_shape=(1, 3, 3, 1), strides=(1, 2, 2, 1), padding="SAME"
    )


class Conv2D(hk.Module):
    """Convolution, by default without a bias.

    Parameters: `w` [kernel, kernel, C / groups, O] and, where wanted, `b` [O], float32.
    (`hk.Conv2D` would create parameters in the input's dtype.)
    """

    def __init__(
        self,
        output_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        with_bias: bool = False,
        w_init: hk.initializers.Initializer = initializers.LINEAR,
        name: str,
    ) -> None:
        """See `conv2d`; `kernel_size` is the side of the square window, in pixels."""
        super().__init__(name=name)
        self.output_channels = output_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = groups
        self.with_bias = with_bias
        self.w_init = w_init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves [N, H, W, C], in the dtype of `inputs`."""
        shape = self.weight_shape(inputs.shape[-1])
        weight = hk.get_parameter("w", shape, init=self.w_init)
        outputs = conv2d(inputs, weight.astype(inputs.dtype), self.stride, self.groups)
        if not self.with_bias:
            return outputs
        bias = hk.get_parameter("b", (self.output_channels,), init=jnp.zeros)
        return outputs + bias.astype(outputs.dtype)

    def weight_shape(self, channels: int) -> tuple[int, int, int, int]:
        """Returns the weight's shape for C input channels.

        Raises:
          ValueError: they do not divide into the groups.
        """
        if channels % self.groups:
            raise ValueError(
                f"{self.module_name}: {channels} input channels do not divide into "
                f"{self.groups} groups"
            )
        size = self.kernel_size
        return (size, size, channels // self.groups, self.output_channels)


class WSConv2D(Conv2D):
    """Convolution with scaled weight standardisation, a gain and a bias per output unit.

    Parameters: `w` [kernel, kernel, C / groups, O], `gain` [O], `bias` [O], float32.
    """

    def __init__(
        self,
        output_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        eps: float = WEIGHT_EPS,
        eps_rule: WeightEpsRule = "floor",
        name: str,
    ) -> None:
        """See `Conv2D` and `standardize_weight`."""
        super().__init__(
            output_channels,
            kernel_size,
            stride=stride,
            groups=groups,
            w_init=initializers.CONV,
            name=name,
        )
        self.eps = eps
        self.eps_rule = eps_rule

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves [N, H, W, C], in the dtype of `inputs`."""
        shape = self.weight_shape(inputs.shape[-1])
        units = (self.output_channels,)
        weight = hk.get_parameter("w", shape, init=self.w_init)
        gain = hk.get_parameter("gain", units, init=jnp.ones)
        bias = hk.get_parameter("bias", units, init=jnp.zeros)
        weight = standardize_weight(weight, gain, self.eps, self.eps_rule)
        weight = weight.astype(inputs.dtype)
        outputs = conv2d(inputs, weight, self.stride, self.groups)
        return outputs + bias.astype(outputs.dtype)


class Linear(hk.Module):
    """An affine map of [N, C] to [N, O], computed in the dtype of its input.

    Parameters: `w` [C, O], `b` [O], float32. (`hk.Linear` would create parameters in the
    input's dtype.)
    """

    def __init__(
        self,
        output_channels: int,
        w_init: hk.initializers.Initializer,
        name: str,
    ) -> None:
        """`w_init` gives `w`; `b` starts at 0."""
        super().__init__(name=name)
        self.output_channels = output_channels
        self.w_init = w_init

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [N, C] to [N, O]."""
        shape = (inputs.shape[-1], self.output_channels)
        weight = hk.get_parameter("w", shape, init=self.w_init)
        bias = hk.get_parameter("b", shape[1:], init=jnp.zeros)
        return inputs @ weight.astype(inputs.dtype) + bias.astype(inputs.dtype)


class SqueezeExcite(hk.Module):
    """A gate per channel, computed from the channels' spatial means.

    Hu, Shen, Sun: "Squeeze-and-Excitation Networks" (2018).
    """

    def __init__(self, channels: int, ratio: float, name: str = "squeeze_excite") -> None:
        """`channels` enter and leave; `ratio` x `channels` are in between, at least 1."""
        super().__init__(name=name)
        hidden = max(1, int(channels * ratio))
        self._reduce = Linear(hidden, initializers.LINEAR, name="linear")
        self._expand = Linear(channels, initializers.LINEAR, name="linear_1")

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the gates of [N, H, W, C]: [N, 1, 1, C], each in (0, 1)."""
        means = jnp.mean(inputs, axis=(1, 2))
        gates = jax.nn.sigmoid(self._expand(jax.nn.relu(self._reduce(means))))
        return gates[:, None, None, :]


def example_keys(key: jax.Array, example_index: jax.Array) -> jax.Array:
    """Returns one key per example, [N], a function of (key, global index) alone."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_index)


def dropout(inputs: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Zeroes a share `rate` of [N, C] and scales the rest by 1 / (1 - rate).

    Args:
      inputs: [N, C].
      rate: in [0, 1).
      keys: [N] random keys, one per example.

    Returns:
      [N, C].
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, inputs.shape[1:]))(keys)
    return jnp.where(keep, inputs / (1 - rate), jnp.zeros_like(inputs))
