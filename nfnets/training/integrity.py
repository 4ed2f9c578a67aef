"""Whether what is read back is what was written: sums of arrays, sizes of files."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any
import zlib

import numpy as np

from nfnets.training.files import write_whole

FILES_NAME = "files.json"
_SEAL = "checksum"


def checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Adds its own check sum to something that JSON can hold."""
    text = json.dumps(content, sort_keys=True)
    return {**content, _SEAL: zlib.crc32(text.encode())}


def unsealed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `sealed`.

    Raises:
      ValueError: anything has changed.
    """
    content = {key: value for key, value in stored.items() if key != _SEAL}
    # Checkpoints of older versions have none.
    if _SEAL in stored and sealed(content)[_SEAL] != stored[_SEAL]:
        raise ValueError("its provenance is not what was written")
    return content


def list_files(folder: pathlib.Path) -> None:
    """Writes the sizes of a complete checkpoint's files beside them, unless they are there.

    Raises:
      OSError: they cannot be written.
    """
    if (folder / FILES_NAME).exists():
        return
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}
    sizes.pop(f"{FILES_NAME}.tmp", None)  # of an attempt that a kill ended
    write_whole(folder / FILES_NAME, json.dumps(sizes))


def check_files(folder: pathlib.Path) -> None:
    """Finds missing and cut files before Orbax, which is loud about them, meets them.

    Raises:
      ValueError: there are some, or the listing itself is damaged.
      OSError: likewise.
    """
    listing = folder / FILES_NAME
    if not listing.exists():  # killed between the checkpoint's completion and its listing
        return
    for name, size in json.loads(listing.read_text()).items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes instead of {size}")
