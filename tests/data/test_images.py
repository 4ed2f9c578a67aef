"""Decoding against other encoders, crops against hand-computed geometry."""

import io
import math

import cv2
import numpy as np
from PIL import Image
import pytest

from nfnets import data
from nfnets.data import images
from nfnets.errors import UserError
from tests.data.helpers import encoded, picture
from tests.reference import DATA

EVAL_SIZE = 256


@pytest.mark.parametrize("method", ["resize_crop_32", "crop_resize"])
def test_evaluation_agrees_with_the_published_preprocessing(method):
    image = data.decode((DATA / "preprocess.jpg").read_bytes())
    result = data.preprocess_eval(image, EVAL_SIZE, method)
    with np.load(DATA / "preprocess.npz") as arrays:
        difference = np.abs(result.astype(float) - arrays[method].astype(float)).mean()
    print(f"{method}: {difference:.3f} gray levels")  # 1.08 and 1.08
    assert difference <= 1.5


def test_eval_resize_crop_is_the_center_of_a_squeezed_image():
    image = np.random.default_rng(0).integers(0, 256, (72, 72, 3), np.uint8)
    # 72 = 40 + 32, so that nothing is resized.
    result = data.preprocess_eval(image, 40, "resize_crop_32")
    np.testing.assert_array_equal(result, image[16:56, 16:56])
    wide = picture(60, 200)
    squeezed = cv2.resize(wide, (72, 72), interpolation=cv2.INTER_CUBIC)
    result = data.preprocess_eval(wide, 40, "resize_crop_32")
    np.testing.assert_array_equal(result, squeezed[16:56, 16:56])


def test_eval_resize_keeps_the_whole_image():
    image = picture(60, 200)
    expected = cv2.resize(image, (40, 40), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(data.preprocess_eval(image, 40, "resize"), expected)


def test_eval_crop_resize_takes_the_central_square():
    image = np.random.default_rng(0).integers(0, 256, (73, 98, 3), np.uint8)
    # The square's side is 40 / 72 * 73 = 40.6, cut to 40. Odd margins round up: 33 -> 17.
    result = data.preprocess_eval(image, 40, "crop_resize")
    np.testing.assert_array_equal(result, image[17:57, 29:69])


@pytest.mark.parametrize("shape", [(375, 500), (90, 61), (20, 33)])
@pytest.mark.parametrize("method", ["squash", "center"])
def test_timms_preprocessing_is_that_of_pillow(method, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = cv2.GaussianBlur(image, (5, 5), 1.5)
    size, side = 48, 53  # 48 / 0.9 = 53.3
    height, width = shape
    if method == "squash":
        new = side, side
    elif height < width:
        new = side, int(side * width / height)
    else:
        new = int(side * height / width), side
    resized = Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC)
    top, left = (round((length - size) / 2) for length in new)
    want = np.asarray(resized)[top : top + size, left : left + size].astype(int)
    got = data.preprocess_eval(image, size, method, 0.9)
    assert np.abs(got - want).max() <= 1
    # Pillow rounds between the two directions, whose order depends on its version.
    assert np.mean(got != want) < 0.25
    default = data.preprocess_eval(image, size, method)
    np.testing.assert_array_equal(default, data.preprocess_eval(image, size, method, 0.875))


@pytest.mark.parametrize("method", images.EVAL_METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (20, 30)])
def test_eval_takes_any_size_and_writes_where_it_is_told(method, shape):
    image = picture(*shape)
    out = np.zeros((2, 16, 16, 3), np.uint8)
    result = data.preprocess_eval(image, 16, method, out=out[1])
    np.testing.assert_array_equal(out[1], data.preprocess_eval(image, 16, method))
    assert result is not None and np.shares_memory(result, out)
    assert not out[0].any()


def test_unknown_eval_method_is_named():
    methods = "resize_crop_32, crop_resize, resize, squash, center"
    with pytest.raises(ValueError, match=rf"'central'.*{methods}"):
        data.preprocess_eval(picture(), 16, "central")


@pytest.mark.parametrize("extension", [".png", ".bmp"])
def test_lossless_files_decode_to_their_pixels(extension):
    image = picture()
    np.testing.assert_array_equal(data.decode(encoded(image, extension)), image)


