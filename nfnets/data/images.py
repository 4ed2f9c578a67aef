"""Decoding, cropping and resizing of images.

Axes: H, W height and width of a stored image, S height and width of a result. All pixels
are uint8, RGB, in [0, 255].
"""

import dataclasses
import math

import cv2
import numpy as np

from nfnets.data.sources.base import Record, UnreadableRecordError
from nfnets.errors import UserError

# Margin of the center crop, in pixels, and attempts per random crop: as in the published
# NFNet code.
EVAL_PADDING = 32
CROP_ATTEMPTS = 10
EVAL_METHODS = ("resize_crop_32", "crop_resize", "crop_square", "resize")

_DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropOptions:
    """Random crops of training images.

    Attributes:
      image_size: height and width of the result, pixels.
      min_area: minimum area of the crop as a fraction of the image, in (0, 1].
      max_area: maximum area, in [min_area, 1].
      min_aspect: minimum aspect ratio (width / height) of the crop, > 0.
      max_aspect: maximum aspect ratio, >= min_aspect.
      flip: whether to mirror half of the images.

    Raises:
      UserError: a value is out of its range.
    """

    image_size: int
    min_area: float = 0.08
    max_area: float = 1.0
    min_aspect: float = 3 / 4
    max_aspect: float = 4 / 3
    flip: bool = True

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"data.image_size={self.image_size} must be at least 1")
        if not 0 < self.min_area <= self.max_area <= 1:
            raise UserError(
                f"data.min_area={self.min_area} and data.max_area={self.max_area}: must be "
                "0 < min_area <= max_area <= 1"
            )
        if not 0 < self.min_aspect <= self.max_aspect:
            raise UserError(
                f"data.min_aspect={self.min_aspect} and data.max_aspect={self.max_aspect}: "
                "must be 0 < min_aspect <= max_aspect"
            )


def decode(data: bytes) -> np.ndarray:
    """Decodes an image file to RGB.

    Gray images get three equal channels, 16-bit images become 8-bit, transparency is
    dropped and the EXIF orientation is ignored. A truncated file is an error; damage in the
    middle of a JPEG is not detected.

    Args:
      data: a JPEG, PNG, WebP or BMP file.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: OpenCV cannot decode the file, or it is truncated. The message does not
        name the file.
    """
    if not data:
        raise UserError("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS)
    except cv2.error as error:
        raise UserError(f"OpenCV cannot decode the image: {error.err}") from error
    if image is None:
        raise UserError("not an image that OpenCV can decode, or truncated")
    return image


def decode_record(record: Record) -> np.ndarray:
    """Returns a record's pixels, uint8 [H, W, 3].

    Raises:
      UnreadableRecordError: the image cannot be decoded.
    """
    if isinstance(record.image, np.ndarray):
        return record.image
    try:
        return decode(record.image)
    except UserError as error:
        raise UnreadableRecordError(record.name, str(error)) from error


def sample_crop(
    height: int, width: int, options: CropOptions, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws a crop uniform in area, log-uniform in aspect ratio and uniform in position.

    If none of ten draws fits into the image, the result is the largest centered crop whose
    aspect ratio is within the limits.

    Args:
      height: height of the image, pixels, >= 1.
      width: width of the image, pixels, >= 1.
      options: limits of area and aspect ratio.
      rng: source of randomness.

    Returns:
      (top, left, crop height, crop width), in pixels, inside the image.
    """
    areas = rng.uniform(options.min_area, options.max_area, CROP_ATTEMPTS)
    log_aspects = rng.uniform(
        math.log(options.min_aspect), math.log(options.max_aspect), CROP_ATTEMPTS
    )
    offset_y, offset_x = rng.random(2)
    for area, log_aspect in zip(areas.tolist(), log_aspects.tolist(), strict=True):
        pixels, aspect = area * height * width, math.exp(log_aspect)
        crop_height = max(1, round(math.sqrt(pixels / aspect)))
        crop_width = max(1, round(math.sqrt(pixels * aspect)))
        if crop_height <= height and crop_width <= width:
            top = int(offset_y * (height - crop_height + 1))
            left = int(offset_x * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, options.min_aspect), options.max_aspect)
    crop_height = max(1, min(height, round(width / aspect)))
    crop_width = max(1, min(width, round(height * aspect)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_crop(
    image: np.ndarray,
    options: CropOptions,
    rng: np.random.Generator,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a random crop of a training image, resized and randomly mirrored.

    Args:
      image: uint8 [H, W, 3].
      options: limits of the crop and size of the result.
      rng: source of randomness; the number of values drawn does not depend on the image.
      out: contiguous uint8 [S, S, 3] that receives the result; None: a new array.

    Returns:
      uint8 [S, S, 3]; `out` if given.
    """
    top, left, height, width = sample_crop(image.shape[0], image.shape[1], options, rng)
    mirrored = options.flip and rng.random() < 0.5
    region = image[top : top + height, left : left + width]
    if not mirrored:
        return _resize(region, options.image_size, options.image_size, out)
    return cv2.flip(_resize(region, options.image_size, options.image_size), 1, dst=out)


def preprocess_eval(
    image: np.ndarray, size: int, method: str, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes and crops an image for evaluation.

    Args:
      image: uint8 [H, W, 3].
      size: height and width S of the result, pixels.
      method: `resize_crop_32` resizes to `size + 32` in height and width, ignoring the
        aspect ratio, and crops the center (NFNets). `crop_resize` crops a central square
        with `size / (size + 32)` of the shorter side and resizes it (ResNets),
        `crop_square` one with the whole shorter side (timm's light NFNets). `resize`
        resizes the whole image (for images that fill their frame).
      out: uint8 [S, S, 3] that receives the result; None: a new array.

    Returns:
      uint8 [S, S, 3]; `out` if given.

    Raises:
      UserError: the method is unknown.
    """
    if method == "resize_crop_32":
        margin = EVAL_PADDING // 2
        whole = _resize(image, size + EVAL_PADDING, size + EVAL_PADDING)
        center = whole[margin : margin + size, margin : margin + size]
        if out is None:
            return np.ascontiguousarray(center)
        out[...] = center
        return out
    if method in ("crop_resize", "crop_square"):
        height, width = image.shape[:2]
        side = min(height, width)
        if method == "crop_resize":
            side = max(1, size * side // (size + EVAL_PADDING))
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        return _resize(image[top : top + side, left : left + side], size, size, out)
    if method == "resize":
        return _resize(image, size, size, out)
    raise UserError(
        f"unknown preprocessing {method!r}; choose one of {', '.join(EVAL_METHODS)}"
    )


def _resize(
    image: np.ndarray, height: int, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes with bicubic interpolation, no antialiasing, as in the published code."""
    return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_CUBIC)
