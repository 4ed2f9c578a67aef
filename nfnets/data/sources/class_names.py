"""Readable class names from a `class_names.txt` file."""

from collections.abc import Sequence
import os
import pathlib
import unicodedata

from absl import logging

from nfnets.errors import UserError
from nfnets.files import read_user_text

FILE_NAME = "class_names.txt"


def readable_names(
    class_names: tuple[str, ...], *folders: str | os.PathLike[str]
) -> tuple[str, ...]:
    """Translates class names by the first `class_names.txt` found in `folders`, if any.

    Each line of that file is a class, spaces or a tab, and a readable name, such as
    `n01440764 tench`. A class with spaces in its name needs the tab. Classes that are not
    in the file keep their names.

    Args:
      class_names: names in the dataset.
      *folders: folders to search for the file.

    Raises:
      UserError: a line of the file has no readable name, or the file is not UTF-8 text.
    """
    for folder in folders:
        path = pathlib.Path(folder, FILE_NAME)
        if path.is_file():
            names = _read(path)
            if unknown := sorted(names.keys() - set(map(comparable, class_names))):
                logging.warning(
                    "%s: %d of %d lines match no class of the dataset, e.g. %r",
                    path,
                    len(unknown),
                    len(names),
                    unknown[0],
                )
            return tuple(names.get(comparable(name), name) for name in class_names)
    return class_names


def comparable(name: str) -> str:
    """Returns the same string for class names that look the same.

    Accents may be stored as part of a letter or as a character of their own, depending on
    the file system that a folder was created on.
    """
    return unicodedata.normalize("NFC", name).strip()


def are_same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists of class names look the same."""
    return list(map(comparable, names)) == list(map(comparable, others))


def _read(path: pathlib.Path) -> dict[str, str]:
    """Returns the readable name of each class, given its `comparable` name."""
    names = {}
    for number, line in enumerate(read_user_text(path).split("\n"), 1):
        if not line.strip():
            continue
        parts = line.split("\t" if "\t" in line else None, maxsplit=1)
        name, readable = parts[0].strip(), parts[-1].strip()
        if len(parts) < 2 or not name or not readable:
            raise UserError(
                f"{path}, line {number}: expected a class and its readable name, "
                f"got {line.strip()!r}"
            )
        names[comparable(name)] = readable
    return names
