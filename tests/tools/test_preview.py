"""The contact sheet of augmented images."""

import cv2
import numpy as np
import pytest

from configs import digits
from nfnets.errors import UserError
from nfnets.tools import preview


def test_sheet_holds_originals_and_augmented_images():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (5, 40, 130, 3), dtype=np.uint8)
    augmented = rng.integers(0, 256, originals.shape).astype(np.float32)
    sheet = preview.contact_sheet(originals, augmented, ["caption"] * 5, columns=2)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    rows, columns = sheet.shape[0] // 3, sheet.shape[1] // 2
    for i, (original, distorted) in enumerate(zip(originals, augmented, strict=True)):
        pair = np.concatenate([original, distorted.astype(np.uint8)], axis=1)
        top, left = i // 2 * rows, i % 2 * columns
        cell = sheet[top : top + rows + 8, left : left + columns + 8]
        windows = np.lib.stride_tricks.sliding_window_view(cell, pair.shape)
        assert np.any(np.all(windows == pair, axis=(-1, -2, -3)))
        assert np.any(cell[pair.shape[0] :] == 0)  # the caption's ink
    # The last cell is empty.
    assert np.all(sheet[2 * rows + 8 :, columns + 8 :] == 255)


def test_small_images_are_enlarged():
    images = np.zeros((1, 8, 8, 3), np.uint8)
    sheet = preview.contact_sheet(images, images, [""], columns=1)
    assert np.sum(np.all(sheet == 0, axis=-1)) == 2 * 128 * 128


def test_sheet_of_unequal_parts():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="as many captions"):
        preview.contact_sheet(images, images, ["one"])


def test_labels_in_words():
    labels = np.array([[0, 0.25, 0.75], [1, 0, 0], [0.4, 0.35, 0.25]])
    assert preview.describe_labels(labels, ("cat", "dog", "owl")) == [
        "owl 0.75, dog 0.25",
        "cat 1.00",
        "cat 0.40, dog 0.35",
    ]


def test_sheet_of_a_training_step():
    config = digits.get_config()
    first, second = preview.draw_step(config, 0), preview.draw_step(config, 1)
    assert first.shape == second.shape
    assert np.mean(first != second) > 0.1
    np.testing.assert_array_equal(first, preview.draw_step(config, 0))


def test_the_command_line(tmp_path, capsys):
    out = tmp_path / "preview.png"
    preview.main(["--config=configs/digits.py", f"--out={out}", "--step=1"])
    sheet = preview.draw_step(digits.get_config(), 1)
    np.testing.assert_array_equal(cv2.imread(str(out)), sheet[:, :, ::-1])
    height, width, _ = sheet.shape
    assert capsys.readouterr().out == f"{out}: {width} x {height} pixels\n"
    for arguments, message in (
        (["--step=-1"], "--step=-1 must be at least 0"),
        ([f"--out={tmp_path}/none/x.png"], "the folder must exist"),
        ([f"--out={tmp_path}/x.txt"], "end in .png or .jpg"),
    ):
        with pytest.raises(UserError, match=message):
            preview.main(["--config=configs/digits.py", *arguments])
