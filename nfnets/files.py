"""Local paths, atomic writes, and text files written by users."""

from collections.abc import Callable
import os
import pathlib
import secrets

from nfnets.errors import UserError


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path of the local file system.

    Raises:
      UserError: it is a URL, such as gs://bucket/folder, of which pathlib would make a
        local folder called `gs:`.
    """
    if "://" in os.fspath(path):
        raise UserError(
            f"{path} is not a local path; mount the bucket or copy the files, and give the "
            "local path"
        )
    return pathlib.Path(path)


def write_atomically(
    path: str | os.PathLike[str], write: Callable[[pathlib.Path], object]
) -> None:
    """Writes a file so that readers and a crash see the old one or the new one, whole.

    Args:
      path: of the file; replaced if it exists.
      write: writes the content to the path that it gets, in the same folder.

    Raises:
      OSError: the file cannot be written; the old one stays.
    """
    path = local_path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 text file by `write_atomically`."""
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"))


def read_user_text(path: str | os.PathLike[str]) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark.

    Returns:
      The text, with Unix line ends.

    Raises:
      UserError: the file cannot be read or is not UTF-8.
    """
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 text; save the file with UTF-8 encoding"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
