"""Augmentation on the device: MixUp, CutMix, RandAugment, AutoAugment, Cutout.

`augment` is a pure function of a key and a batch; it imports nothing but jax and numpy.
"""

from nfnets.augment.operations import GEOMETRIC, OPERATIONS
from nfnets.augment.options import STAGES, AugmentOptions
from nfnets.augment.pipeline import apply_operation, augment

__all__ = [
    "GEOMETRIC",
    "OPERATIONS",
    "STAGES",
    "AugmentOptions",
    "apply_operation",
    "augment",
]