def test_lossless_webp_decodes_to_its_pixels():
    image = picture()
    file = encoded(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101)
    np.testing.assert_array_equal(data.decode(file), image)


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg_decodes_in_rgb_order(progressive):
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (200, 100, 20)
    file = encoded(image, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    assert np.abs(data.decode(file).astype(int) - image).max() <= 3


def test_gray_becomes_three_equal_channels():
    gray = picture()[..., 0]
    result = data.decode(encoded(gray, ".png"))
    np.testing.assert_array_equal(result, np.repeat(gray[..., None], 3, axis=-1))


def test_sixteen_bits_become_eight():
    image = picture().astype(np.uint16) * 257
    np.testing.assert_array_equal(data.decode(encoded(image, ".png")), picture())


def pillow_file(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_transparency_is_dropped():
    image = np.concatenate([picture(), np.full((40, 50, 1), 7, np.uint8)], axis=-1)
    result = data.decode(pillow_file(Image.fromarray(image), "PNG"))
    np.testing.assert_array_equal(result, picture())


def test_palettes_are_resolved():
    image = Image.fromarray(picture()).convert("P")
    result = data.decode(pillow_file(image, "PNG"))
    np.testing.assert_array_equal(result, np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb():
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = (200, 100, 20)
    file = pillow_file(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(data.decode(file).astype(int) - image).max() <= 4


def test_orientation_tag_is_applied_or_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by a quarter turn
    plain = Image.fromarray(picture(40, 50))
    stored = data.decode(pillow_file(plain, "JPEG"))
    tagged = pillow_file(plain, "JPEG", exif=exif)
    np.testing.assert_array_equal(data.decode(tagged), np.rot90(stored, -1))
    np.testing.assert_array_equal(data.decode(tagged, apply_exif=False), stored)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_files_cut_short_are_errors(extension, share):
    file = encoded(picture(200, 300), extension)
    with pytest.raises(ValueError, match=r"truncated|empty|cannot decode"):
        data.decode(file[: int(share * len(file))])


def test_damaged_record_is_named():
    record = data.Record(b"\xff\xd8\xff nonsense", 3, "train/cat/1.jpg")
    with pytest.raises(data.UnreadableRecordError, match=r"cat/1\.jpg: not an image"):
        images.decode_record(record)


def draw(count, height, width, **options):
    crop = images.CropOptions(image_size=8, **options)
    draws = np.random.default_rng(0).random((count, images.DRAWS_PER_CROP))
    return np.array([images.sample_crop(height, width, crop, row) for row in draws])


def test_crops_are_uniform_in_area_log_aspect_and_place():
    # Crops that do not fit are redrawn, which favors small ones. With these limits on the
    # area, all crops fit (0.5 * 4 / 3 < 1).
    crops = draw(20_000, 4000, 4000, min_area=0.1, max_area=0.5)
    top, left, height, width = crops.T
    share = (height * width / 4000**2 - 0.1) / 0.4
    log_aspect = np.log(width / height) / np.log(4 / 3)
    assert share.min() > -1e-3 and share.max() < 1 + 1e-3
    for values in (
        share,
        (log_aspect + 1) / 2,
        top / (4000 - height),
        left / (4000 - width),
    ):
        histogram, _ = np.histogram(values, bins=10, range=(-1e-3, 1 + 1e-3))
        assert abs(histogram / len(values) - 0.1).max() < 0.01


def test_crops_stay_inside_and_reach_every_edge():
    top, left, height, width = draw(5000, 7, 5).T
    assert top.min() == left.min() == 0
    assert (top + height).max() == 7 and (left + width).max() == 5
    assert height.min() >= 1 and width.min() >= 1


def crop_by_hand(height, width, draws):
    """The same crop, step by step as the paper on Inception networks has it."""
    areas = 0.08 + 0.92 * draws[:20:2]
    aspects = (3 / 4) ** (1 - 2 * draws[1:20:2])
    place_y, place_x = draws[20:22]
    crop_heights = np.maximum(1, np.round(np.sqrt(areas * height * width / aspects)))
    crop_widths = np.maximum(1, np.round(np.sqrt(areas * height * width * aspects)))
    fitting = np.flatnonzero((crop_heights <= height) & (crop_widths <= width))
    if not len(fitting):
        return None
    crop_height, crop_width = int(crop_heights[fitting[0]]), int(crop_widths[fitting[0]])
    top = math.floor(place_y * (height + 1 - crop_height))
    return top, math.floor(place_x * (width + 1 - crop_width)), crop_height, crop_width


@pytest.mark.parametrize(("height", "width"), [(300, 500), (7, 5), (4, 9)])
def test_crop_geometry_is_the_formula(height, width):
    crop = images.CropOptions(image_size=8)
    for draws in np.random.default_rng(0).random((300, 23)):
        expected = crop_by_hand(height, width, draws)
        result = images.sample_crop(height, width, crop, draws)
        assert result == expected or expected is None


# Draws areas of twenty images.
NEVER_FITS = [20.0, 0.5] * 10 + [0.0] * 3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (30, 401, (0, 180, 30, 40)),  # too wide: width = 30 * 4 / 3
        (401, 30, (180, 0, 40, 30)),  # too tall: height = 30 / (3 / 4)
        (100, 110, (0, 0, 100, 110)),  # within the limits: all of it
        (1, 10, (0, 4, 1, 1)),
    ],
)
def test_fallback_is_the_largest_centered_crop_within_the_limits(height, width, expected):
    crop = images.CropOptions(image_size=8)
    assert images.sample_crop(height, width, crop, NEVER_FITS) == expected


@pytest.mark.parametrize("flip", [False, True])
def test_random_crop_is_the_resized_region_and_perhaps_its_mirror_image(flip):
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    crop = images.CropOptions(image_size=24, flip=flip)
    mirrored = 0
    for draws in np.random.default_rng(0).random((200, 23)):
        top, left, height, width = images.sample_crop(60, 80, crop, draws)
        region = image[top : top + height, left : left + width]
        expected = cv2.resize(region, (24, 24), interpolation=cv2.INTER_CUBIC)
        out = np.zeros((24, 24, 3), np.uint8)
        result = images.random_crop(image, crop, draws, out=out)
        np.testing.assert_array_equal(result, out)
        if flip and draws[22] < 0.5:
            expected = expected[:, ::-1]
            mirrored += 1
        np.testing.assert_array_equal(result, expected)
    assert 80 < mirrored < 120 if flip else mirrored == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "data.image_size=0 must be"),
        ({"min_area": 0.0}, "data.min_area=0.0 and"),
        ({"max_area": 1.1}, "data.max_area=1.1: must be 0 < min_area <= max_area <= 1"),
        ({"min_area": 0.5, "max_area": 0.4}, "data.min_area=0.5 and data.max_area=0.4"),
        ({"min_aspect": 0.0}, "data.min_aspect=0.0 and"),
        ({"min_aspect": 2.0, "max_aspect": 1.0}, "data.max_aspect=1.0: must be 0 < min"),
    ],
)
def test_impossible_crops_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        images.CropOptions(**({"image_size": 8} | options))
