"""The sixteen operations of AutoAugment and RandAugment as tables for the kernels.

There are five kinds of operations: a 256-entry table per channel, a nearest-pixel affine
gather, a blend with the gray image, a blend with a 3x3 blur, a gray box. A `Bank` holds
the arguments of every kind for each of a list of steps (operation, magnitude); those of all
kinds but the step's own leave the image unchanged. A batch of images with different steps
thus takes one pass of each kind (`kernels.apply_steps`).

This module runs numpy on the host, at trace time. It reproduces the published TensorFlow
implementation, on which the published results rest, with its peculiarities:

  * Contrast blends with the gray level H W / 256 (at most 255), not with the mean.
  * Solarize's threshold wraps at 256, so that magnitude 10 inverts all pixels.
  * Posterize keeps at least one bit.

Two operations differ on some pixels, where the published float32 arithmetic ends just below
an integer and is rounded down: AutoContrast by 1 level on 2% of the pixels, Sharpness by up
to 2 levels on 3% at magnitude 15.

Sources: "AutoAugment" (Cubuk et al. 2019), table 6; "RandAugment" (Cubuk et al. 2020).

Axis letters: S steps, H height, W width.
"""

import dataclasses
import math
from typing import NamedTuple, TypeVar

import numpy as np

from nfnets.errors import UserError

# RandAugment draws uniformly from these.
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
TABLE_OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Contrast",
    "Brightness",
)
GRAY = 128  # of boxes and of pixels from outside of the image

# Translation at magnitude 10, pixels.
RANDAUGMENT_TRANSLATE = 100
AUTOAUGMENT_TRANSLATE = 250

# Blending factors are multiples of 1 / FACTOR_UNIT: 1.8 M / 10 + 0.1 = (9 M + 5) / 50.
FACTOR_UNIT = 50

# Values of `Bank.kind`: operations of a kind share their code.
KINDS = (
    "Identity",
    "table",
    "AutoContrast",
    "Equalize",
    "Rotate",
    "shift columns",
    "shift rows",
    "Color",
    "Sharpness",
    "Cutout",
)
_KIND_OF = {
    "ShearX": "shift columns",
    "TranslateX": "shift columns",
    "ShearY": "shift rows",
    "TranslateY": "shift rows",
}
_CUTOUT_PAD = 40  # half the side of Cutout's box at magnitude 10, pixels


class Step(NamedTuple):
    """An operation and its magnitude; `IDENTITY` leaves the image unchanged."""

    name: str
    magnitude: int


IDENTITY = Step("Identity", 0)

Magnitude = TypeVar("Magnitude", int, np.ndarray)


class AffineTerms(NamedTuple):
    """Source coordinates (x, y) of pixel (column j, row i), summed in float32.

    They are columns[..., j] + rows[..., i] + offset, in this order. Products are computed
    on the host, because a device may fuse a product with a sum, and the last bit decides
    between two pixels half-way between them.

    Attributes:
      columns: float32 [S, 2 (positive, negative), 2 (x, y), W].
      rows: float32 [S, 2, 2, H].
      offset: float32 [S, 2, 2].
    """

    columns: np.ndarray
    rows: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True)
class Bank:
    """Arguments of every kind of operation for S steps; None: no step is of that kind.

    Attributes:
      kind: int32 [S], position in `KINDS`.
      tables: uint8 [S, 256], new level of each old one, the same for all channels; those
        of AutoContrast and Equalize depend on the image and replace them.
      affine: source coordinates, pixels.
      color: int32 [S], factor of the blend with gray, in units of 1 / FACTOR_UNIT.
      sharpness: int32 [S], factor of the blend with the blur, in the same units.
      cutout: int32 [S], side of the gray box, pixels.
    """

    kind: np.ndarray
    tables: np.ndarray | None
    affine: AffineTerms | None
    color: np.ndarray | None
    sharpness: np.ndarray | None
    cutout: np.ndarray | None

    def kinds(self) -> list[int]:
        """Returns the kinds among the steps, ascending."""
        return sorted(set(self.kind.tolist()))


