"""The image files of a split's folder, in a few arrays.

Every start lists the folder: 3 microseconds a file on a local disk, 4 s for ImageNet. A
cached list could be out of date without a sign on bucket mounts, which make up the times
of directories.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np

from nfnets.data.sources import class_names, listing
from nfnets.data.sources.retries import retry
from nfnets.errors import UserError


class FolderFiles(NamedTuple):
    """The image files of one split, ordered by class, directory and file name.

    Paths are bytes because file names may have any encoding.

    Attributes:
      class_names: names of the class folders, sorted.
      directories: bytes [directories], paths relative to the split's folder.
      file_names: uint8 [bytes], all file names, concatenated.
      offsets: int64 [files + 1], start of each file name.
      file_directory: int32 [files], index of each file's directory.
      labels: int32 [files], index of each file's class.
      left_out: relative paths of files that are not images.
      loose: names of images that are in no class.
    """

    class_names: tuple[str, ...]
    directories: np.ndarray
    file_names: np.ndarray
    offsets: np.ndarray
    file_directory: np.ndarray
    labels: np.ndarray
    left_out: tuple[str, ...]
    loose: tuple[str, ...]

    def relative_path(self, index: int) -> bytes:
        """Returns the path of file number `index`, relative to the split's folder."""
        start, end = self.offsets[index : index + 2]
        directory = self.directories[self.file_directory[index]]
        return os.path.join(directory, self.file_names[start:end].tobytes())

    def describe_left_out(self, root: pathlib.Path) -> list[str]:
        """Returns lines about files of the split's folder that are left out."""
        lines = []
        if self.left_out:
            lines.append(listing.describe_left_out(root, self.left_out))
        if self.loose:
            names = listing.shorten(self.loose)
            lines.append(
                f"{root}: left out images in no class ({len(self.loose):,}): {names}"
            )
        return lines


def list_files(root: pathlib.Path) -> FolderFiles:
    """Lists the images of a split's folder.

    Raises:
      UserError: the folder cannot be read, or has no classes or images.
    """
    try:
        files = retry(lambda: scan(root), str(root))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if not files.class_names:
        raise UserError(f"{root} has no class folders; expected images in {root}/CLASS/")
    if not len(files.labels):
        raise UserError(
            f"{root} has no images; expected {', '.join(listing.FORMATS)} files in "
            f"{root}/CLASS/"
        )
    return files


def scan(root: pathlib.Path) -> FolderFiles:
    """Lists the images in `root`/CLASS/**.

    Hidden files and folders are skipped. Links to files and to class folders are followed;
    links to other folders are not, since they may form cycles.
    """
    classes = class_folders(root)
    root_bytes = os.fsencode(root)
    directories: list[bytes] = []
    names: list[bytes] = []
    file_directory: list[int] = []
    labels: list[int] = []
    top = listing.list_directory(root_bytes)
    known = {*map(os.fsencode, classes), os.fsencode(class_names.FILE_NAME)}
    left_out = sorted({*top.left_out} - known)
    for label, class_folder in enumerate(classes):
        for directory, found in listing.walk(root_bytes, os.fsencode(class_folder)):
            file_directory.extend([len(directories)] * len(found.images))
            labels.extend([label] * len(found.images))
            names.extend(found.images)
            left_out.extend(os.path.join(directory, name) for name in found.left_out)
            directories.append(directory)
    lengths = np.fromiter((len(name) for name in names), np.int64, len(names))
    return FolderFiles(
        class_names=classes,
        directories=np.array(directories, np.bytes_),
        file_names=np.frombuffer(b"".join(names), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        file_directory=np.array(file_directory, np.int32),
        labels=np.array(labels, np.int32),
        left_out=tuple(map(os.fsdecode, left_out)),
        loose=tuple(os.fsdecode(name) for name in top.images),
    )


def class_folders(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the visible folders in `root`, sorted; () if it is missing."""
    if not root.is_dir():
        return ()
    with os.scandir(root) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    return tuple(sorted(names))
