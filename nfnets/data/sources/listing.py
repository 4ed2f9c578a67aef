"""Image files of a directory, recognized by their suffix or their first bytes."""

import os
import re
from typing import NamedTuple

import cv2
import numpy as np

from nfnets.data.sources.base import is_permanent

_HEAD_BYTES = 16

_TINY_GIF = bytes.fromhex(
    "47494638396101000100800000000000ffffff2c00000000010001000002024401003b"
)
# Old versions of OpenCV have no GIF decoder.
_HAS_GIF = cv2.imdecode(np.frombuffer(_TINY_GIF, np.uint8), cv2.IMREAD_COLOR) is not None

# Format -> its usual suffixes and its first bytes.
FORMATS = {
    "JPEG": ((".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
    "PNG": ((".png",), rb"\x89PNG\r\n\x1a\n"),
    "WebP": ((".webp",), rb"RIFF....WEBP"),
    "BMP": ((".bmp", ".dib"), rb"BM....\0\0\0\0"),
    "TIFF": ((".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    **({"GIF": ((".gif",), rb"GIF8[79]a")} if _HAS_GIF else {}),
}
EXTENSIONS = tuple(suffix for suffixes, _ in FORMATS.values() for suffix in suffixes)

# Raw photos start like TIFF files, but OpenCV would read their thumbnails at best.
_RAW_EXTENSIONS = (".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw")

_IMAGE_SUFFIXES = frozenset(suffix.encode() for suffix in EXTENSIONS)
_RAW_SUFFIXES = frozenset(suffix.encode() for suffix in _RAW_EXTENSIONS)


class Listing(NamedTuple):
    """The visible content of a directory; sorted names.

    Attributes:
      folders: directories, without links to directories.
      images: image files.
      left_out: everything else.
    """

    folders: list[bytes]
    images: list[bytes]
    left_out: list[bytes]


def list_directory(path: bytes) -> Listing:
    """Lists a directory; hidden files and folders are skipped.

    A file is an image if it has the suffix of one, or if any other file starts like one
    (raw photos excepted).

    Raises:
      OSError: the directory cannot be read, or a read failed that may succeed later.
    """
    listing = Listing([], [], [])
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                listing.folders.append(entry.name)
            elif _is_image(entry):
                listing.images.append(entry.name)
            else:
                listing.left_out.append(entry.name)
    return Listing(*map(sorted, listing))


def find_images(folder: str) -> tuple[list[str], list[str]]:
    """Returns the paths of the images in a folder at any depth, and of the other files."""
    images, left_out = [], []
    pending = [os.fsencode(folder)]
    while pending:
        directory = pending.pop()
        listing = list_directory(directory)
        images += [os.fsdecode(os.path.join(directory, n)) for n in listing.images]
        left_out += [os.fsdecode(os.path.join(directory, n)) for n in listing.left_out]
        pending += [os.path.join(directory, name) for name in listing.folders]
    return sorted(images), sorted(left_out)


def describe_left_out(folder: str, names: list[str], count: int) -> str:
    """Returns the warning about files that are left out.

    Args:
      folder: where they are.
      names: of some of the files.
      count: of all files.
    """
    more = ", ..." if count > len(names) else ""
    return (
        f"{folder}: left out {count} files or links that are not images of a known format "
        f"({', '.join(FORMATS)}): {', '.join(names)}{more}"
    )


def read_head(path: str | bytes) -> bytes:
    """Returns the first bytes of a file, enough for `sniff`."""
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def sniff(data: bytes) -> str | None:
    """Returns the format of an image, a key of `FORMATS`, given its first 16 bytes."""
    for name, (_, pattern) in FORMATS.items():
        if re.match(pattern, data, re.DOTALL):
            return name
    return None


def _is_image(entry: os.DirEntry[bytes]) -> bool:
    """Returns whether a file or link has the suffix or the content of an image."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in _IMAGE_SUFFIXES:
        return True
    try:
        if suffix in _RAW_SUFFIXES or not entry.is_file():
            return False
        return sniff(read_head(entry.path)) is not None
    except OSError as error:
        if is_permanent(error):
            return False
        raise
