"""Checks of image files before they are needed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import functools

from nfnets.data.images import decode_record
from nfnets.data.sources.base import (
    RecordSource,
    SubsetSource,
    UnreadableRecordError,
    first_line,
)
from nfnets.data.sources.folder import FolderSource
from nfnets.data.sources.listing import read_head, sniff
from nfnets.data.sources.retries import retry
from nfnets.errors import UserError

_THREADS = 16  # most of the time is latency
_SHOWN = 3


def check_files(source: RecordSource) -> None:
    """Checks that the files of an evaluation split can be opened and start like images.

    Reads 16 bytes of each file. Sources other than image folders are not checked.

    Raises:
      UserError: files are missing, empty or not images; the message names some of them.
    """
    indices: Sequence[int] = range(len(source))
    if isinstance(source, SubsetSource):
        source, indices = source.source, source.indices.tolist()
    if not isinstance(source, FolderSource):
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(functools.partial(_find_defect, source), indices)
        defects = [defect for defect in found if defect is not None]
    if defects:
        shown = "; ".join(defects[:_SHOWN]) + ("; ..." if defects[_SHOWN:] else "")
        raise UserError(
            f"{len(defects)} of {len(indices)} evaluation images cannot be used; repair or "
            f"remove them: {shown}"
        )


def _find_defect(source: FolderSource, index: int) -> str | None:
    """Returns the reason why a file cannot be used; None if it can."""
    path = source.path(index)
    try:
        if sniff(retry(lambda: read_head(path), path)) is not None:
            return None
        decode_record(source[index])  # of a format that `sniff` does not know
    except OSError as error:
        return f"{path}: {first_line(error)}"
    except UnreadableRecordError as error:
        return str(error)
    return None
