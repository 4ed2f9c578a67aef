"""The description of a residual network that every family fills in."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal, get_args

# What keeps the signal in bounds besides the convolutions' weights: nothing, batch
# normalisation, or the scalar biases and the scale of FixUp.
Normalization = Literal["none", "batch", "fixup"]

# Distribution of the convolutions' initial weights, but for standardised ones, whose
# scale does not matter: `truncated` has variance 1 / fan-in before truncation at two
# standard deviations (Haiku's default), `he` 2 / fan-in, `fixup` 2 / fan-out on shortcuts
# and 2 / fan-out / sqrt(blocks) on branches, whose last convolution starts at zero.
ConvInit = Literal["truncated", "he", "fixup"]

# What keeps standardised weights finite: a lower bound of variance x fan-in, or a term
# added to the variance (as timm has it).
WeightEpsRule = Literal["floor", "added"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StemConv:
    """One convolution of the stem; an activation stands between two of them."""

    name: str
    channels: int
    kernel_size: int = 3
    stride: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """What the residual blocks of a network have in common.

    Attributes:
      module_name: Haiku name; the k-th block is `module_name_k`.
      alpha: factor on the residual branch.
      skip_gain: a learnt factor on the branch besides, 0 at first.
      scale_inputs: divide a block's input by its predicted standard deviation.
      preactivation: activations stand before convolutions, and not on the shortcut of
        blocks of equal width; otherwise after them, and after the sum of both paths.
      normalization: see `Normalization`; FixUp's scalars on every convolution, batch
        normalisation before every activation.
      sync_batch_norm: name of the mapped axis over whose devices batch normalisation
        takes its statistics; None: each device takes its own.
      weight_standardization: convolutions with standardised weights, gains and biases.
      weight_eps: of the standardisation.
      weight_eps_rule: see `WeightEpsRule`.
      conv_bias: other convolutions have a bias too (not those of the stem).
      stem_bias: those of the stem have one as well.
      conv_init: see `ConvInit`.
      bottleneck_ratio: width of the branch's inner convolutions over the block's output
        width.
      ratio_of_input: the ratio is over the input width instead, and 1 in the network's
        first block.
      group_width: channels per group of the 3x3 convolutions; None: one group.
      spatial_convs: Haiku names of the 3x3 convolutions; the first one is strided.
      se_ratio: hidden width of squeeze-and-excite over its input; None: none.
      se_scale: factor on squeeze-and-excite's gates, whose mean is near one half.
      se_before_last: it stands before the branch's last convolution, not after.
      pool_shortcut: a strided block's shortcut is average-pooled and then projected;
        otherwise its projection is strided.
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
    conv_bias: bool = False
    stem_bias: bool = False
    conv_init: ConvInit = "truncated"
    bottleneck_ratio: float
    ratio_of_input: bool = False
    group_width: int | None = None
    spatial_convs: tuple[str, ...] = ("conv1",)
    se_ratio: float | None = None
    se_scale: float = 2.0
    se_before_last: bool = False
    pool_shortcut: bool = True

    def __post_init__(self) -> None:
        """Checks the fields that name a choice."""
        for field, choices in (
            ("normalization", Normalization),
            ("conv_init", ConvInit),
            ("weight_eps_rule", WeightEpsRule),
        ):
            value = getattr(self, field)
            if value not in get_args(choices):
                raise ValueError(
                    f"{field} must be one of {', '.join(get_args(choices))}, not {value!r}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the published training recipe ties to a variant.

    Attributes:
      train_size: side of the training crops, pixels.
      test_size: side of the evaluation images, pixels.
      randaugment_layers: operations per image.
      randaugment_magnitude: of every operation.
      weight_decay: L2 coefficient on weights (not on gains and biases).
      top1: ImageNet accuracy that the paper reports, percent; None where it gives none.
    """

    train_size: int
    test_size: int
    randaugment_layers: int
    randaugment_magnitude: int
    weight_decay: float
    top1: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A residual network, complete but for the number of classes.

    Attributes:
      name: as `create_model` takes it.
      module_name: Haiku name of the whole network.
      stem: convolutions before the first block.
      stem_pool: a max-pooling by two after them.
      widths: output channels of each stage.
      depths: blocks of each stage.
      strides: of the first block of each stage.
      block: see `BlockSpec`.
      final_width: channels of the 1x1 convolution after the last block; None: none.
      activation: name in `nfnets.models.activations`.
      scaled_activation: times its gamma, for unit variance.
      classifier_stddev: of the classifier's initial weights, which are normal.
      drop_rate: dropout before the classifier, in [0, 1).
      stochdepth_rate: stochastic depth; block i of n is dropped at the rate i / n of it.
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
    classifier_stddev: float = 0.01
    drop_rate: float
    stochdepth_rate: float
    recipe: Recipe

    def override(self, changes: Mapping[str, Any]) -> ModelSpec:
        """Returns a copy with fields of this class or of its block replaced.

        Args:
          changes: field name -> value, for instance {"drop_rate": 0.0, "alpha": 0.1}.

        Raises:
          ValueError: a name is no field, or a rate is out of [0, 1).
        """
        block_fields = {f.name for f in dataclasses.fields(BlockSpec)} - {"module_name"}
        own_fields = {f.name for f in dataclasses.fields(ModelSpec)} - {"name", "block"}
        unknown = sorted(set(changes) - block_fields - own_fields)
        if unknown:
            raise ValueError(
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
                raise ValueError(f"{field} must be in [0, 1), not {getattr(spec, field)}")
        if not len(spec.widths) == len(spec.depths) == len(spec.strides):
            raise ValueError("widths, depths and strides must have one entry per stage")
        return spec
