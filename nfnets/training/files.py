"""Small files that are never seen half written."""

import pathlib


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
