"""Checks of image files before they are needed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
import os
from typing import Any

from nfnets.data.images import decode_record
from nfnets.data.sources.base import (
    RecordSource,
    SubsetSource,
    UnreadableRecordError,
    first_line,
)
from nfnets.data.sources.folder import FolderSource
from nfnets.data.sources.retries import retry
from nfnets.errors import UserError

_THREADS = 16  # most of the time is latency
_HEAD_BYTES, _TAIL_BYTES = 8, 12
_SHOWN = 3


def check_files(source: RecordSource) -> None:
    """Checks that the files of an evaluation split are images and not cut short.

    Reads the first and last bytes of JPEG and PNG files, and the whole of other files.
    Sources other than image folders are not checked.

    Raises:
      UserError: files are missing, empty or not images; the message names some of them.
    """
    files: Any = source
    indices: Sequence[int] = range(len(source))
    if isinstance(source, SubsetSource):
        files, indices = source.source, source.indices.tolist()
    if not isinstance(files, FolderSource):
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(functools.partial(_find_defect, files), indices)
        defects = [defect for defect in found if defect is not None]
    if defects:
        shown = "; ".join(defects[:_SHOWN]) + ("; ..." if defects[_SHOWN:] else "")
        raise UserError(
            f"{len(defects):,} of {len(indices):,} evaluation images cannot be used; "
            f"repair or remove them: {shown}"
        )


def _find_defect(source: FolderSource, index: int) -> str | None:
    """Returns the reason why a file cannot be used; None if it can."""
    path = source.path(index)
    try:
        if not retry(lambda: _is_whole(path), path):
            decode_record(source[index])
    except OSError as error:
        return f"{path}: {first_line(error)}"
    except UnreadableRecordError as error:
        return str(error)
    return None


def _is_whole(path: str) -> bool:
    """Returns whether a file has the start and the end of a JPEG or PNG file."""
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        file.seek(max(len(head), file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        tail = file.read()
    is_jpeg = head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9")
    return is_jpeg or (head.startswith(b"\x89PNG\r\n") and b"IEND" in tail)
