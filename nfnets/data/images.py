"""Decoding, cropping and resizing of images.

Axes: H, W height and width of a stored image, S height and width of a result. All pixels
are uint8, RGB, in [0, 255].
"""

from collections.abc import Sequence
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
# Area and aspect ratio of each attempt, place in two directions, mirroring.
DRAWS_PER_CROP = 2 * CROP_ATTEMPTS + 3
# Side of the center crop divided by that of the resized image: timm's default.
CROP_FRACTION = 0.875
EVAL_METHODS = ("resize_crop_32", "crop_resize", "resize", "squash", "center")

_DECODE_FLAGS = {
    True: cv2.IMREAD_COLOR_RGB,
    False: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
}


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


def decode(data: bytes, *, apply_exif: bool = True) -> np.ndarray:
    """Decodes an image file to RGB.

    Gray images get three equal channels, 16-bit images become 8-bit, and transparency is
    dropped. A truncated file is an error; damage in the middle of a JPEG is not detected.

    Args:
      data: an image file of `listing.FORMATS`; of animations, the first frame is decoded.
      apply_exif: whether to turn the image as its EXIF orientation demands, as photo
        viewers do. The published weights were trained without.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: OpenCV cannot decode the file, or it is truncated. The message does not
        name the file.
    """
    if not data:
        raise UserError("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS[apply_exif])
    except cv2.error as error:
        raise UserError(f"OpenCV cannot decode the image: {error.err}") from error
    if image is None:
        raise UserError("not an image that OpenCV can decode, or truncated")
    return image


def decode_record(record: Record, *, apply_exif: bool = True) -> np.ndarray:
    """Returns a record's pixels, uint8 [H, W, 3].

    Args:
      record: decoded or not.
      apply_exif: see `decode`.

    Raises:
      UnreadableRecordError: the image cannot be decoded.
    """
    if isinstance(record.image, np.ndarray):
        return record.image
    try:
        return decode(record.image, apply_exif=apply_exif)
    except UserError as error:
        raise UnreadableRecordError(record.name, str(error)) from error


def sample_crop(
    height: int, width: int, options: CropOptions, draws: Sequence[float]
) -> tuple[int, int, int, int]:
    """Draws a crop uniform in area, log-uniform in aspect ratio and uniform in position.

    If none of ten draws fits into the image, the result is the largest centered crop whose
    aspect ratio is within the limits.

    Args:
      height: height of the image, pixels, >= 1.
      width: width of the image, pixels, >= 1.
      options: limits of area and aspect ratio.
      draws: `DRAWS_PER_CROP` random numbers, uniform in [0, 1).

    Returns:
      (top, left, crop height, crop width), in pixels, inside the image.
    """
    least_log = math.log(options.min_aspect)
    log_range = math.log(options.max_aspect) - least_log
    area_range = options.max_area - options.min_area
    for attempt in range(CROP_ATTEMPTS):
        pixels = (options.min_area + area_range * draws[2 * attempt]) * height * width
        aspect = math.exp(least_log + log_range * draws[2 * attempt + 1])
        crop_height = max(1, round(math.sqrt(pixels / aspect)))
        crop_width = max(1, round(math.sqrt(pixels * aspect)))
        if crop_height <= height and crop_width <= width:
            top = int(draws[-3] * (height - crop_height + 1))
            left = int(draws[-2] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, options.min_aspect), options.max_aspect)
    crop_height = max(1, min(height, round(width / aspect)))
    crop_width = max(1, min(width, round(height * aspect)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_crop(
    image: np.ndarray,
    options: CropOptions,
    draws: Sequence[float],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a random crop of a training image, resized and randomly mirrored.

    Args:
      image: uint8 [H, W, 3].
      options: limits of the crop and size of the result.
      draws: as in `sample_crop`; the last decides on mirroring.
      out: contiguous uint8 [S, S, 3] that receives the result; None: a new array.

    Returns:
      uint8 [S, S, 3]; `out` if given.
    """
    top, left, height, width = sample_crop(image.shape[0], image.shape[1], options, draws)
    mirrored = options.flip and draws[-1] < 0.5
    region = image[top : top + height, left : left + width]
    if not mirrored:
        return _resize(region, options.image_size, options.image_size, out)
    return cv2.flip(_resize(region, options.image_size, options.image_size), 1, dst=out)


def preprocess_eval(
    image: np.ndarray,
    size: int,
    method: str,
    crop_fraction: float | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Resizes and crops an image for evaluation.

    Args:
      image: uint8 [H, W, 3].
      size: height and width S of the result, pixels.
      method: `resize_crop_32` resizes to `size + 32` in height and width, ignoring the
        aspect ratio, and crops the center (NFNets). `crop_resize` crops a central square
        with `size / (size + 32)` of the shorter side and resizes it (ResNets). `resize`
        resizes the whole image (for images that fill their frame). `squash` and `center`
        are timm's: they resize with antialiasing to `size / crop_fraction`, in height and
        width or the shorter side, and crop the center.
      crop_fraction: of `squash` and `center`, in (0, 1]; None: `CROP_FRACTION`.
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
    if method == "crop_resize":
        height, width = image.shape[:2]
        side = max(1, size * min(height, width) // (size + EVAL_PADDING))
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        return _resize(image[top : top + side, left : left + side], size, size, out)
    if method == "resize":
        return _resize(image, size, size, out)
    if method in ("squash", "center"):
        side = math.floor(size / (crop_fraction or CROP_FRACTION))
        height, width = image.shape[:2]
        shorter = min(height, width) if method == "center" else None
        height, width = (side * n // (shorter or n) for n in (height, width))
        # Rounded to the nearest, as by torchvision.
        top, left = round((height - size) / 2), round((width - size) / 2)
        resized = _resize_antialiased(image, height, width)
        result = np.empty((size, size, 3), np.uint8) if out is None else out
        result[...] = resized[top : top + size, left : left + size]
        return result
    raise UserError(
        f"unknown preprocessing {method!r}; choose one of {', '.join(EVAL_METHODS)}"
    )


def _resize(
    image: np.ndarray, height: int, width: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes with bicubic interpolation, no antialiasing, as in the published code."""
    return cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_CUBIC)


def _resize_antialiased(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes with bicubic interpolation that averages when it shrinks, as by Pillow."""
    for size in (width, height):
        image = image.transpose(1, 0, 2)
        rows = image.reshape(len(image), -1).astype(np.float32)
        resized = _bicubic_weights(len(image), size) @ rows
        image = np.clip(np.rint(resized), 0, 255).astype(np.uint8).reshape(size, -1, 3)
    return image


def _bicubic_weights(length: int, new_length: int) -> np.ndarray:
    """Returns the weights of the old pixels in each new one, float32 [new, old]."""
    scale = length / new_length
    centers = (np.arange(new_length) + 0.5) * scale
    distances = np.arange(length) + 0.5 - centers[:, None]
    x = np.minimum(np.abs(distances) / max(scale, 1.0), 2.0)
    # Keys' cubic with a = -1/2; zero from 2 on.
    weights = np.where(
        x < 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    )
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
