"""The description of a residual network that every family fills in."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any


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
      bottleneck_ratio: width of the 3x3 convolutions over the block's output width.
      group_width: channels per group of the 3x3 convolutions; None: one group.
      spatial_convs: Haiku names of the 3x3 convolutions; the first one is strided.
      se_ratio: hidden width of squeeze-and-excite over its input; None: none.
      se_scale: factor on squeeze-and-excite's gates, whose mean is near one half.
      alpha: factor on the residual branch.
    """

    module_name: str
    bottleneck_ratio: float
    group_width: int | None
    spatial_convs: tuple[str, ...]
    se_ratio: float | None
    se_scale: float
    alpha: float


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
      widths: output channels of each stage.
      depths: blocks of each stage.
      strides: of the first block of each stage.
      block: see `BlockSpec`.
      final_width: channels of the 1x1 convolution after the last block.
      activation: name in `nfnets.models.activations`.
      drop_rate: dropout before the classifier, in [0, 1).
      stochdepth_rate: stochastic depth; block i of n is dropped at the rate i / n of it.
      recipe: see `Recipe`.
    """

    name: str
    module_name: str
    stem: tuple[StemConv, ...]
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    strides: tuple[int, ...]
    block: BlockSpec
    final_width: int
    activation: str
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
