"""Files of readable class names, as users write them."""

import pytest

from nfnets.data.sources.class_names import readable_names
from nfnets.errors import UserError

CLASSES = ("n01", "n02", "tree frog")


def write(folder, content):
    if isinstance(content, str):
        content = content.encode()
    (folder / "class_names.txt").write_bytes(content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("n01 Bär\nn02\tgreat white shark\n", ("Bär", "great white shark", "tree frog")),
        ("n02   b  c \n\n  n01 a", ("a", "b  c", "tree frog")),
        ("tree frog\tHyla arborea\nn01 \t a b", ("a b", "n02", "Hyla arborea")),
        ("n01 one\r\nn02 two\r\n", ("one", "two", "tree frog")),
        (b"\xef\xbb\xbfn01 one\r\n", ("one", "n02", "tree frog")),
        ("n01 one\x85half\n", ("one\x85half", "n02", "tree frog")),
        ("n01 one\nn01 two\n", ("two", "n02", "tree frog")),
        ("", CLASSES),
    ],
)
def test_names_are_translated(tmp_path, content, expected, caplog):
    write(tmp_path, content)
    assert readable_names(CLASSES, tmp_path) == expected
    assert not caplog.records


def test_first_folder_with_a_file_counts(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for folder in folders:
        folder.mkdir()
    assert readable_names(CLASSES, *folders) == CLASSES
    write(folders[1], "n01 one")
    write(folders[2], "n01 two\nn02 two")
    assert readable_names(CLASSES, *folders) == ("one", "n02", "tree frog")


def test_names_without_a_class_are_reported_once(tmp_path, caplog):
    write(tmp_path, "n01 one\nn04 four\ntree frog\nn03 three\n")
    with caplog.at_level("WARNING", logger="absl"):
        assert readable_names(CLASSES, tmp_path) == ("one", "n02", "tree frog")
    (record,) = caplog.records
    message = "class_names.txt: 3 of 4 lines match no class of the dataset, e.g. 'n03'"
    assert record.getMessage() == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n01 one\n\n n02 \n", "line 3: expected a class and its readable name, got 'n02'"),
        ("n01\t\n", "line 1: expected a class and its readable name, got 'n01'"),
        ("\tone\n", "line 1: expected a class and its readable name, got 'one'"),
        ("n01 Bär".encode("latin-1"), "line 1: not UTF-8 text"),
    ],
)
def test_invalid_lines_are_errors(tmp_path, content, message):
    write(tmp_path, content)
    with pytest.raises(UserError, match=rf"class_names\.txt, {message}"):
        readable_names(CLASSES, tmp_path)
