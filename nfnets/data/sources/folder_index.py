"""Listing of a split's folder in a few arrays, cached in an index file.

The cache is valid as long as the times, size and number of links of every directory are
unchanged, i.e. until a file is added, removed or renamed. On file systems that do not keep
the times of directories, such as mounted buckets, there is no cache. Deleting the index
file is always safe.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
import re
import time
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np

from nfnets.data.sources import listing
from nfnets.data.sources.retries import retry
from nfnets.errors import UserError
from nfnets.files import write_atomically

_INDEX_VERSION = 3
# File systems round times: a change right before the scan may not be visible as a new time.
_SETTLE_NS = 2 * 10**9
_SHOWN_FILES = 5  # of those that are left out
_CLASS_NAMES_FILE = b"class_names.txt"

_MOUNTS = pathlib.Path("/proc/self/mountinfo")
# File systems, by the start of their names, that make up the times of directories.
_UNRELIABLE = ("fuse", "9p", "virtiofs", "cifs", "smb", "vboxsf", "drvfs", "mountpoint")


class FolderIndex(NamedTuple):
    """The image files of one split, ordered by class, directory and file name.

    Paths are bytes because file names may have any encoding.

    Attributes:
      classes: bytes [classes], names of the class folders, sorted.
      directories: bytes [directories], paths relative to the split's folder.
      evidence: int64 [directories, 4], modification and status change times in ns, size,
        and number of links.
      file_names: uint8 [bytes], all file names, concatenated.
      offsets: int64 [files + 1], start of each file name.
      file_directory: int32 [files], index of each file's directory.
      labels: int32 [files], index of each file's class.
      left_out: bytes [at most 5], relative paths of files that are not images.
      num_left_out: int64 [], number of such files.
    """

    classes: np.ndarray
    directories: np.ndarray
    evidence: np.ndarray
    file_names: np.ndarray
    offsets: np.ndarray
    file_directory: np.ndarray
    labels: np.ndarray
    left_out: np.ndarray
    num_left_out: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        return tuple(os.fsdecode(name) for name in self.classes.tolist())

    def relative_path(self, index: int) -> bytes:
        """Returns the path of file number `index`, relative to the split's folder."""
        start, end = self.offsets[index : index + 2]
        directory = self.directories[self.file_directory[index]]
        return os.path.join(directory, self.file_names[start:end].tobytes())


def load_index(
    root: pathlib.Path, index_files: Sequence[pathlib.Path], log: Callable[[str], None]
) -> FolderIndex:
    """Returns the index of a split's folder, from its index file if that is valid.

    Args:
      root: the split's folder.
      index_files: possible paths of the index file, in order of preference.
      log: receives one line if an index file is used, and one if files are left out.

    Raises:
      UserError: the folder cannot be read, or has no classes or images.
    """
    index = None
    for file in index_files:
        index = _read_index(file, root)
        if index is not None:
            log(f"{root}: listed in the index {file}; delete that file to list it again")
            break
    if index is None:
        index = _scan_and_write(root, index_files)
    if index.num_left_out:
        names = [os.fsdecode(name) for name in index.left_out.tolist()]
        log(listing.describe_left_out(str(root), names, int(index.num_left_out)))
    return index


