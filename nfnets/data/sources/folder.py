"""Image folders: PATH/SPLIT/CLASS/**/*.jpg.

A split is scanned once; its file names are kept in a few arrays and cached in an index
file. The cache is valid as long as the modification time of every directory is unchanged,
i.e. until a file is added, removed or renamed. Deleting the index file is always safe.
"""

import dataclasses
import hashlib
import os
import pathlib
import time
from typing import NamedTuple
import zipfile

from absl import logging
import numpy as np

from nfnets.data.sources.base import Dataset, EmptySource, Record, wrap_os_error
from nfnets.data.sources.class_names import readable_names
from nfnets.data.sources.retries import retry
from nfnets.errors import UserError
from nfnets.files import write_atomically

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_INDEX_VERSION = 2
# File systems round times: a change right before the scan may not be visible as a new time.
_SETTLE_NS = 2 * 10**9
_EVAL_NAMES = ("val", "validation")


class FolderIndex(NamedTuple):
    """The image files of one split, ordered by class, directory and file name.

    Paths are bytes because file names may have any encoding.

    Attributes:
      classes: bytes [classes], names of the class folders, sorted.
      directories: bytes [directories], paths relative to the split's folder.
      changed_ns: int64 [directories], modification times.
      file_names: uint8 [bytes], all file names, concatenated.
      offsets: int64 [files + 1], start of each file name.
      file_directory: int32 [files], index of each file's directory.
      labels: int32 [files], index of each file's class.
    """

    classes: np.ndarray
    directories: np.ndarray
    changed_ns: np.ndarray
    file_names: np.ndarray
    offsets: np.ndarray
    file_directory: np.ndarray
    labels: np.ndarray

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the class folders, sorted."""
        return tuple(os.fsdecode(name) for name in self.classes.tolist())


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Records of image files.

    Attributes:
      root: the split's folder.
      files: its files.
      labels: int32 [files].
    """

    root: pathlib.Path
    files: FolderIndex
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Returns the path of file number `index`."""
        files = self.files
        start, end = files.offsets[index : index + 2]
        directory = files.directories[files.file_directory[index]]
        name = os.fsdecode(files.file_names[start:end].tobytes())
        return os.path.join(self.root, os.fsdecode(directory), name)

    def __getitem__(self, index: int) -> Record:
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise wrap_os_error(error, path) from error
        return Record(data, int(self.labels[index]), path)


def open_folder(
    path: str,
    *,
    train_split: str,
    eval_split: str,
    index_dir: str | None = None,
    with_train: bool = True,
) -> Dataset:
    """Opens a folder of images.

    Args:
      path: contains the splits' folders.
      train_split: name of the training folder.
      eval_split: name of the evaluation folder; `val` and `validation` are synonyms.
      index_dir: directory for the index files if `path` is not writable.
      with_train: whether to open the training split. Otherwise the training folder is
        only used for its class names, and may be missing.

    Raises:
      UserError: folders or images are missing, or the classes do not match.
    """
    base = pathlib.Path(path).expanduser()
    if not base.is_dir():
        raise UserError(f"folder {base} does not exist; check data.source")
    train_root = base / train_split
    eval_root = _find_eval_root(base, eval_split)
    train: FolderSource | EmptySource = EmptySource()
    if with_train:
        train_index = load_index(train_root, index_dir, "data.train_split")
        _check_no_empty_class(train_root, train_index)
        train = FolderSource(train_root, train_index, train_index.labels)
        class_names = train_index.class_names
    else:
        class_names = _class_folders(train_root)
    eval_index = load_index(eval_root, index_dir, "data.eval_split")
    class_names = class_names or eval_index.class_names
    labels = _match_labels(eval_root, eval_index, class_names)
    return Dataset(
        name=f"folder:{path}",
        train=train,
        evaluation=FolderSource(eval_root, eval_index, labels),
        class_names=readable_names(class_names, base),
    )


def load_index(root: pathlib.Path, index_dir: str | None, field: str) -> FolderIndex:
    """Returns the index of a split's folder, from its index file if that is valid.

    Args:
      root: the split's folder.
      index_dir: directory for the index file if the parent of `root` is not writable.
      field: config field that names the folder, for messages.

    Raises:
      UserError: the folder, its classes or its images are missing.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist; check {field}")
    files = _index_files(root, index_dir)
    for file in files:
        index = _read_index(file, root)
        if index is not None:
            return index
    started = time.time_ns()
    try:
        index = retry(lambda: scan(root), str(root))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    if not len(index.classes):
        raise UserError(f"{root} has no class folders; expected images in {root}/CLASS/")
    if not len(index.labels):
        raise UserError(f"{root} has no images; expected {'/'.join(EXTENSIONS)} files")
    if index.changed_ns.max() < started - _SETTLE_NS:
        _write_index(files, index)
    return index


