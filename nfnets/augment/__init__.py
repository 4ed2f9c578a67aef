"""Augmentation on the device: MixUp, CutMix, RandAugment, AutoAugment, Cutout.

`augment` is a pure function of a key and a batch and needs only jax and numpy.
"""

from typing import TYPE_CHECKING

from nfnets import lazy
from nfnets.augment.options import STAGES, AugmentOptions

if TYPE_CHECKING:
    from nfnets.augment.operations import GEOMETRIC, OPERATIONS
    from nfnets.augment.pipeline import apply_operation, augment

__all__ = [
    "GEOMETRIC",
    "OPERATIONS",
    "STAGES",
    "AugmentOptions",
    "apply_operation",
    "augment",
]

# Not imported here, because `nfnets.training.config` needs the options without jax.
__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "nfnets.augment.operations": ("GEOMETRIC", "OPERATIONS"),
        "nfnets.augment.pipeline": ("apply_operation", "augment"),
    },
)
