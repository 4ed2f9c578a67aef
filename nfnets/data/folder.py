"""Image folders: PATH/SPLIT/CLASS/**/*.jpg, found once and remembered.

The names of a million files are found in seconds and kept in a few arrays. They are also
written to an index file, which is used as long as no directory of the split has changed.
A directory changes when a file in it is added, removed or renamed; the index cannot see,
and need not, that a file's content was replaced. Delete the index file to be sure.
"""

import dataclasses
import hashlib
import os
import pathlib
import secrets
import time
import zipfile

from absl import logging
import numpy as np

from nfnets.data.class_names import readable_names
from nfnets.data.records import Dataset, EmptySource, Record, named_error
from nfnets.data.retries import retry
from nfnets.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_INDEX_VERSION = 1
# File systems round times: what changed just before the scan may look unchanged after it.
_SETTLE_NS = 2 * 10**9
# Fields of an index that its file holds as they are.
_PLAIN_ARRAYS = ("file_names", "offsets", "file_directory", "labels")
# People and tools disagree on this name; whichever of them is there is meant.
_EVAL_NAMES = ("val", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderIndex:
    """The image files of one split, in a fixed order: by class, directory and file name.

    Attributes:
        directories: relative to the split's folder, as bytes of unknown encoding.
        changed_ns: int64 [directories], when each was last modified.
        class_names: names of the class folders, sorted.
        file_names: uint8 [bytes], all file names joined.
        offsets: int64 [files + 1], where each of them starts.
        file_directory: int32 [files], the directory that each is in.
        labels: int32 [files], position of its class in `class_names`.
    """

    directories: tuple[bytes, ...]
    changed_ns: np.ndarray
    class_names: tuple[str, ...]
    file_names: np.ndarray
    offsets: np.ndarray
    file_directory: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Records of image files.

    Attributes:
        root: the split's folder.
        index: its files.
        labels: int32 [files].
    """

    root: pathlib.Path
    index: FolderIndex
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, position: int) -> str:
        """Returns the path of file number `position`."""
        index = self.index
        start, end = index.offsets[position : position + 2]
        directory = index.directories[index.file_directory[position]]
        name = os.fsdecode(index.file_names[start:end].tobytes())
        return os.path.join(self.root, os.fsdecode(directory), name)

    def __getitem__(self, position: int) -> Record:
        path = self.path(position)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise named_error(error, path) from error
        return Record(data, int(self.labels[position]), path)


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
        path: has the splits' folders in it.
        train_split: name of the folder to train on.
        eval_split: name of the folder to evaluate on; of `val` and `validation` the one
            that exists is used.
        index_dir: where to keep the index files if they cannot be kept in `path`.
        with_train: whether the training half is needed. Without it, the training folder
            only gives the classes, and if it is missing, the evaluation folder does.

    Raises:
        UserError: folders or images are missing, or classes do not match.
    """
    base = pathlib.Path(path).expanduser()
    if not base.is_dir():
        raise UserError(f"folder {base} does not exist; check data.source")
    train_root = base / train_split
    eval_root = _existing_eval_root(base, eval_split)
    train: FolderSource | EmptySource = EmptySource()
    if with_train:
        train_index = load_index(train_root, index_dir, "data.train_split")
        _check_no_empty_class(train_root, train_index)
        train = FolderSource(train_root, train_index, train_index.labels)
        class_names = train_index.class_names
        eval_index = load_index(eval_root, index_dir, "data.eval_split")
    else:
        eval_index = load_index(eval_root, index_dir, "data.eval_split")
        class_names = _class_folders(train_root) or eval_index.class_names
    return Dataset(
        name=f"folder:{path}",
        train=train,
        evaluation=FolderSource(
            eval_root, eval_index, _match_labels(eval_root, eval_index, class_names)
        ),
        class_names=readable_names(class_names, base),
    )


def load_index(root: pathlib.Path, index_dir: str | None, field: str) -> FolderIndex:
    """Returns the index of a split's folder, from its index file if that is up to date.

    Args:
        root: the split's folder.
        index_dir: where to keep the index file if it cannot be kept beside `root`.
        field: the config field that names the folder, for messages.

    Raises:
        UserError: no such folder, no classes or no images in it.
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
    if not index.class_names:
        raise UserError(f"{root} has no class folders; expected images in {root}/CLASS/")
    if not len(index.labels):
        raise UserError(f"{root} has no images; expected {'/'.join(EXTENSIONS)} files")
    if int(index.changed_ns.max()) < started - _SETTLE_NS:
        _write_index(files, index)
    return index


def scan(root: pathlib.Path) -> FolderIndex:
    """Lists the images in `root`/CLASS/**.

    Skips hidden files and folders. Links to files and to class folders are followed, links
    to folders within them are not: they may lead round in circles.
    """
    directories, changed, names, file_directory, labels = [b""], [], [], [], []
    changed.append(os.stat(root).st_mtime_ns)
    class_names = _class_folders(root)
    root_bytes = os.fsencode(root)
    for label, class_name in enumerate(class_names):
        pending = [os.fsencode(class_name)]
        while pending:
            directory = pending.pop()
            full = os.path.join(root_bytes, directory)
            changed.append(os.stat(full).st_mtime_ns)
            inside, images = _list_directory(full)
            file_directory.extend([len(directories)] * len(images))
            labels.extend([label] * len(images))
            names.extend(images)
            directories.append(directory)
            pending.extend(os.path.join(directory, name) for name in reversed(inside))
    lengths = np.fromiter((len(name) for name in names), np.int64, len(names))
    return FolderIndex(
        directories=tuple(directories),
        changed_ns=np.asarray(changed, np.int64),
        class_names=class_names,
        file_names=np.frombuffer(b"".join(names), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        file_directory=np.asarray(file_directory, np.int32),
        labels=np.asarray(labels, np.int32),
    )


def _class_folders(root: pathlib.Path) -> tuple[str, ...]:
    """Names of the visible folders in `root`, sorted; none if there is no `root`."""
    if not root.is_dir():
        return ()
    with os.scandir(root) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    return tuple(sorted(names))


def _list_directory(path: bytes) -> tuple[list[bytes], list[bytes]]:
    """Returns the names of visible folders and of visible images in `path`, sorted."""
    folders, images = [], []
    extensions = tuple(extension.encode() for extension in EXTENSIONS)
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif name.lower().endswith(extensions):
                images.append(name)
    return sorted(folders), sorted(images)


def _existing_eval_root(base: pathlib.Path, eval_split: str) -> pathlib.Path:
    """The folder to evaluate on, under either of its usual names."""
    candidates = [eval_split]
    if eval_split in _EVAL_NAMES:
        candidates += [name for name in _EVAL_NAMES if name != eval_split]
    for name in candidates:
        if (base / name).is_dir():
            return base / name
    return base / eval_split


def _check_no_empty_class(root: pathlib.Path, index: FolderIndex) -> None:
    """Raises a UserError if a class has no images: a model cannot learn it."""
    counts = np.bincount(index.labels, minlength=len(index.class_names))
    empty = [index.class_names[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(
            f"{len(empty)} class folders in {root} have no images, among them {empty[0]}; "
            "add images or remove the folders"
        )


def _match_labels(
    root: pathlib.Path, index: FolderIndex, class_names: tuple[str, ...]
) -> np.ndarray:
    """Labels of an evaluation split's files by the training split's classes."""
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in index.class_names if name not in label_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} class folders in {root} are not in the training split, among "
            f"them {unknown[0]}; rename or remove them"
        )
    table = np.asarray([label_of[name] for name in index.class_names], np.int32)
    return table[index.labels]


def _index_files(root: pathlib.Path, index_dir: str | None) -> list[pathlib.Path]:
    """Where the index of `root` may be: beside it, else in `index_dir`."""
    files = [root.parent / f".nfnets_index_{root.name}.npz"]
    if index_dir is not None:
        digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        files.append(pathlib.Path(index_dir).expanduser() / f"index_{digest}.npz")
    return files


def _read_index(file: pathlib.Path, root: pathlib.Path) -> FolderIndex | None:
    """Reads an index file; None if there is none, or it is damaged or out of date."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if int(arrays["version"]) != _INDEX_VERSION:
                return None
            directories = tuple(arrays["directories"].tobytes().split(b"\0"))
            changed = arrays["changed_ns"]
            for directory, recorded in zip(directories, changed.tolist(), strict=True):
                path = os.path.join(os.fsencode(root), directory)
                if os.stat(path).st_mtime_ns != recorded:
                    return None
            classes = arrays["class_names"].tobytes().split(b"\0")
            return FolderIndex(
                directories=directories,
                changed_ns=changed,
                class_names=tuple(os.fsdecode(name) for name in classes),
                **{key: arrays[key] for key in _PLAIN_ARRAYS},
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_index(files: list[pathlib.Path], index: FolderIndex) -> None:
    """Writes the index to the first place that allows it."""
    arrays = {key: getattr(index, key) for key in _PLAIN_ARRAYS}
    # No name of a file has a zero byte in it.
    directories = np.frombuffer(b"\0".join(index.directories), np.uint8)
    classes = b"\0".join(os.fsencode(name) for name in index.class_names)
    for file in files:
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as stream:
                np.savez(
                    stream,
                    version=_INDEX_VERSION,
                    directories=directories,
                    changed_ns=index.changed_ns,
                    class_names=np.frombuffer(classes, np.uint8),
                    **arrays,
                )
            os.replace(temporary, file)  # Other processes see all of it or nothing.
            return
        except OSError as error:
            logging.info("Cannot write the index %s: %s", file, error)
            temporary.unlink(missing_ok=True)