def scan(root: pathlib.Path) -> FolderIndex:
    """Lists the images in `root`/CLASS/**.

    Hidden files and folders are skipped. Links to files and to class folders are followed;
    links to other folders are not, since they may form cycles.
    """
    class_names = _class_folders(root)
    root_bytes = os.fsencode(root)
    directories, changed = [b""], [os.stat(root).st_mtime_ns]
    names: list[bytes] = []
    file_directory: list[int] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        pending = [os.fsencode(class_name)]
        while pending:
            directory = pending.pop()
            path = os.path.join(root_bytes, directory)
            changed.append(os.stat(path).st_mtime_ns)
            folders, images = _list_directory(path)
            file_directory.extend([len(directories)] * len(images))
            labels.extend([label] * len(images))
            names.extend(images)
            directories.append(directory)
            pending.extend(os.path.join(directory, name) for name in reversed(folders))
    lengths = np.fromiter((len(name) for name in names), np.int64, len(names))
    return FolderIndex(
        classes=np.array([os.fsencode(name) for name in class_names], np.bytes_),
        directories=np.array(directories, np.bytes_),
        changed_ns=np.array(changed, np.int64),
        file_names=np.frombuffer(b"".join(names), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        file_directory=np.array(file_directory, np.int32),
        labels=np.array(labels, np.int32),
    )


def _class_folders(root: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of the visible folders in `root`, sorted; () if it is missing."""
    if not root.is_dir():
        return ()
    with os.scandir(root) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    return tuple(sorted(names))


def _list_directory(path: bytes) -> tuple[list[bytes], list[bytes]]:
    """Returns the names of the visible folders and images in `path`, sorted."""
    folders, images = [], []
    extensions = tuple(extension.encode() for extension in EXTENSIONS)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.name.lower().endswith(extensions):
                images.append(entry.name)
    return sorted(folders), sorted(images)


def _find_eval_root(base: pathlib.Path, eval_split: str) -> pathlib.Path:
    """Returns the evaluation folder, which may have either of its usual names."""
    synonyms = _EVAL_NAMES if eval_split in _EVAL_NAMES else ()
    for name in (eval_split, *synonyms):
        if (base / name).is_dir():
            return base / name
    return base / eval_split


def _check_no_empty_class(root: pathlib.Path, index: FolderIndex) -> None:
    """Raises a UserError if a class has no training images."""
    counts = np.bincount(index.labels, minlength=len(index.classes))
    empty = [index.class_names[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(
            f"{len(empty)} class folders in {root} have no images, e.g. {empty[0]}; "
            "add images or remove the folders"
        )


def _match_labels(
    root: pathlib.Path, index: FolderIndex, class_names: tuple[str, ...]
) -> np.ndarray:
    """Returns the evaluation files' labels, int32 [files], as indices of `class_names`."""
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in index.class_names if name not in label_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} class folders in {root} are not in the training split, e.g. "
            f"{unknown[0]}; rename or remove them"
        )
    table = np.array([label_of[name] for name in index.class_names], np.int32)
    return table[index.labels]


def _index_files(root: pathlib.Path, index_dir: str | None) -> list[pathlib.Path]:
    """Returns the possible paths of the index file, in order of preference."""
    files = [root.parent / f".nfnets_index_{root.name}.npz"]
    if index_dir is not None:
        digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        files.append(pathlib.Path(index_dir).expanduser() / f"index_{digest}.npz")
    return files


def _read_index(file: pathlib.Path, root: pathlib.Path) -> FolderIndex | None:
    """Reads an index file; returns None if it is missing, damaged or out of date."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if int(arrays["version"]) != _INDEX_VERSION:
                return None
            index = FolderIndex(**{name: arrays[name] for name in FolderIndex._fields})
        times = zip(index.directories.tolist(), index.changed_ns.tolist(), strict=True)
        for directory, changed_ns in times:
            path = os.path.join(os.fsencode(root), directory)
            if os.stat(path).st_mtime_ns != changed_ns:
                return None
        return index
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_index(files: list[pathlib.Path], index: FolderIndex) -> None:
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
