"""Options of `augment`."""

import dataclasses

from nfnets.errors import UserError

STAGES = ("mix", "distort", "cutout")
MAX_ALPHA = 100
MAX_MAGNITUDE = 30

# Sums of decimals such as 0.7 + 0.1 + 0.2 may exceed 1 by a rounding error.
_SLACK = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Stages and strengths of `augment`; hashable, hence valid as a static argument.

    Attributes:
      order: stages to run, in this order; each of `STAGES` at most once.
      mixup_alpha: both parameters of MixUp's Beta distribution, in (0, 100].
      mixup_fraction: share of the pairs (2i, 2i + 1) that MixUp blends, in [0, 1].
      cutmix_alpha: both parameters of CutMix's Beta distribution, in (0, 100].
      cutmix_fraction: share of the pairs that CutMix pastes, in [0, 1]; with
        `mixup_fraction` at most 1; the remaining pairs are not mixed.
      randaugment_layers: RandAugment operations per image, 0 or more.
      randaugment_magnitude: 0 to 30; 10 is the nominal maximum.
      autoaugment: use AutoAugment's ImageNet policy instead of RandAugment.
      cutout_size: side of the gray square on each image, pixels; 0: none.
      scale_translation: scale the shifts of RandAugment and AutoAugment with the image,
        from the published pixels at 224 px; False: the published pixels at any size, which
        move small images out of sight.
      gathers: how RandAugment and AutoAugment pick pixels, which changes no result: by
        gathers for the whole batch, or without them, one image at a time; None: without
        them on TPUs, where gathers take longer than the network.

    Raises:
      UserError: a field is out of range, a stage is unknown or repeated, or RandAugment
        and AutoAugment are combined.
    """

    order: tuple[str, ...] = STAGES
    mixup_alpha: float = 0.2
    mixup_fraction: float = 0.5
    cutmix_alpha: float = 1.0
    cutmix_fraction: float = 0.5
    randaugment_layers: int = 4
    randaugment_magnitude: int = 10
    autoaugment: bool = False
    cutout_size: int = 0
    scale_translation: bool = False
    gathers: bool | None = None

    def __post_init__(self) -> None:
        # Configs read from JSON hold a list, which is not hashable.
        object.__setattr__(self, "order", tuple(self.order))
        self._check_order()
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            _require(0 < alpha <= MAX_ALPHA, f"{name} must be in (0, {MAX_ALPHA}]", alpha)
        for name in ("mixup_fraction", "cutmix_fraction"):
            fraction = getattr(self, name)
            _require(0 <= fraction <= 1, f"{name} must be in [0, 1]", fraction)
        total = self.mixup_fraction + self.cutmix_fraction
        rule = "mixup_fraction and cutmix_fraction must add up to at most 1"
        _require(total <= 1 + _SLACK, rule, f"{total:g}")
        for name in ("randaugment_layers", "randaugment_magnitude", "cutout_size"):
            number = getattr(self, name)
            is_integer = isinstance(number, int) and not isinstance(number, bool)
            rule = f"{name} must be an integer, 0 or more"
            _require(is_integer and number >= 0, rule, number)
        rule = f"randaugment_magnitude must be at most {MAX_MAGNITUDE}"
        magnitude = self.randaugment_magnitude
        _require(magnitude <= MAX_MAGNITUDE, rule, magnitude)
        rule = "randaugment_layers must be 0 if autoaugment is True"
        layers = self.randaugment_layers
        _require(not (self.autoaugment and layers), rule, layers)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs, which requires an even batch size."""
        return "mix" in self.order and self.mixup_fraction + self.cutmix_fraction > 0

    def _check_order(self) -> None:
        for stage in self.order:
            rule = f"order may contain {', '.join(STAGES)}"
            _require(stage in STAGES, rule, repr(stage))
            rule = "order may contain each stage once"
            _require(self.order.count(stage) == 1, rule, f"{stage!r} again")


def _require(condition: bool, rule: str, found: object) -> None:
    if not condition:
        raise UserError(f"augment.{rule}; got {found}")
