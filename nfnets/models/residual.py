"""The residual block that all variants are made of.

Axis letters as in `nfnets.models.layers`: N examples, H height, W width, C channels.
"""

import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.models import activations, initializers, layers
from nfnets.models.batch_norm import BatchNorm
from nfnets.models.spec import BlockSpec

_CONV_INITS = {"truncated": initializers.LINEAR, "he": initializers.HE}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """What tells one block of a network from another; equal ones compute the same.

    Attributes:
      spec: of all blocks.
      activation: scaled as the family has it.
      in_channels: width of the input.
      out_channels: width of the output.
      stride: of the first 3x3 convolution and of the shortcut.
      is_first: of the network.
      num_blocks: of the network.
    """

    spec: BlockSpec
    activation: activations.Activation
    in_channels: int
    out_channels: int
    stride: int
    is_first: bool
    num_blocks: int


class ResidualBlock(hk.Module):
    """x -> shortcut(x) + alpha * skip_gain * branch(activation(x) / expected_std).

    "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
    figure 5. `skip_gain` starts at zero (SkipInit), so that the network starts as its
    shortcuts. `BlockSpec` says what other families leave out or add.

    Attributes:
      layout: see `BlockLayout`.
      expected_std: standard deviation of the block's input at initialisation that the
        design predicts; beta in the paper. A number or a scalar array.
    """

    def __init__(self, layout: BlockLayout, expected_std: jax.typing.ArrayLike) -> None:
        """Builds the block's layers; see the class."""
        spec = layout.spec
        super().__init__(name=spec.module_name)
        self.layout = layout
        self.expected_std = expected_std
        self._spec = spec
        self._activation = layout.activation
        self._stride = stride = layout.stride
        out_channels = layout.out_channels

        width, groups = _inner_width(layout)
        branch_scale = layout.num_blocks**-0.25
        self._convs = [make_conv(spec, width, 1, scale=branch_scale, name="conv0")]
        for number, name in enumerate(spec.spatial_convs):
            conv = make_conv(
                spec,
                width,
                3,
                stride=stride if number == 0 else 1,
                groups=groups,
                scale=branch_scale,
                name=name,
            )
            self._convs.append(conv)
        self._convs.append(make_conv(spec, out_channels, 1, scale=0.0, name="conv2"))

        self._project = None
        if stride > 1 or layout.in_channels != out_channels:
            self._project = make_conv(
                spec,
                out_channels,
                1,
                stride=1 if spec.pool_shortcut else stride,
                name="conv_shortcut",
            )
        self._batch_norms = None
        if spec.normalization == "batch":
            names = [f"bn{number}" for number in range(len(self._convs))]
            self._batch_norms = [BatchNorm(spec.sync_batch_norm, name) for name in names]
        self._squeeze_excite = None
        self._gated_conv = len(self._convs) - (2 if spec.se_before_last else 1)
        if spec.se_ratio is not None:
            self._squeeze_excite = layers.SqueezeExcite(
                width if spec.se_before_last else out_channels, spec.se_ratio
            )

    def __call__(
        self, inputs: jax.Array, keep: jax.Array | None = None, is_training: bool = False
    ) -> jax.Array:
        """Maps [N, H, W, in] to [N, H / stride, W / stride, out].

        Args:
          inputs: feature maps.
          keep: bool [N], False where stochastic depth drops the residual branch (which is
            not rescaled where it stays); None keeps all.
          is_training: batch normalisation uses and records the batch's statistics.
        """
        entered = self._enter(0, inputs, is_training)
        branch, scale = self.branch(entered, is_training)
        scale = scale * self._spec.alpha
        if self._spec.skip_gain:
            scale = scale * hk.get_parameter("skip_gain", (), init=jnp.zeros)
        if keep is not None:
            scale = jnp.where(keep[:, None, None, None], scale, 0)
        # One product: the gradient needs what is multiplied, and nothing in between.
        branch = branch * scale.astype(branch.dtype)
        outputs = self.shortcut(inputs, entered, is_training) + branch
        return outputs if self._spec.preactivation else self._activation(outputs)

    @hk.transparent  # keeps the published name of `shortcut_bn`
    def shortcut(
        self, inputs: jax.Array, entered: jax.Array, is_training: bool
    ) -> jax.Array:
        """The block's input, or the projection of what enters the branch.

        Args:
          inputs: of the block.
          entered: `inputs` as the branch's first convolution gets it.
          is_training: as in the call.
        """
        if self._project is None:
            return inputs if self._spec.preactivation else entered
        if self._stride > 1 and self._spec.pool_shortcut:
            entered = layers.average_pool_2x2(entered)
        projected = self._project(entered)
        if self._spec.normalization == "batch" and not self._spec.preactivation:
            batch_norm = BatchNorm(self._spec.sync_batch_norm, "shortcut_bn")
            projected = batch_norm(projected, is_training)
        return projected

    def branch(
        self, entered: jax.Array, is_training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The residual branch before alpha and its gain, by design of unit variance.

        Args:
          entered: what its first convolution gets.
          is_training: as in the call.

        Returns:
          Two factors: feature maps and float32 gates [N, 1, 1, C], or a scalar 1.
        """
        hidden = entered
        scale = jnp.ones(())
        for index, conv in enumerate(self._convs):
            if index > 0:
                hidden = self._enter(index, hidden, is_training)
            hidden = self._leave(index, conv(hidden), is_training)
            if self._squeeze_excite is not None and index == self._gated_conv:
                gates = self._squeeze_excite(hidden).astype(jnp.float32)
                scale = self._spec.se_scale * gates
                if self._spec.se_before_last:
                    hidden, scale = hidden * scale.astype(hidden.dtype), jnp.ones(())
        return hidden, scale

    def _enter(self, index: int, hidden: jax.Array, is_training: bool) -> jax.Array:
        """What stands before the branch's convolution `index`."""
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

    def _leave(self, index: int, hidden: jax.Array, is_training: bool) -> jax.Array:
        """What stands after the branch's convolution `index`."""
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


def _inner_width(layout: BlockLayout) -> tuple[int, int]:
    """Channels and groups of the branch's inner convolutions."""
    spec = layout.spec
    width = int(layout.out_channels * spec.bottleneck_ratio)
    if spec.ratio_of_input:
        ratio = 1 if layout.is_first else spec.bottleneck_ratio
        width = int(layout.in_channels * ratio)
    if spec.group_width is None:
        return width, 1
    groups = max(1, width // spec.group_width)
    return groups * min(spec.group_width, width), groups


def make_conv(
    spec: BlockSpec,
    channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    scale: float = 1.0,
    is_stem: bool = False,
    name: str,
) -> layers.Conv2D:
    """Creates a convolution of the family's kind.

    Args:
      spec: says which.
      channels: that leave it.
      kernel_size: see `convolution.conv2d`, as for `stride` and `groups`.
      stride: in both directions.
      groups: of channels.
      scale: on FixUp's initial weights.
      is_stem: not FixUp's initial weights, and a bias by `stem_bias`.
      name: Haiku name.
    """
    if spec.weight_standardization:
        return layers.WSConv2D(
            channels,
            kernel_size,
            stride=stride,
            groups=groups,
            eps=spec.weight_eps,
            eps_rule=spec.weight_eps_rule,
            name=name,
        )
    if spec.conv_init != "fixup":
        w_init = _CONV_INITS[spec.conv_init]
    elif is_stem:
        w_init = initializers.LINEAR
    else:
        w_init = initializers.he_fan_out(channels, kernel_size, scale)
    return layers.Conv2D(
        channels,
        kernel_size,
        stride=stride,
        groups=groups,
        with_bias=spec.stem_bias if is_stem else spec.conv_bias,
        w_init=w_init,
        name=name,
    )


def add_scalar(hidden: jax.Array, name: str) -> jax.Array:
    """Adds a scalar parameter of the calling module that starts at zero."""
    return hidden + hk.get_parameter(name, (), init=jnp.zeros).astype(hidden.dtype)
