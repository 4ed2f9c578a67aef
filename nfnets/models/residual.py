"""Residual blocks of all families.

Axis letters as in `nfnets.models.layers`: N examples, H height, W width, C channels.
"""

import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.models import activations, initializers, layers
from nfnets.models.batch_norm import BatchNorm
from nfnets.models.spec import BlockSpec


class ResidualBlock(hk.Module):
    """Residual block of normalizer-free networks and, by `BlockSpec`, of other families.

    shortcut(x) + alpha * skip_gain * branch(activation(x) / expected_std), where
    `skip_gain` is initially 0 (SkipInit): "High-Performance Large-Scale Image Recognition
    Without Normalization" (2021), figure 5.

    Attributes:
      expected_std: predicted standard deviation of the block's input at initialization,
        beta in the paper.
    """

    def __init__(
        self,
        spec: BlockSpec,
        activation: activations.Activation,
        *,
        in_channels: int,
        out_channels: int,
        stride: int,
        expected_std: float,
        is_first: bool,
        num_blocks: int,
        weight_scale: float = 1.0,
    ) -> None:
        """Creates the layers.

        Args:
          spec: description shared by all blocks of the network.
          activation: element-wise activation.
          in_channels: number of input channels.
          out_channels: number of output channels.
          stride: stride of the first 3x3 convolution and of the shortcut.
          expected_std: see the class.
          is_first: whether this is the network's first block.
          num_blocks: number of blocks in the network.
          weight_scale: factor on standardized weights.
        """
        super().__init__(name=spec.module_name)
        self.expected_std = expected_std
        self._spec = spec
        self._activation = activation
        self._stride = stride

        if spec.ratio_of_input:
            ratio = 1.0 if is_first else spec.bottleneck_ratio
            width = spec.round_channels(in_channels * ratio)
        else:
            width = spec.round_channels(out_channels * spec.bottleneck_ratio)
        groups = 1
        if spec.group_width is not None:
            groups = max(1, width // spec.group_width)
            width = groups * min(spec.group_width, width)

        conv = functools.partial(make_conv, spec, weight_scale=weight_scale)
        scale = num_blocks**-0.25
        self._convs = [conv(width, 1, init_scale=scale, name="conv0")]
        for index, name in enumerate(spec.spatial_convs):
            spatial_conv = conv(
                width,
                3,
                stride=stride if index == 0 else 1,
                groups=groups,
                init_scale=scale,
                name=name,
            )
            self._convs.append(spatial_conv)
        last_conv = conv(
            out_channels, 1, init_scale=0.0, zero_gain=spec.zero_last_gain, name="conv2"
        )
        self._convs.append(last_conv)

        self._project = None
        if stride > 1 or in_channels != out_channels:
            self._project = conv(
                out_channels,
                1,
                stride=1 if spec.pool_shortcut else stride,
                name="conv_shortcut",
            )
        self._batch_norms = None
        if spec.normalization == "batch":
            self._batch_norms = [
                BatchNorm(spec.sync_batch_norm, f"bn{index}")
                for index in range(len(self._convs))
            ]
        self._gates: layers.SqueezeExcite | layers.ChannelAttention | None = None
        self._gated_conv = len(self._convs) - (2 if spec.se_before_last else 1)
        if spec.se_ratio is not None:
            gated = width if spec.se_before_last else out_channels
            hidden = spec.round_channels(gated * spec.se_ratio)
            self._gates = layers.SqueezeExcite(gated, hidden)
        elif spec.eca_gamma is not None:
            self._gates = layers.ChannelAttention(spec.eca_gamma)

    def __call__(
        self, inputs: jax.Array, keep: jax.Array | None = None, is_training: bool = False
    ) -> jax.Array:
        """Runs the block.

        Args:
          inputs: [N, H, W, input channels].
          keep: bool [N], False where stochastic depth drops the branch (remaining branches
            are not rescaled); None keeps all.
          is_training: batch normalization uses and records the statistics of the batch.

        Returns:
          [N, ceil(H / stride), ceil(W / stride), output channels].
        """
        branch_inputs = self._before_conv(0, inputs, is_training)
        branch, scale = self.branch(branch_inputs, is_training)
        scale = scale * self._spec.alpha
        if self._spec.skip_gain:
            scale = scale * hk.get_parameter("skip_gain", (), init=jnp.zeros)
        if keep is not None:
            scale = jnp.where(keep[:, None, None, None], scale, 0)
        # The feature maps are multiplied once, because the gradient stores the factors of
        # each product.
        branch = branch * scale.astype(branch.dtype)
        outputs = self.shortcut(inputs, branch_inputs, is_training) + branch
        return outputs if self._spec.preactivation else self._activation(outputs)

    @hk.transparent  # keeps the published name of `shortcut_bn`
    def shortcut(
        self, inputs: jax.Array, branch_inputs: jax.Array, is_training: bool
    ) -> jax.Array:
        """Returns the block's input, projected where its shape changes.

        Args:
          inputs: [N, H, W, C], the block's input.
          branch_inputs: [N, H, W, C], the input of the branch's first convolution.
          is_training: as in `__call__`.
        """
        if self._project is None:
            return inputs if self._spec.preactivation else branch_inputs
        hidden = branch_inputs
        if self._stride > 1 and self._spec.pool_shortcut:
            hidden = layers.average_pool_2x2(hidden)
        hidden = self._project(hidden)
        if self._spec.normalization == "batch" and not self._spec.preactivation:
            batch_norm = BatchNorm(self._spec.sync_batch_norm, "shortcut_bn")
            hidden = batch_norm(hidden, is_training)
        return hidden

    def branch(
        self, branch_inputs: jax.Array, is_training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the residual branch, without alpha and skip gain.

        Args:
          branch_inputs: [N, H, W, C], the input of the first convolution.
          is_training: as in `__call__`.

        Returns:
          (feature maps, scale), whose product has unit variance by design; the scale is
          float32, gates [N, 1, 1, C] or a scalar 1.
        """
        hidden = branch_inputs
        scale = jnp.ones(())
        for index, conv in enumerate(self._convs):
            if index > 0:
                hidden = self._before_conv(index, hidden, is_training)
            hidden = self._after_conv(index, conv(hidden), is_training)
            if self._gates is not None and index == self._gated_conv:
                gates = self._gates(hidden).astype(jnp.float32)
                scale = self._spec.se_scale * gates
                if self._spec.se_before_last:
                    hidden, scale = hidden * scale.astype(hidden.dtype), jnp.ones(())
        return hidden, scale

    def _before_conv(self, index: int, hidden: jax.Array, is_training: bool) -> jax.Array:
        """Applies what precedes the branch's convolution `index`."""
        spec = self._spec
        if spec.normalization == "fixup":
            hidden = add_scalar(hidden, f"bias{index + 1}a")
        if not spec.preactivation:
            return hidden
        if self._batch_norms is not None:
            hidden = self._batch_norms[index](hidden, is_training)
        hidden = self._activation(hidden)
        if index == 0 and spec.scale_inputs:
            hidden = hidden / jnp.asarray(self.expected_std, hidden.dtype)
        return hidden

    def _after_conv(self, index: int, hidden: jax.Array, is_training: bool) -> jax.Array:
        """Applies the operations after the branch's convolution `index`."""
        spec = self._spec
        is_last = index == len(self._convs) - 1
        if spec.normalization == "fixup":
            if is_last:
                scale = hk.get_parameter("scale", (), init=jnp.ones)
                hidden = hidden * scale.astype(hidden.dtype)
            hidden = add_scalar(hidden, f"bias{index + 1}b")
        if spec.preactivation:
            return hidden
        if self._batch_norms is not None:
            hidden = self._batch_norms[index](hidden, is_training)
        return hidden if is_last else self._activation(hidden)


def make_conv(
    spec: BlockSpec,
    channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    init_scale: float = 1.0,
    weight_scale: float = 1.0,
    zero_gain: bool = False,
    is_stem: bool = False,
    name: str,
) -> layers.Conv2D:
    """Creates a convolution of the kind that a family uses.

    Args:
      spec: description of the family's blocks.
      channels: number of output channels.
      kernel_size: side of the square kernel, pixels.
      stride: in both directions.
      groups: number of channel groups.
      init_scale: factor on FixUp's initial weights.
      weight_scale: factor on standardized weights.
      zero_gain: the gains of standardized weights are initially 0.
      is_stem: whether the convolution belongs to the stem, which does not use FixUp's
        initial weights and has its own `stem_bias`.
      name: Haiku name.
    """
    if spec.weight_standardization:
        return layers.WSConv2D(
            channels,
            kernel_size,
            stride=stride,
            groups=groups,
            padding=spec.padding,
            eps=spec.weight_eps,
            eps_rule=spec.weight_eps_rule,
            scale=weight_scale,
            zero_gain=zero_gain,
            name=name,
        )
    if spec.conv_init == "he":
        w_init = initializers.HE
    elif spec.conv_init == "fixup" and not is_stem:
        fan_out = channels * kernel_size**2
        w_init = initializers.ScaledNormal(init_scale * math.sqrt(2 / fan_out))
    else:
        w_init = initializers.LINEAR
    return layers.Conv2D(
        channels,
        kernel_size,
        stride=stride,
        groups=groups,
        padding=spec.padding,
        with_bias=spec.stem_bias if is_stem else spec.conv_bias,
        w_init=w_init,
        name=name,
    )


def add_scalar(hidden: jax.Array, name: str) -> jax.Array:
    """Adds a scalar parameter of the calling module, initially 0."""
    return hidden + hk.get_parameter(name, (), init=jnp.zeros).astype(hidden.dtype)