def scan(root: pathlib.Path) -> FolderIndex:
    """Lists the images in `root`/CLASS/**.

    Hidden files and folders are skipped. Links to files and to class folders are followed;
    links to other folders are not, since they may form cycles.
    """
    class_names = class_folders(root)
    root_bytes = os.fsencode(root)
    directories, evidence = [b""], [_evidence(root_bytes)]
    names: list[bytes] = []
    file_directory: list[int] = []
    labels: list[int] = []
    top = listing.list_directory(root_bytes)
    classes = [os.fsencode(name) for name in class_names]
    left_out = sorted({*top.images, *top.left_out} - {*classes, _CLASS_NAMES_FILE})
    num_left_out = len(left_out)
    for label, class_folder in enumerate(classes):
        pending = [class_folder]
        while pending:
            directory = pending.pop()
            path = os.path.join(root_bytes, directory)
            evidence.append(_evidence(path))
            found = listing.list_directory(path)
            file_directory.extend([len(directories)] * len(found.images))
            labels.extend([label] * len(found.images))
            names.extend(found.images)
            num_left_out += len(found.left_out)
            left_out += [os.path.join(directory, name) for name in found.left_out]
            del left_out[_SHOWN_FILES:]
            directories.append(directory)
            pending.extend(os.path.join(directory, name) for name in found.folders[::-1])
    lengths = np.fromiter((len(name) for name in names), np.int64, len(names))
    return FolderIndex(
        classes=np.array(classes, np.bytes_),
        directories=np.array(directories, np.bytes_),
        evidence=np.array(evidence, np.int64),
        file_names=np.frombuffer(b"".join(names), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        file_directory=np.array(file_directory, np.int32),
        labels=np.array(labels, np.int32),
        left_out=np.array(left_out[:_SHOWN_FILES], np.bytes_),
        num_left_out=np.array(num_left_out, np.int64),
    )


def class_folders(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the visible folders in `root`, sorted; () if it is missing."""
    if not root.is_dir():
        return ()
    with os.scandir(root) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    return tuple(sorted(names))


def _scan_and_write(root: pathlib.Path, index_files: Sequence[pathlib.Path]) -> FolderIndex:
    """Lists a split's folder and writes the index file, if it can be trusted later."""
    started = time.time_ns()
    try:
        index = retry(lambda: scan(root), str(root))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if not len(index.classes):
        raise UserError(
            f"{root} has no class folders; expected images in {root}/CLASS/"
            + (", found images without a class" if index.num_left_out else "")
        )
    if not len(index.labels):
        raise UserError(
            f"{root} has no images; expected {', '.join(listing.FORMATS)} files in "
            f"{root}/CLASS/"
        )
    if index.evidence[:, :2].max() < started - _SETTLE_NS and _has_reliable_times(root):
        _write_index(index_files, index)
    return index


def _evidence(directory: bytes) -> tuple[int, int, int, int]:
    """Returns a directory's row of `FolderIndex.evidence`."""
    status = os.stat(directory)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_nlink


def _has_reliable_times(root: pathlib.Path) -> bool:
    """Returns whether all file systems below `root` keep the times of directories."""
    links = [root / name for name in class_folders(root) if (root / name).is_symlink()]
    return not any(
        _file_system(os.path.realpath(path)).startswith(_UNRELIABLE)
        for path in (root, *links)
    )


def _file_system(path: str) -> str:
    """Returns the type of the file system of an absolute path; "" if it is unknown."""
    longest, kind = "", ""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        escaped = left.split()[4].rstrip("/") + "/"
        mount = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), escaped)
        if f"{path}/".startswith(mount) and len(mount) >= len(longest):
            longest, kind = mount, right.split()[0]
    return kind


def _read_index(file: pathlib.Path, root: pathlib.Path) -> FolderIndex | None:
    """Reads an index file; returns None if it is missing, damaged or out of date."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if int(arrays["version"]) != _INDEX_VERSION:
                return None
            index = FolderIndex(**{name: arrays[name] for name in FolderIndex._fields})
        rows = zip(index.directories.tolist(), index.evidence.tolist(), strict=True)
        for directory, evidence in rows:
            if list(_evidence(os.path.join(os.fsencode(root), directory))) != evidence:
                return None
        return index if _has_reliable_times(root) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_index(files: Sequence[pathlib.Path], index: FolderIndex) -> None:
    """Writes the index to the first of `files` that is writable, if any."""

    def write(path: pathlib.Path) -> None:
        with path.open("wb") as stream:  # np.savez would append .npz to a path
            np.savez(stream, version=_INDEX_VERSION, **index._asdict())

    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, write)
            return
        except OSError as error:
            logging.info("Cannot write the index %s: %s", file, error)
