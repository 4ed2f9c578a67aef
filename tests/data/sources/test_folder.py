"""Image folders: scanning, the index file, and errors."""

import os
import shutil
import time

import numpy as np
import pytest

from nfnets import data
from nfnets.data.sources import folder
from nfnets.errors import UserError
from tests.data.helpers import encoded, picture, write_folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of two classes that has not changed for an hour."""
    root = tmp_path / "pictures"
    write_folder(root, {"train": {"dog": 3, "cat": 2}, "val": {"cat": 1, "dog": 1}})
    return settle(root)


def settle(root):
    """Makes every directory under `root` old enough for an index file."""
    hour_ago = time.time() - 3600
    for path, _, _ in os.walk(root):
        os.utime(path, (hour_ago, hour_ago))
    return root


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
        ({"val": {"a": 1}}, "train does not exist; check data.train_split"),
        ({"train": {"a": 1}}, "validation does not exist; check data.eval_split"),
        ({"train": {".": 1}, "val": {"a": 1}}, "train has no class folders"),
        ({"train": {"a": 0}, "val": {"a": 1}}, "train has no images; expected .jpg/.jpeg"),
        ({"train": {"a": 1, "b": 0}, "val": {"a": 1}}, "1 class folders .* e.g. b;"),
        ({"train": {"a": 1}, "val": {"a": 1, "x": 1}}, "not in the training .* e.g. x;"),
    ],
)
def test_incomplete_folders_are_errors(tmp_path, counts, message):
    write_folder(tmp_path, counts)
    with pytest.raises(UserError, match=message) as caught:
        data.open_dataset(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


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

    monkeypatch.setattr(folder, "scan", forbid)
    with pytest.raises(UserError, match=r"cannot read .*train/a: Permission denied"):
        data.open_dataset(f"folder:{tmp_path}")


def test_deleted_file_is_unreadable(pictures):
    source = data.open_dataset(f"folder:{pictures}").train
    (pictures / "train/cat/train_cat_1.jpg").unlink()
    with pytest.raises(data.UnreadableRecordError, match=r"train_cat_1\.jpg: No such file"):
        _ = source[1]


def count_scans(monkeypatch):
    """Returns a list that grows with every scan."""
    scans = []
    scan = folder.scan

    def counting(root):
        scans.append(root)
        return scan(root)

    monkeypatch.setattr(folder, "scan", counting)
    return scans


def test_index_is_used_until_the_folder_changes(pictures, monkeypatch):
    scans = count_scans(monkeypatch)
    first = data.open_dataset(f"folder:{pictures}")
    assert len(scans) == 2
    second = data.open_dataset(f"folder:{pictures}")
    assert len(scans) == 2  # no new scan
    assert names(second.train) == names(first.train)
    assert labels(second.train) == labels(first.train)
    assert second.class_names == first.class_names
    np.testing.assert_array_equal(second.train.files.offsets, first.train.files.offsets)


@pytest.mark.parametrize("change", ["add", "remove", "rename", "new class", "nested"])
def test_index_is_dropped_when_the_folder_changes(pictures, monkeypatch, change):
    data.open_dataset(f"folder:{pictures}")
    scans = count_scans(monkeypatch)
    cat = pictures / "train/cat"
    image = (cat / "train_cat_0.jpg").read_bytes()
    expected = 5
    if change == "add":
        (cat / "new.jpg").write_bytes(image)
        expected = 6
    elif change == "remove":
        (cat / "train_cat_0.jpg").unlink()
        expected = 4
    elif change == "rename":
        (cat / "train_cat_0.jpg").rename(cat / "renamed.jpg")
    else:
        new = pictures / "train/ape" if change == "new class" else cat / "more"
        new.mkdir()
        (new / "1.jpg").write_bytes(image)
        expected = 6
    dataset = data.open_dataset(f"folder:{pictures}")
    assert scans == [pictures / "train"]
    assert len(dataset.train) == expected
    assert ("ape" in dataset.class_names) == (change == "new class")
    assert ("renamed.jpg" in names(dataset.train)) == (change == "rename")


def test_index_of_a_changing_folder_is_not_written(tmp_path, monkeypatch):
    write_folder(tmp_path, {"train": {"a": 1}, "val": {"a": 1}})
    scans = count_scans(monkeypatch)
    data.open_dataset(f"folder:{tmp_path}")
    data.open_dataset(f"folder:{tmp_path}")
    assert len(scans) == 4
    assert not list(tmp_path.glob(".nfnets_index*"))


@pytest.mark.parametrize("damage", ["empty", "text", "half", "other version"])
def test_damaged_index_is_rebuilt(pictures, monkeypatch, damage):
    data.open_dataset(f"folder:{pictures}")
    file = pictures / ".nfnets_index_train.npz"
    content = file.read_bytes()
    if damage == "other version":
        with np.load(file) as arrays:
            np.savez(file, **{**arrays, "version": 99})
    else:
        half = content[: len(content) // 2]
        file.write_bytes({"empty": b"", "text": b"what?", "half": half}[damage])
    scans = count_scans(monkeypatch)
    assert len(data.open_dataset(f"folder:{pictures}").train) == 5
    assert scans == [pictures / "train"]
    assert file.read_bytes() == content


def test_index_has_a_fallback_directory(pictures, tmp_path, monkeypatch):
    # A folder of that name, since file permissions do not stop root.
    (pictures / ".nfnets_index_train.npz").mkdir()
    settle(pictures)
    scans = count_scans(monkeypatch)
    for _ in range(2):
        dataset = data.open_dataset(f"folder:{pictures}", index_dir=str(tmp_path / "index"))
        assert len(dataset.train) == 5
    assert len(scans) == 2
    assert len(list((tmp_path / "index").glob("index_*.npz"))) == 1
    # Without the fallback, every start scans.
    assert len(data.open_dataset(f"folder:{pictures}").train) == 5
    assert len(scans) == 3


def test_class_names_file(pictures):
    (pictures / "class_names.txt").write_text("dog  a good dog\n")
    for splits in ("both", "eval"):
        dataset = data.open_dataset(f"folder:{pictures}", splits=splits)
        assert dataset.class_names == ("cat", "a good dog")
