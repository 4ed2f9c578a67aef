"""The residual block and the network that all variants are made of.

Axis letters as in `nfnets.models.layers`: N examples, H height, W width, C channels.
"""

import math

import haiku as hk
import jax
import jax.numpy as jnp
import jmp

from nfnets.models import activations, initializers, layers
from nfnets.models.spec import BlockSpec, ModelSpec


class ResidualBlock(hk.Module):
    """x -> shortcut(x) + alpha * skip_gain * branch(activation(x) / expected_std).

    "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
    figure 5. `skip_gain` starts at zero (SkipInit), so that the network starts as its
    shortcuts.

    Attributes:
      expected_std: standard deviation of the block's input at initialisation that the
        design predicts; beta in the paper.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        activation: activations.Activation,
        in_channels: int,
        out_channels: int,
        stride: int,
        expected_std: float,
    ) -> None:
        """Builds the block's layers; see `BlockSpec` for what blocks have in common."""
        super().__init__(name=spec.module_name)
        self.expected_std = expected_std
        self._activation = activation
        self._stride = stride
        self._spec = spec

        width = int(out_channels * spec.bottleneck_ratio)
        groups = 1 if spec.group_width is None else max(1, width // spec.group_width)
        if spec.group_width is not None:
            width = groups * min(spec.group_width, width)
        self._branch_convs = [layers.WSConv2D(width, 1, name="conv0")]
        for index, name in enumerate(spec.spatial_convs):
            conv = layers.WSConv2D(
                width, 3, stride=stride if index == 0 else 1, groups=groups, name=name
            )
            self._branch_convs.append(conv)
        self._branch_convs.append(layers.WSConv2D(out_channels, 1, name="conv2"))

        self._project = None
        if stride > 1 or in_channels != out_channels:
            self._project = layers.WSConv2D(out_channels, 1, name="conv_shortcut")
        self._squeeze_excite = None
        if spec.se_ratio is not None:
            self._squeeze_excite = layers.SqueezeExcite(out_channels, spec.se_ratio)

    def __call__(self, inputs: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Maps [N, H, W, in] to [N, H / stride, W / stride, out].

        Args:
          inputs: feature maps.
          keep: bool [N], False where stochastic depth drops the residual branch (which is
            not rescaled where it stays); None keeps all.
        """
        activated = self._activation(inputs) / self.expected_std
        branch = self.branch(activated)
        if keep is not None:
            branch = jnp.where(keep[:, None, None, None], branch, 0)
        skip_gain = hk.get_parameter("skip_gain", (), init=jnp.zeros)
        scale = (skip_gain * self._spec.alpha).astype(branch.dtype)
        return self.shortcut(inputs, activated) + branch * scale

    def shortcut(self, inputs: jax.Array, activated: jax.Array) -> jax.Array:
        """The block's input, or its average-pooled and projected activation."""
        if self._project is None:
            return inputs
        if self._stride > 1:
            activated = layers.average_pool_2x2(activated)
        return self._project(activated)

    def branch(self, activated: jax.Array) -> jax.Array:
        """The residual branch before its gain, of unit variance at initialisation."""
        hidden = self._branch_convs[0](activated)
        for conv in self._branch_convs[1:]:
            hidden = conv(self._activation(hidden))
        if self._squeeze_excite is not None:
            gates = self._squeeze_excite(hidden)
            hidden = hidden * (self._spec.se_scale * gates)
        return hidden


class ResidualNet(hk.Module):
    """Stem, stages of residual blocks, a 1x1 convolution, pooling, a linear classifier."""

    def __init__(self, spec: ModelSpec, num_classes: int, policy: jmp.Policy) -> None:
        """Builds the layers; `policy.compute_dtype` is that of all feature maps."""
        super().__init__(name=spec.module_name)
        self._spec = spec
        self._policy = policy
        self._activation = activations.get(spec.activation)
        self._stem = [
            layers.WSConv2D(c.channels, c.kernel_size, stride=c.stride, name=c.name)
            for c in spec.stem
        ]
        self._stages = self._build_stages()
        self._final_conv = layers.WSConv2D(spec.final_width, 1, name="final_conv")
        self._classifier = layers.Linear(
            num_classes, initializers.CLASSIFIER, name="linear"
        )

    @hk.transparent  # keeps the published names: no scope of its own
    def _build_stages(self) -> list[list[ResidualBlock]]:
        spec = self._spec
        channels = spec.stem[-1].channels
        expected_std = 1.0
        stages = []
        for width, depth, stride in zip(
            spec.widths, spec.depths, spec.strides, strict=True
        ):
            blocks = []
            for index in range(depth):
                block = ResidualBlock(
                    spec.block,
                    activation=self._activation,
                    in_channels=channels,
                    out_channels=width,
                    stride=stride if index == 0 else 1,
                    expected_std=expected_std,
                )
                blocks.append(block)
                channels = width
                # A transition block's shortcut is normalised by its projection, so the
                # variance starts again from 1; every branch then adds alpha^2.
                start = 1.0 if index == 0 else expected_std**2
                expected_std = math.sqrt(start + spec.block.alpha**2)
            stages.append(blocks)
        return stages

    def __call__(
        self, images: jax.Array, is_training: bool, example_index: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
          images: float [N, H, W, 3], normalised.
          is_training: apply dropout and stochastic depth, which need a random key.
          example_index: int [N], each example's position in the global batch, to which
            its random numbers belong; None: 0 to N - 1.

        Returns:
          `logits` [N, classes] and `pool` [N, features], float32; the end points `stem`,
          `stage_1` ..., `final_conv`, each [N, height, width, channels] in the policy's
          compute dtype.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"{self._spec.name} takes images [N, H, W, 3], not {list(images.shape)}"
            )
        if example_index is None:
            example_index = jnp.arange(images.shape[0])
        key = hk.next_rng_key() if is_training and self._needs_key() else None
        keep = self._draw_kept_blocks(key, example_index)

        outputs: dict[str, jax.Array] = {}
        hidden = self._stem[0](self._policy.cast_to_compute(images))
        for conv in self._stem[1:]:
            hidden = conv(self._activation(hidden))
        outputs["stem"] = hidden
        position = 0
        for number, blocks in enumerate(self._stages, start=1):
            for block in blocks:
                hidden = block(hidden, keep[position])
                position += 1
            outputs[f"stage_{number}"] = hidden
        outputs["final_conv"] = self._final_conv(hidden)
        # The mean and the classifier are cheap and lose digits in half precision.
        hidden = self._activation(outputs["final_conv"]).astype(jnp.float32)
        hidden = outputs["pool"] = jnp.mean(hidden, axis=(1, 2))
        if key is not None and self._spec.drop_rate > 0:
            keys = layers.example_keys(jax.random.fold_in(key, 1), example_index)
            hidden = layers.dropout(hidden, self._spec.drop_rate, keys)
        outputs["logits"] = self._classifier(hidden)
        return outputs

    def _needs_key(self) -> bool:
        return self._spec.drop_rate > 0 or self._spec.stochdepth_rate > 0

    def _draw_kept_blocks(
        self, key: jax.Array | None, example_index: jax.Array
    ) -> list[jax.Array | None]:
        """For each block which examples keep its branch, bool [N], or None for all."""
        count = sum(self._spec.depths)
        if key is None or self._spec.stochdepth_rate == 0:
            return [None] * count
        keys = layers.example_keys(jax.random.fold_in(key, 0), example_index)
        uniform = jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)
        rates = self._spec.stochdepth_rate * jnp.arange(count) / count
        keep = uniform >= rates
        return [None] + [keep[:, index] for index in range(1, count)]
