"""Descriptions of residual networks: the fields that every family fills in."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, Literal, get_args

from nfnets.errors import UserError

# How activations are kept in range: by the weights alone, by batch normalization, or by
# the scalar biases and scales of FixUp.
Normalization = Literal["none", "batch", "fixup"]

# Initial weights of convolutions without weight standardization: normal with variance
# 1 / fan-in, truncated at two standard deviations (Haiku's default); normal with variance
# 2 / fan-in; or FixUp's, normal with variance 2 / fan-out in shortcuts and
# 2 / (fan-out sqrt(blocks)) in branches, whose last convolution starts at zero.
ConvInit = Literal["truncated", "he", "fixup"]

# How weight standardization avoids a division by zero: variance x fan-in is at least eps,
# or eps is added to the variance (timm).
WeightEpsRule = Literal["floor", "added"]

# Padding of convolutions and of the stem's pooling: SAME, which with a stride may be less
# before than after an axis, or half of the kernel on both sides (PyTorch).
Padding = Literal["same", "symmetric"]

# ImageNet's statistics per channel (red, green, blue) on the scale 0 to 255, for which the
# published weights were trained.
MEAN_RGB = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STDDEV_RGB = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# The unit whose activations the backward pass recomputes instead of storing them.
Remat = Literal["none", "block", "stage"]
REMAT: tuple[Remat, ...] = get_args(Remat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemConv:
    """A convolution of the stem; activations stand between the stem's convolutions.

    Attributes:
      name: Haiku name.
      channels: output channels.
      kernel_size: side of the square kernel, pixels.
      stride: in both directions.
    """

    name: str
    channels: int
    kernel_size: int = 3
    stride: int = 1


# Blocks and channels of NFNet-F0's stages.
NFNET_DEPTHS = (1, 2, 6, 3)
NFNET_WIDTHS = (256, 512, 1536, 1536)


def nfnet_stem(channels: int) -> tuple[StemConv, ...]:
    """Returns the stem of NFNets, whose last convolution has `channels` outputs."""
    return (
        StemConv(name="stem_conv0", channels=16, stride=2),
        StemConv(name="stem_conv1", channels=32),
        StemConv(name="stem_conv2", channels=64),
        StemConv(name="stem_conv3", channels=channels, stride=2),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """What all residual blocks of a network share.

    Attributes:
      module_name: Haiku name; the k-th block is called `module_name_k`.
      alpha: factor on the residual branch.
      skip_gain: whether a learnable scalar, initially 0, multiplies the branch as well.
      scale_inputs: divide the input by its predicted standard deviation.
      preactivation: activations precede convolutions; otherwise they follow them, and the
        sum of shortcut and branch.
      normalization: see `Normalization`; batch normalization precedes each activation,
        FixUp's scalars surround each convolution.
      sync_batch_norm: name of the mapped axis over whose devices the batch statistics are
        averaged; None for statistics per device.
      weight_standardization: convolutions have standardized weights, gains and biases.
      weight_eps: epsilon of the standardization.
      weight_eps_rule: see `WeightEpsRule`.
      zero_last_gain: the gains of the branch's last convolution are initially 0, as in
        networks of timm, which have no skip gain.
      padding: see `Padding`.
      conv_bias: convolutions without standardization have a bias, except in the stem.
      stem_bias: convolutions of the stem without standardization have a bias.
      conv_init: see `ConvInit`.
      bottleneck_ratio: width of the inner convolutions divided by the block's output
        width.
      ratio_of_input: divide by the input width instead; the ratio of the network's first
        block is then 1.
      channel_divisor: the widths of the inner convolutions and of squeeze-and-excite's
        hidden layer are rounded to a multiple of it; 1 rounds down.
      group_width: channels per group of the 3x3 convolutions; None for a single group.
      spatial_convs: Haiku names of the 3x3 convolutions, of which the first is strided.
      se_ratio: hidden width of squeeze-and-excite divided by its input width; None for
        blocks without it.
      eca_gamma: blocks have efficient channel attention in place of squeeze-and-excite,
        whose kernel covers about (log2(channels) + 1) / eca_gamma channels (see
        `layers.ChannelAttention`); None for blocks without it.
      se_scale: factor on the gates of either, whose mean is about one half.
      se_before_last: the gates precede the last convolution instead of following it.
      pool_shortcut: strided shortcuts are average-pooled, then projected; otherwise the
        projection is strided.
    """

    module_name: str
    alpha: float
    skip_gain: bool = True
    scale_inputs: bool = True
    preactivation: bool = True
    normalization: Normalization = "none"
    sync_batch_norm: str | None = None
    weight_standardization: bool = True
    weight_eps: float = 1e-4
    weight_eps_rule: WeightEpsRule = "floor"
    zero_last_gain: bool = False
    padding: Padding = "same"
    conv_bias: bool = False
    stem_bias: bool = False
    conv_init: ConvInit = "truncated"
    bottleneck_ratio: float
    ratio_of_input: bool = False
    channel_divisor: int = 1
    group_width: int | None = None
    spatial_convs: tuple[str, ...] = ("conv1",)
    se_ratio: float | None = None
    eca_gamma: float | None = None
    se_scale: float = 2.0
    se_before_last: bool = False
    pool_shortcut: bool = True

    def __post_init__(self) -> None:
        """Checks the fields that name a choice or exclude one another."""
        for field, choices in (
            ("normalization", Normalization),
            ("conv_init", ConvInit),
            ("weight_eps_rule", WeightEpsRule),
            ("padding", Padding),
        ):
            value = getattr(self, field)
            if value not in get_args(choices):
                raise UserError(
                    f"{field} must be one of {', '.join(get_args(choices))}, not {value!r}"
                )
        if self.se_ratio is not None and self.eca_gamma is not None:
            raise UserError("a block has se_ratio or eca_gamma, not both; set one to None")

    @property
    def gates_last(self) -> bool:
        """Whether gates (squeeze-and-excite or ECA) multiply the branch's outputs."""
        has_gates = self.se_ratio is not None or self.eca_gamma is not None
        return has_gates and not self.se_before_last

    def round_channels(self, channels: float) -> int:
        """Rounds to the nearest multiple of `channel_divisor`, at least one of it."""
        divisor = self.channel_divisor
        return max(divisor, int(channels + divisor // 2) // divisor * divisor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the published training recipe sets per variant.

    Attributes:
      train_size: side of the training images, pixels.
      test_size: side of the evaluation images, pixels.
      randaugment_layers: RandAugment operations per image.
      randaugment_magnitude: magnitude of the operations.
      weight_decay: coefficient on weights (not on gains and biases).
      top1: published ImageNet accuracy, percent; None if there is none.
      preprocessing: of evaluation images; see `nfnets.data.images.preprocess_eval`.
      crop_fraction: see there.
      mean_rgb: subtracted from each channel of an image in [0, 255].
      stddev_rgb: divides each channel after that.
    """

    train_size: int
    test_size: int
    randaugment_layers: int
    randaugment_magnitude: int
    weight_decay: float
    top1: float | None = None
    preprocessing: str = "resize_crop_32"
    crop_fraction: float | None = None
    mean_rgb: tuple[float, float, float] = MEAN_RGB
    stddev_rgb: tuple[float, float, float] = STDDEV_RGB


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A residual network, complete except for the number of classes.

    Attributes:
      name: name for `create_model`.
      module_name: Haiku name of the network.
      stem: convolutions before the first block.
      stem_pool: whether a strided max pooling follows them.
      widths: output channels of each stage.
      depths: number of blocks of each stage.
      strides: stride of each stage's first block.
      block: see `BlockSpec`.
      final_width: output channels of the 1x1 convolution after the last block; None for
        networks without it.
      activation: a name in `nfnets.models.activations`.
      scaled_activation: multiply the activation by its gamma, for unit variance.
      gamma_in_weights: the gamma multiplies all standardized weights instead, also those
        that no activation precedes (timm).
      classifier_stddev: standard deviation of the classifier's initial weights.
      drop_rate: dropout rate before the classifier, in [0, 1).
      stochdepth_rate: stochastic depth rate, in [0, 1); the branch of block i of n, counted
        from 0, is dropped at i / n of this rate.
      recipe: see `Recipe`.
    """

    name: str
    module_name: str
    stem: tuple[StemConv, ...]
    stem_pool: bool = False
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    strides: tuple[int, ...]
    block: BlockSpec
    final_width: int | None
    activation: str
    scaled_activation: bool = True
    gamma_in_weights: bool = False
    classifier_stddev: float = 0.01
    drop_rate: float
    stochdepth_rate: float
    recipe: Recipe

    def __post_init__(self) -> None:
        """Checks the fields that need one another."""
        is_scaled = self.gamma_in_weights and self.scaled_activation
        if is_scaled and not self.block.weight_standardization:
            raise UserError("gamma_in_weights needs weight_standardization")

    def expected_stds(self) -> list[float]:
        """Returns the predicted standard deviation of each block's input, the paper's beta.

        Each branch adds alpha^2 to the variance. A stage's first block projects its
        normalized input on the shortcut, which resets the variance to 1.
        """
        stds = []
        variance = 1.0
        for depth in self.depths:
            for index in range(depth):
                stds.append(math.sqrt(variance))
                variance = (1.0 if index == 0 else variance) + self.block.alpha**2
        return stds

    def override(self, changes: Mapping[str, Any]) -> ModelSpec:
        """Returns a copy with changed fields.

        Args:
          changes: fields of this class or of `BlockSpec` and their values, for instance
            {"drop_rate": 0.0, "alpha": 0.1}.

        Raises:
          UserError: a field is unknown, or a value is out of range.
        """
        block_fields = {f.name for f in dataclasses.fields(BlockSpec)} - {"module_name"}
        own_fields = {f.name for f in dataclasses.fields(ModelSpec)} - {"name", "block"}
        unknown = sorted(set(changes) - block_fields - own_fields)
        if unknown:
            raise UserError(
                f"{self.name} has no option {', '.join(map(repr, unknown))}; it has "
                f"{', '.join(sorted(own_fields | block_fields))}"
            )
        block = {k: v for k, v in changes.items() if k in block_fields}
        own = {k: v for k, v in changes.items() if k in own_fields}
        spec = dataclasses.replace(
            self, block=dataclasses.replace(self.block, **block), **own
        )
        for field in ("drop_rate", "stochdepth_rate"):
            if not 0 <= getattr(spec, field) < 1:
                raise UserError(f"{field} must be in [0, 1), not {getattr(spec, field)}")
        if not len(spec.widths) == len(spec.depths) == len(spec.strides):
            raise UserError("widths, depths and strides must have one entry per stage")
        return spec
