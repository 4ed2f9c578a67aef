"""`nfnets check`: what it finds in a folder, and its exit code."""

import pytest

from nfnets.errors import UserError
from nfnets.tools import check
from tests.data.helpers import encoded, picture


def write(path, seed, extension=".png", shape=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(*shape, seed), extension))


@pytest.fixture
def photos(tmp_path):
    """Two classes of different images."""
    root = tmp_path / "photos"
    seed = 0
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                write(root / split / name / f"{number}.png", seed := seed + 1)
    return root


def run(root, capsys, *options):
    code = check.main([str(root), *options])
    return code, capsys.readouterr().out


def test_a_clean_folder(photos, capsys):
    code, text = run(photos, capsys)
    assert code == 0
    lines = [line.split() for line in text.splitlines() if line]
    assert lines[0][1:3] == ["12", "images,"]
    assert lines[1:] == [
        ["class", "train", "val"],
        ["cat", "4", "2"],
        ["dog", "4", "2"],
        ["2", "classes", "8", "4"],
        ["size:", "50", "x", "40", "pixels"],
        ["ready", "for", "training"],
    ]


def test_findings_are_named(photos, capsys):
    write(photos / "train/cat/scan.tif", 50, ".tif", (400, 300))
    write(photos / "train/cat/nameless", 51, ".jpg")
    write(photos / "train/dog/wrong.jpg", 52, ".png")
    write(photos / "train/dog/tiny.png", 53, shape=(8, 50))
    write(photos / "train/dog/long.png", 54, shape=(40, 300))
    write(photos / "train/dog/same.png", 1)  # as train/cat/0.png
    write(photos / "val/dog/leak.png", 2)  # as train/cat/1.png
    (photos / "train/dog/bad.jpg").write_bytes(b"no image")
    (photos / "train/dog/notes.txt").write_bytes(b"text")
    write(photos / "train/loose.png", 60)
    code, text = run(photos, capsys)
    assert code == 0  # a few unreadable training images are replaced
    for expected in (
        "sizes: 50 x 8 (smallest), 50 x 40 (median), 300 x 400 (largest) pixels",
        "unreadable: 1\n  train/dog/bad.jpg: not an image that OpenCV can decode",
        "odd: 4\n  train/cat/nameless: a JPEG file named without a suffix\n"
        "  train/dog/long.png: long, 300 x 40 pixels\n"
        "  train/dog/tiny.png: small, 50 x 8 pixels\n"
        "  train/dog/wrong.jpg: a PNG file named .jpg\n",
        "optimistic: 1\n  train/cat/1.png = val/dog/leak.png\n",
        "several times in a split: 1\n  train/cat/0.png = train/dog/same.png\n",
        "train: left out 1 file that is not an image of a known format",
        ": dog/notes.txt\n",
        "train: left out images in no class (1): loose.png\n",
    ):
        assert expected in text
    _, short = run(photos, capsys, "--show=1")
    assert "  ... and 3 more (--show=4)\n" in short


def test_what_would_stop_a_training(photos, capsys):
    for number in range(2):
        (photos / f"train/dog/bad{number}.jpg").write_bytes(b"no image")
    assert run(photos, capsys)[0] == 0
    code, text = run(photos, capsys, "--max_bad_records=1")
    assert code == 1
    assert f"ERROR: 2 unreadable images in {photos}/train, more than data.max" in text
    code, text = run(photos / "train", capsys)
    assert code == 1 and "2 unreadable images" in text and "evaluation may get" in text
    (photos / "val").rename(photos / "holdout")
    code, text = run(photos, capsys, "--eval_split=holdout")
    assert code == 0 and "holdout" in text.splitlines()[2]
    (photos / "holdout").rename(photos / "val")
    (photos / "val/cat/cut.png").write_bytes(encoded(picture(), ".png")[:-50])
    (photos / "val/ape").mkdir()
    code, text = run(photos, capsys)
    assert code == 1
    assert f"ERROR: 1 unreadable image in {photos}/val\n" in text
    assert "ERROR: 1 class folders in " in text and "e.g. ape;" in text
    assert text.endswith("this would stop a training\n")


def test_folders_of_other_layouts(photos, capsys):
    code, text = run(photos / "train", capsys)
    assert code == 0 and "data.eval_fraction" in text and "8\n" in text
    code, text = run(photos / "train/cat", capsys)
    assert code == 1 and "ERROR: " in text and "4 images without a class" in text
    with pytest.raises(UserError, match="nowhere does not exist"):
        check.main(["nowhere"])