def build_bank(steps: tuple[Step, ...], height: int, width: int, translate: int) -> Bank:
    """Builds the bank of a list of steps.

    Args:
      steps: operations with magnitudes; names from `OPERATIONS`, or `IDENTITY`.
      height: of the images, pixels.
      width: of the images, pixels.
      translate: shift of TranslateX and TranslateY at magnitude 10, pixels.

    Raises:
      UserError: an operation is unknown.
    """
    for step in steps:
        if step.name not in OPERATIONS and step != IDENTITY:
            raise UserError(
                f"unknown operation {step.name!r}; choose one of {', '.join(OPERATIONS)}"
            )
    used = {step.name for step in steps}
    names = np.array([step.name for step in steps])
    magnitudes = np.array([step.magnitude for step in steps])
    factors = blend_factor(magnitudes)

    def argument(name: str, values: np.ndarray, neutral: int) -> np.ndarray | None:
        if name not in used:
            return None
        return np.where(names == name, values, neutral).astype(np.int32)

    terms = _affine_terms(steps, height, width, translate)
    tables = np.stack([_gray_table(step, height * width) for step in steps])
    pads = (magnitudes / 10 * _CUTOUT_PAD).astype(np.int32)
    return Bank(
        kind=np.array([KINDS.index(_kind(step)) for step in steps], np.int32),
        tables=tables if used.intersection(TABLE_OPERATIONS) else None,
        affine=terms if used.intersection(GEOMETRIC) else None,
        color=argument("Color", factors, FACTOR_UNIT),
        sharpness=argument("Sharpness", factors, FACTOR_UNIT),
        cutout=argument("Cutout", 2 * pads, 0),
    )


def _kind(step: Step) -> str:
    if step.name in KINDS:
        return step.name
    return _KIND_OF.get(step.name, "table")


def blend_factor(magnitude: Magnitude) -> Magnitude:
    """Returns 1.8 M / 10 + 0.1 in units of 1 / FACTOR_UNIT."""
    return 9 * magnitude + 5


def _gray_table(step: Step, pixels: int) -> np.ndarray:
    """Returns a step's table, uint8 [256]; the identity for steps of other kinds."""
    level = step.magnitude / 10
    gray = np.arange(256)
    match step.name:
        case "Invert":
            table = 255 - gray
        case "Posterize":
            shift = min(max(8 - int(4 * level), 0), 7)
            table = gray >> shift << shift
        case "Solarize":
            table = np.where(gray < int(256 * level) % 256, gray, 255 - gray)
        case "SolarizeAdd":
            table = np.where(gray < 128, np.minimum(gray + int(110 * level), 255), gray)
        case "Brightness":
            table = _blend(0, gray, blend_factor(step.magnitude))
        case "Contrast":
            table = _blend(min(pixels // 256, 255), gray, blend_factor(step.magnitude))
        case _:
            table = gray
    return table.astype(np.uint8)


def _blend(start: int, gray: np.ndarray, factor: int) -> np.ndarray:
    """Returns `kernels.blend` for a range of levels, on the host."""
    total = FACTOR_UNIT * start + factor * (gray - start)
    return np.clip(total, 0, 255 * FACTOR_UNIT) // FACTOR_UNIT


def _affine_terms(
    steps: tuple[Step, ...], height: int, width: int, translate: int
) -> AffineTerms:
    matrices = np.array(
        [
            [_matrix(step, sign, height, width, translate) for sign in (1, -1)]
            for step in steps
        ]
    )  # float32 [S, 2 signs, 2 (x, y), 3]
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)
    return AffineTerms(
        columns=matrices[..., 0:1] * x, rows=matrices[..., 1:2] * y, offset=matrices[..., 2]
    )


def _matrix(step: Step, sign: int, height: int, width: int, translate: int) -> np.ndarray:
    """Returns float32 [2, 3], from (x, y, 1) of a pixel to (x, y) of its source."""
    matrix = np.eye(2, 3, dtype=np.float32)
    level = sign * step.magnitude / 10
    match step.name:
        case "Rotate":
            angle = math.radians(30 * level)
            cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            # About the center, unlike shears, which keep the first pixel in place.
            right, bottom = np.float32(width - 1), np.float32(height - 1)
            matrix[0] = cos, -sin, (right - (cos * right - sin * bottom)) / 2
            matrix[1] = sin, cos, (bottom - (sin * right + cos * bottom)) / 2
        case "ShearX":
            matrix[0, 1] = 0.3 * level
        case "ShearY":
            matrix[1, 0] = 0.3 * level
        case "TranslateX":
            matrix[0, 2] = translate * level
        case "TranslateY":
            matrix[1, 2] = translate * level
    return matrix
