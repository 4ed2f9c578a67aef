"""Readable names of classes."""

import pathlib

from nfnets.errors import UserError

FILE_NAME = "class_names.txt"


def readable_names(class_names: tuple[str, ...], *folders: pathlib.Path) -> tuple[str, ...]:
    """Translates class names with the first `class_names.txt` found in `folders`, if any.

    Each line of that file is a class name, white space, and a readable name, such as
    `n01440764 tench`. Names that are not in it stay as they are.

    Args:
        class_names: as the dataset has them.
        *folders: where to look for the file.

    Raises:
        UserError: if a line of the file has no readable name.
    """
    for folder in folders:
        file = folder / FILE_NAME
        if not file.is_file():
            continue
        names = {}
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            parts = line.split(maxsplit=1)
            if len(parts) < 2:
                raise UserError(
                    f"{file}, line {number}: expected a class and its readable name, "
                    f"got {line.strip()!r}"
                )
            names[parts[0]] = parts[1].strip()
        return tuple(names.get(name, name) for name in class_names)
    return class_names
