"""Image folders: scanning, images held out, and errors."""

import errno
import os
import shutil
import unicodedata

import cv2
import numpy as np
import pytest

from nfnets import data
from nfnets.data.sources import folder_files, listing
from nfnets.errors import UserError
from tests.data.helpers import encoded, picture, write_folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes."""
    root = tmp_path / "pictures"
    write_folder(root, {"train": {"dog": 3, "cat": 2}, "val": {"cat": 1, "dog": 1}})
    return root


def write_odd_files(folder):
    """Writes images without a usual name, and other files."""
    image = encoded(picture(), ".jpg")
    (folder / "no_suffix").write_bytes(image)
    (folder / "odd.jpg_original").write_bytes(encoded(picture(), ".png"))
    (folder / "scan.TIF").write_bytes(encoded(picture(), ".tif"))
    (folder / "phone.heic").write_bytes(b"\0\0\0\x20ftypheic")
    (folder / "raw.nef").write_bytes(encoded(picture(), ".tif"))
    (folder / "notes.txt").write_bytes(b"P1 is not an image")


def names(source):
    return [os.path.basename(source[i].name) for i in range(len(source))]


def labels(source):
    return [source[i].label for i in range(len(source))]


def test_classes_are_the_folders_in_order(pictures):
    dataset = data.open_dataset(f"folder:{pictures}")
    assert dataset.class_names == ("cat", "dog")
    assert labels(dataset.train) == [0, 0, 1, 1, 1]
    assert names(dataset.train) == [
        "train_cat_0.jpg",
        "train_cat_1.jpg",
        "train_dog_0.jpg",
        "train_dog_1.jpg",
        "train_dog_2.jpg",
    ]
    record = dataset.train[4]
    assert record.name == str(pictures / "train/dog/train_dog_2.jpg")
    assert record.image == (pictures / "train/dog/train_dog_2.jpg").read_bytes()
    assert labels(dataset.evaluation) == [0, 1]
    assert not dataset.is_fake


def test_images_anywhere_under_a_class_count(tmp_path):
    counts = {"a": 1, "a/deep/deeper": 1, "a/also": 1, "b": 1}
    write_folder(tmp_path, {"train": counts, "val": {"a": 1}})
    for name in ("x.JPEG", "x.Png", "x.webp", "x.BMP", "é x.jpeg"):
        extension = "." + name.split(".")[-1].lower()
        (tmp_path / "train/b" / name).write_bytes(encoded(picture(), extension))
    (tmp_path / "train/b/.hidden.jpg").write_bytes(b"")
    (tmp_path / "train/b/notes.txt").write_bytes(b"")
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/loose.jpg").write_bytes(b"")
    source = data.open_dataset(f"folder:{tmp_path}").train
    assert labels(source) == [0] * 3 + [1] * 6
    assert names(source)[:3] == [
        "train_a_0.jpg",
        "train_a_also_0.jpg",
        "train_a_deep_deeper_0.jpg",
    ]
    assert set(names(source)[3:]) == {
        "train_b_0.jpg",
        "x.JPEG",
        "x.Png",
        "x.webp",
        "x.BMP",
        "é x.jpeg",
    }
    with data.eval_batches(source, batch_size=4, image_size=8) as batches:
        assert sum(batch.mask.sum() for batch in batches) == 9


@pytest.mark.parametrize(
    ("exists", "asked"), [("val", "validation"), ("validation", "val"), ("test", "test")]
)
def test_evaluation_folder_has_two_usual_names(tmp_path, exists, asked):
    write_folder(tmp_path, {"train": {"a": 1}, exists: {"a": 1}})
    dataset = data.open_dataset(f"folder:{tmp_path}", eval_split=asked)
    assert names(dataset.evaluation) == [f"{exists}_a_0.jpg"]


def test_evaluation_may_have_fewer_classes(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1, "b": 1, "c": 1}, "val": {"c": 2}})
    dataset = data.open_dataset(f"folder:{tmp_path}")
    assert labels(dataset.evaluation) == [2, 2]


def test_evaluation_split_alone(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"b": 1}})
    dataset = data.open_dataset(f"folder:{tmp_path}", splits="eval")
    assert len(dataset.train) == 0
    assert dataset.class_names == ("a", "b") and labels(dataset.evaluation) == [1]
    shutil.rmtree(tmp_path / "train")
    dataset = data.open_dataset(f"folder:{tmp_path}", splits="eval")
    assert dataset.class_names == ("b",) and labels(dataset.evaluation) == [0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"val": {"a": 1}}, "train does not exist; .* has val; check data.train_split"),
        ({"train": {"a": 1}}, "validation does not exist; set data.eval_fraction=0.1"),
        ({"train": {".": 1}, "val": {"a": 1}}, "train has no class folders"),
        ({"train": {"a": 0}, "val": {"a": 1}}, "train has no images; expected JPEG, PNG, "),
        (
            {"train": {"a": 1}, "test": {"a": 1}, "valid": {"a": 1}, "other": {"a": 1}},
            "validation does not exist; .* has test, valid: set data.eval_split=test, or",
        ),
        ({"cat": {".": 2}, "dog": {".": 1}}, r"expected .*CLASS/IMAGE; .*\(cat, dog\) are"),
        ({}, "expected .*/train/CLASS/IMAGE and .*/val/CLASS/IMAGE, but .* has no folders"),
        ({"train": {"a": 1, "b": 0}, "val": {"a": 1}}, "1 class folders .* e.g. b;"),
        ({"train": {"a": 1}, "val": {"a": 1, "x": 1}}, "not in the training .* e.g. x;"),
    ],
)
def test_incomplete_folders_are_errors(tmp_path, counts, message):
    write_folder(tmp_path, counts)
    with pytest.raises(UserError, match=message) as caught:
        data.open_dataset(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_images_without_a_class_are_told_the_layout(tmp_path):
    write_folder(tmp_path.parent, {tmp_path.name: {".": 3}})
    with pytest.raises(UserError, match=r"train/CLASS/IMAGE .* 3 images without a class"):
        data.open_dataset(f"folder:{tmp_path}")


def test_links_are_followed_but_not_in_cycles(tmp_path):
    write_folder(tmp_path, {"elsewhere": {"x": 2}, "train": {"a": 1}, "val": {"a": 1}})
    (tmp_path / "train/b").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "train/a/link.jpg").symlink_to(tmp_path / "elsewhere/x/elsewhere_x_0.jpg")
    (tmp_path / "train/a/cycle").symlink_to(tmp_path / "train")
    source = data.open_dataset(f"folder:{tmp_path}").train
    assert labels(source) == [0, 0, 1, 1]
    assert names(source)[:2] == ["link.jpg", "train_a_0.jpg"]
    assert data.decode(source[0].image).shape == (40, 50, 3)


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, {"train": {"a": 1}, "val": {"a": 1}})

    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path / "a"))

    monkeypatch.setattr(folder_files, "scan", forbid)
    with pytest.raises(UserError, match=r"cannot read .*train/a: Permission denied"):
        data.open_dataset(f"folder:{tmp_path}")


def test_deleted_file_is_unreadable(pictures):
    source = data.open_dataset(f"folder:{pictures}").train
    (pictures / "train/cat/train_cat_1.jpg").unlink()
    with pytest.raises(data.UnreadableRecordError, match=r"train_cat_1\.jpg: No such file"):
        _ = source[1]


def test_class_names_file(pictures):
    (pictures / "class_names.txt").write_text("dog  a good dog\n")
    for splits in ("both", "eval"):
        dataset = data.open_dataset(f"folder:{pictures}", splits=splits)
        assert dataset.class_names == ("cat", "a good dog")


def test_images_are_recognized_by_content_and_others_are_named(pictures):
    write_odd_files(pictures / "train/cat")
    (pictures / "train/loose.jpg").write_bytes(b"")
    lines = []
    dataset = data.open_dataset(f"folder:{pictures}", log=lines.append)
    assert names(dataset.train)[:5] == [
        "no_suffix",
        "odd.jpg_original",
        "scan.TIF",
        "train_cat_0.jpg",
        "train_cat_1.jpg",
    ]
    for index in range(5):
        assert data.decode(dataset.train[index].image).shape == (40, 50, 3)
    formats = ", ".join(listing.FORMATS)
    assert lines == [
        f"{pictures}/train: left out 3 files that are not images of a known format "
        f"({formats}): cat/notes.txt, cat/phone.heic, cat/raw.nef",
        f"{pictures}/train: left out images in no class (1): loose.jpg",
    ]


@pytest.mark.parametrize("name", listing.FORMATS)
def test_formats_are_recognized_and_decoded(name):
    image = picture() if name != "PNM" else picture()[..., :1]
    suffix = ".pgm" if name == "PNM" else listing.FORMATS[name][0][0]
    file = encoded(np.ascontiguousarray(image), suffix)
    assert listing.sniff(file[:16]) == name
    assert cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) is not None


def test_a_replaced_folder_is_listed_again(pictures):
    """With the times of its directories restored, as an archive's are."""
    cat = pictures / "train/cat"
    assert len(data.open_dataset(f"folder:{pictures}").train) == 5
    times = os.stat(cat)
    (cat / "train_cat_0.jpg").rename(cat / "other.jpg")
    os.utime(cat, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert names(data.open_dataset(f"folder:{pictures}").train)[0] == "other.jpg"


COMPOSED = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def test_accents_may_be_stored_in_two_ways(tmp_path):
    write_folder(tmp_path, {"train": {COMPOSED: 1, "b": 1}, "val": {DECOMPOSED: 1}})
    dataset = data.open_dataset(f"folder:{tmp_path}")
    assert dataset.class_names == ("b", COMPOSED)
    assert labels(dataset.evaluation) == [1]
    write_folder(tmp_path, {"train": {DECOMPOSED: 1}})
    with pytest.raises(
        UserError, match=r"'cafe\\u0301' and 'caf\\xe9' in .* look the same"
    ):
        data.open_dataset(f"folder:{tmp_path}")


def held_out(path, **options):
    dataset = data.open_dataset(f"folder:{path}", **{"eval_fraction": 0.25} | options)
    train, evaluation = names(dataset.train), names(dataset.evaluation)
    assert not set(train) & set(evaluation)
    return train, evaluation


def test_a_fraction_of_each_class_is_held_out(tmp_path):
    write_folder(tmp_path, {"train": {"a": 12, "b": 4, "c": 2, "d": 1}})
    train, evaluation = held_out(tmp_path)
    assert len(train) + len(evaluation) == 19
    counts = [sum(f"_{name}_" in file for file in evaluation) for name in "abcd"]
    assert counts == [3, 1, 1, 0]
    # The choice is pinned: another one would train on images that were held out.
    assert [name[6:-4] for name in evaluation] == ["a_11", "a_4", "a_9", "b_1", "c_1"]
    assert held_out(tmp_path, seed=1)[1] != evaluation
    assert held_out(tmp_path, splits="eval") == ([], evaluation)
    # A folder of the classes alone, and files in another order.
    assert held_out(tmp_path / "train") == (train, evaluation)
    (tmp_path / "train/a/train_a_0.jpg").unlink()
    assert len(set(held_out(tmp_path)[1]) & set(evaluation)) >= 4


def test_a_fraction_and_a_folder_exclude_each_other(pictures):
    with pytest.raises(UserError, match=r"eval_fraction=0.25 .* folder .*/val; set .*=0"):
        held_out(pictures)
    lines = []
    _, evaluation = held_out(pictures, splits="eval", log=lines.append)
    assert evaluation == ["val_cat_0.jpg", "val_dog_0.jpg"]
    assert lines == [f"{pictures}/val is evaluated, not the images that are held out"]


def test_fractions_that_cannot_be_held_out(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1, "b": 1}})
    with pytest.raises(UserError, match="no class in .*/train has two images"):
        held_out(tmp_path)
    (tmp_path / "train").rename(tmp_path / "Training")
    with pytest.raises(UserError, match=r"has Training; check data.train_split"):
        held_out(tmp_path)
    with pytest.raises(UserError, match=r"is for image folders, not digits"):
        data.open_dataset("digits", eval_fraction=0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("defect", ["text", "empty", "cut", "missing"])
def test_unusable_evaluation_files_are_found(pictures, fraction, defect):
    root = pictures / "train" if fraction else pictures
    dataset = data.open_dataset(f"folder:{root}", eval_fraction=fraction)
    data.check_files(dataset.evaluation)
    path = dataset.evaluation[0].name
    content = {"text": b"no image", "empty": b"", "cut": dataset.evaluation[0].image[:-9]}
    if defect == "missing":
        os.unlink(path)
    else:
        with open(path, "wb") as file:
            file.write(content[defect])
    reason = os.strerror(errno.ENOENT) if defect == "missing" else "empty|not an image"
    with pytest.raises(UserError, match=rf"^1 of [23] evaluation .*: {path}: .*({reason})"):
        data.check_files(dataset.evaluation)


def test_other_formats_are_checked_by_decoding(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1}, "val": {"a": 1}}, ".bmp")
    dataset = data.open_dataset(f"folder:{tmp_path}")
    data.check_files(dataset.evaluation)
    data.check_files(data.open_dataset("digits").evaluation)
    path = dataset.evaluation[0].name
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"val_a_0\.bmp: not an image"):
        data.check_files(dataset.evaluation)
