"""The residual network of all families: stem, stages of residual blocks, classifier.

Axis letters as in `nfnets.models.layers`: N examples, H height, W width, C channels.
"""

from collections.abc import Sequence
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import jmp

from nfnets.models import activations, initializers, layers, names
from nfnets.models.batch_norm import BatchNorm
from nfnets.models.residual import ResidualBlock, add_scalar, make_conv
from nfnets.models.spec import ModelSpec, Remat


class ResidualNet(hk.Module):
    """Stem, stages of residual blocks, average pooling, linear classifier."""

    def __init__(
        self,
        spec: ModelSpec,
        num_classes: int,
        policy: jmp.Policy,
        remat: Remat = "none",
    ) -> None:
        """Creates the layers.

        Args:
          spec: description of the network.
          num_classes: number of logits.
          policy: its `compute_dtype` is the dtype of all feature maps.
          remat: the unit whose activations the backward pass recomputes.
        """
        super().__init__(name=spec.module_name)
        self._spec = spec
        self._policy = policy
        self._remat = remat
        activation_scale, weight_scale = activations.place_gamma(spec)
        self._activation = activations.get(spec.activation, activation_scale != 1)
        make = functools.partial(make_conv, spec.block, weight_scale=weight_scale)
        self._stem = [
            make(
                conv.channels,
                conv.kernel_size,
                stride=conv.stride,
                is_stem=True,
                name=conv.name,
            )
            for conv in spec.stem
        ]
        self._stages = self._build_stages(weight_scale)
        self._final_conv = None
        if spec.final_width is not None:
            self._final_conv = make(spec.final_width, 1, name="final_conv")
        # Precedes the last activation of preactivation networks, the first one of others.
        self._batch_norm = None
        if spec.block.normalization == "batch":
            self._batch_norm = BatchNorm(
                spec.block.sync_batch_norm,
                "final_bn" if spec.block.preactivation else "initial_bn",
            )
        w_init = initializers.ScaledNormal(spec.classifier_stddev)
        self._classifier = layers.Linear(num_classes, w_init, name=names.HEAD)

    @hk.transparent  # keeps the published names of the blocks
    def _build_stages(self, weight_scale: float) -> list[list[ResidualBlock]]:
        spec = self._spec
        expected_stds = iter(spec.expected_stds())
        channels = spec.stem[-1].channels
        stages: list[list[ResidualBlock]] = []
        for width, depth, stride in zip(
            spec.widths, spec.depths, spec.strides, strict=True
        ):
            blocks = []
            for index in range(depth):
                block = ResidualBlock(
                    spec.block,
                    self._activation,
                    in_channels=channels,
                    out_channels=width,
                    stride=stride if index == 0 else 1,
                    expected_std=next(expected_stds),
                    is_first=not stages and index == 0,
                    num_blocks=sum(spec.depths),
                    weight_scale=weight_scale,
                )
                blocks.append(block)
                channels = width
            stages.append(blocks)
        return stages

    def __call__(
        self, images: jax.Array, is_training: bool, example_index: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Classifies images.

        Args:
          images: float [N, H, W, 3], normalized.
          is_training: apply dropout and stochastic depth, which need a random key; batch
            normalization uses and records the statistics of the batch.
          example_index: int [N], position of each example in the global batch, on which
            its random numbers depend; None for 0 to N - 1.

        Returns:
          `logits` [N, classes] and `pool` [N, features], float32; the end points `stem`,
          `stage_1` ... and, in networks that have one, `final_conv`, each
          [N, height, width, channels] in the policy's compute dtype.
        """
        if example_index is None:
            example_index = jnp.arange(images.shape[0])
        key = hk.next_rng_key() if is_training and self._is_random() else None
        keep = iter(self._draw_kept_branches(key, example_index))

        outputs: dict[str, jax.Array] = {}
        images = self._policy.cast_to_compute(images)
        hidden = outputs["stem"] = self._run_stem(images, is_training)
        for number, blocks in enumerate(self._stages, start=1):
            kept = [next(keep) for _ in blocks]
            hidden = self._run_stage(blocks, hidden, kept, is_training)
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
        return (
            layers.max_pool_3x3(hidden, block.padding) if self._spec.stem_pool else hidden
        )

    def _run_stage(
        self,
        blocks: Sequence[ResidualBlock],
        inputs: jax.Array,
        keep: Sequence[jax.Array | None],
        is_training: bool,
    ) -> jax.Array:
        """Runs blocks in sequence, each with its examples to `keep`."""

        def run(hidden: jax.Array, keep: Sequence[jax.Array | None]) -> jax.Array:
            for block, kept in zip(blocks, keep, strict=True):
                call = functools.partial(block, is_training=is_training)
                hidden = (hk.remat(call) if self._remat == "block" else call)(hidden, kept)
            return hidden

        return (hk.remat(run) if self._remat == "stage" else run)(inputs, keep)

    def _is_random(self) -> bool:
        return self._spec.drop_rate > 0 or self._spec.stochdepth_rate > 0

    def _draw_kept_branches(
        self, key: jax.Array | None, example_index: jax.Array
    ) -> list[jax.Array | None]:
        """Returns for each block the examples that keep its branch, bool [N]; None: all."""
        count = sum(self._spec.depths)
        if key is None or self._spec.stochdepth_rate == 0:
            return [None] * count
        keys = layers.example_keys(jax.random.fold_in(key, 0), example_index)
        uniform = jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)
        rates = self._spec.stochdepth_rate * jnp.arange(count) / count
        keep = uniform >= rates
        return [None] + [keep[:, index] for index in range(1, count)]
