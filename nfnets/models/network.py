"""The network that all variants are: stem, stages of residual blocks, classifier.

Axis letters as in `nfnets.models.layers`: N examples, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
import math
from typing import Literal, get_args

import haiku as hk
import jax
import jax.numpy as jnp
import jmp

from nfnets.models import activations, initializers, layers
from nfnets.models.batch_norm import BatchNorm
from nfnets.models.block_calls import run_blocks
from nfnets.models.residual import BlockLayout, ResidualBlock, add_scalar, make_conv
from nfnets.models.spec import ModelSpec

Remat = Literal["none", "block", "stage"]
REMAT: tuple[Remat, ...] = get_args(Remat)


def check_images(name: str, images: jax.Array | jax.ShapeDtypeStruct) -> None:
    """Makes sure that a network called `name` can take `images`.

    Raises:
      ValueError: they are not [N, H, W, 3].
    """
    if len(images.shape) != 4 or images.shape[-1] != 3:
        raise ValueError(f"{name} takes images [N, H, W, 3], not {list(images.shape)}")


class ResidualNet(hk.Module):
    """Stem, stages of residual blocks, pooling, a linear classifier."""

    def __init__(
        self,
        spec: ModelSpec,
        num_classes: int,
        policy: jmp.Policy,
        remat: Remat = "none",
        outline: bool = False,
    ) -> None:
        """Builds the layers.

        Args:
          spec: of the variant.
          num_classes: number of logits.
          policy: its `compute_dtype` is that of all feature maps.
          remat: the unit whose activations the backward pass computes again.
          outline: make blocks functions of their own, see `run_blocks`. Without effect
            where they have state.
        """
        super().__init__(name=spec.module_name)
        self._remat = remat
        self._outline = outline and spec.block.normalization != "batch"
        self._spec = spec
        self._policy = policy
        self._activation = activations.get(spec.activation, spec.scaled_activation)
        self._stem = [
            make_conv(
                spec.block,
                c.channels,
                c.kernel_size,
                stride=c.stride,
                is_stem=True,
                name=c.name,
            )
            for c in spec.stem
        ]
        self._stages = self._build_stages()
        self._final_conv = None
        if spec.final_width is not None:
            self._final_conv = make_conv(spec.block, spec.final_width, 1, name="final_conv")
        # Before the first activation of post-activation networks, the last of others.
        self._batch_norm = None
        if spec.block.normalization == "batch":
            self._batch_norm = BatchNorm(
                spec.block.sync_batch_norm,
                "final_bn" if spec.block.preactivation else "initial_bn",
            )
        w_init = initializers.ScaledNormal(spec.classifier_stddev)
        self._classifier = layers.Linear(num_classes, w_init, name="linear")

    @hk.transparent  # keeps the published names: no scope of its own
    def _build_stages(self) -> list[list[ResidualBlock]]:
        spec = self._spec
        channels = spec.stem[-1].channels
        expected_std = 1.0
        stages: list[list[ResidualBlock]] = []
        for width, depth, stride in zip(
            spec.widths, spec.depths, spec.strides, strict=True
        ):
            blocks = []
            for index in range(depth):
                layout = BlockLayout(
                    spec=spec.block,
                    activation=self._activation,
                    in_channels=channels,
                    out_channels=width,
                    stride=stride if index == 0 else 1,
                    is_first=not stages and index == 0,
                    num_blocks=sum(spec.depths),
                )
                blocks.append(ResidualBlock(layout, expected_std))
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
          is_training: apply dropout and stochastic depth, which need a random key, and
            normalise by the batch's statistics where there is batch normalisation.
          example_index: int [N], each example's position in the global batch, to which
            its random numbers belong; None: 0 to N - 1.

        Returns:
          `logits` [N, classes] and `pool` [N, features], float32; the end points `stem`,
          `stage_1` ... and, where there is one, `final_conv`, each [N, height, width,
          channels] in the policy's compute dtype.
        """
        check_images(self._spec.name, images)
        if example_index is None:
            example_index = jnp.arange(images.shape[0])
        key = hk.next_rng_key() if is_training and self._needs_key() else None
        keep = self._draw_kept_blocks(key, example_index)

        outputs: dict[str, jax.Array] = {}
        images = self._policy.cast_to_compute(images)
        hidden = outputs["stem"] = self._run_stem(images, is_training)
        position = 0
        for number, blocks in enumerate(self._stages, start=1):
            kept = keep[position : position + len(blocks)]
            hidden = self._run_stage(blocks, hidden, kept, is_training)
            position += len(blocks)
            outputs[f"stage_{number}"] = hidden
        if self._final_conv is not None:
            hidden = outputs["final_conv"] = self._final_conv(hidden)
        if self._spec.block.preactivation:
            if self._batch_norm is not None:
                hidden = self._batch_norm(hidden, is_training)
            hidden = self._activation(hidden)
        # The mean and the classifier are cheap and lose digits in half precision.
        hidden = outputs["pool"] = jnp.mean(hidden.astype(jnp.float32), axis=(1, 2))
        if key is not None and self._spec.drop_rate > 0:
            keys = layers.example_keys(jax.random.fold_in(key, 1), example_index)
            hidden = layers.dropout(hidden, self._spec.drop_rate, keys)
        if self._spec.block.normalization == "fixup":
            hidden = add_scalar(hidden, "bias2")
        outputs["logits"] = self._classifier(hidden)
        return outputs

    def _run_stem(self, images: jax.Array, is_training: bool) -> jax.Array:
        block = self._spec.block
        hidden = self._stem[0](images)
        for conv in self._stem[1:]:
            hidden = conv(self._activation(hidden))
        if not block.preactivation:
            if block.normalization == "fixup":
                hidden = add_scalar(hidden, "bias1")
            if self._batch_norm is not None:
                hidden = self._batch_norm(hidden, is_training)
            hidden = self._activation(hidden)
        return layers.max_pool_3x3(hidden) if self._spec.stem_pool else hidden

    def _run_stage(
        self,
        blocks: Sequence[ResidualBlock],
        inputs: jax.Array,
        keep: Sequence[jax.Array | None],
        is_training: bool,
    ) -> jax.Array:
        """Runs blocks one after the other, each with its examples to `keep`."""

        def in_place(blocks: Sequence[ResidualBlock]) -> Callable[..., jax.Array]:
            def call(hidden: jax.Array, keep: Sequence[jax.Array | None]) -> jax.Array:
                for block, kept in zip(blocks, keep, strict=True):
                    hidden = block(hidden, kept, is_training)
                return hidden

            return hk.remat(call) if remat else call

        remat = self._remat != "none"
        outline = self._outline and not hk.running_init()
        together = len(blocks) if self._remat == "stage" else 1
        hidden = inputs
        for start in range(0, len(blocks), together):
            part, kept = blocks[start : start + together], keep[start : start + together]
            if outline:
                hidden = run_blocks(part, hidden, kept, is_training, remat)
            else:
                hidden = in_place(part)(hidden, kept)
        return hidden

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
