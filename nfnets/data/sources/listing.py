"""Image files of folders, recognized by their suffix or their first bytes."""

from collections.abc import Iterator, Sequence
import os
import re
from typing import NamedTuple

import cv2

from nfnets.data.sources.base import is_permanent

_HEAD_BYTES = 16
_SHOWN_NAMES = 5

# Format -> its usual suffixes and its first bytes; those that the installed OpenCV has.
FORMATS = {
    name: (suffixes, first_bytes)
    for name, suffixes, first_bytes in (
        ("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
        ("PNG", (".png",), rb"\x89PNG\r\n\x1a\n"),
        ("WebP", (".webp",), rb"RIFF....WEBP"),
        ("TIFF", (".tif", ".tiff"), rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
        ("BMP", (".bmp", ".dib"), rb"BM....\0\0\0\0"),
        ("GIF", (".gif",), rb"GIF8[79]a"),
        ("AVIF", (".avif",), rb"....ftypavi[fs]"),
        ("JPEG 2000", (".jp2", ".j2k"), rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51"),
        ("PNM", (".ppm", ".pgm", ".pbm", ".pnm"), rb"P[1-6]\s+[\d#]"),
    )
    if cv2.haveImageWriter(suffixes[0])
}

# Raw photos start like TIFF files, but OpenCV would read their thumbnails at best.
_RAW_SUFFIXES = (b".arw", b".cr2", b".dng", b".nef", b".nrw", b".orf", b".pef", b".srw")
_IMAGE_SUFFIXES = frozenset(
    s.encode() for suffixes, _ in FORMATS.values() for s in suffixes
)


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


def walk(root: bytes, start: bytes = b"") -> Iterator[tuple[bytes, Listing]]:
    """Yields a folder and all folders below it, with their content.

    Args:
      root: the paths are relative to it.
      start: path of the first folder.
    """
    pending = [start]
    while pending:
        directory = pending.pop()
        listing = list_directory(os.path.join(root, directory))
        yield directory, listing
        pending.extend(os.path.join(directory, name) for name in listing.folders[::-1])


def find_images(folder: str) -> tuple[list[str], list[str]]:
    """Returns the images in a folder at any depth, and the other files; relative paths."""
    images: list[bytes] = []
    left_out: list[bytes] = []
    for directory, listing in walk(os.fsencode(folder)):
        images += [os.path.join(directory, name) for name in listing.images]
        left_out += [os.path.join(directory, name) for name in listing.left_out]
    return sorted(map(os.fsdecode, images)), sorted(map(os.fsdecode, left_out))


def describe_left_out(folder: object, names: Sequence[str]) -> str:
    """Returns the warning about files in a folder that are left out."""
    files = "1 file that is" if len(names) == 1 else f"{len(names):,} files that are"
    kind = "an image" if len(names) == 1 else "images"
    return (
        f"{folder}: left out {files} not {kind} of a known format "
        f"({', '.join(FORMATS)}): {shorten(names)}"
    )


def shorten(names: Sequence[str]) -> str:
    """Returns the first of some names as text."""
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if names[_SHOWN_NAMES:] else "")


def read_head(path: str | bytes) -> bytes:
    """Returns the first bytes of a file, enough for `sniff`."""
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def sniff(data: bytes) -> str | None:
    """Returns the format of an image, a key of `FORMATS`, given its first 16 bytes."""
    for name, (_, first_bytes) in FORMATS.items():
        if re.match(first_bytes, data, re.DOTALL):
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
