"""Image folders: PATH/SPLIT/CLASS/**/*.jpg."""

from collections.abc import Callable
import dataclasses
import hashlib
import os
import pathlib

from absl import logging
import numpy as np

from nfnets.data.sources import folder_index, listing
from nfnets.data.sources.base import (
    Dataset,
    EmptySource,
    Record,
    SubsetSource,
    wrap_os_error,
)
from nfnets.data.sources.class_names import comparable, readable_names
from nfnets.data.sources.folder_index import FolderIndex, class_folders
from nfnets.errors import UserError

_EVAL_NAMES = ("val", "validation")
_SHOWN_FOLDERS = 5


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
        return os.path.join(self.root, os.fsdecode(self.files.relative_path(index)))

    def __getitem__(self, index: int) -> Record:
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise wrap_os_error(error, path) from error
        return Record(data, int(self.labels[index]), path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderOptions:
    """How to open a folder of images.

    Attributes:
      train_split: name of the training folder.
      eval_split: name of the evaluation folder; `val` and `validation` are synonyms.
      eval_fraction: share of the training images of each class, in [0, 1), that is held
        out for evaluation, in place of an evaluation folder. The training folder may then
        be PATH itself.
      seed: determines the images that are held out.
      with_train: whether to open the training split. Otherwise the training folder is
        only used for its class names, and may be missing.
      index_dir: directory for the index files if PATH is not writable.
      log: receives one line for each index that is used, and about files left out.
    """

    train_split: str = "train"
    eval_split: str = "validation"
    eval_fraction: float = 0.0
    seed: int = 0
    with_train: bool = True
    index_dir: str | None = None
    log: Callable[[str], None] = logging.warning


def open_folder(path: str, options: FolderOptions) -> Dataset:
    """Opens a folder of images.

    Raises:
      UserError: folders or images are missing, or the classes do not match.
    """
    base = pathlib.Path(path).expanduser()
    if not base.is_dir():
        raise UserError(f"folder {base} does not exist; check data.source")
    train_root = base / options.train_split
    eval_root = _find_eval_root(base, options.eval_split)
    if options.eval_fraction:
        return _split_training_folder(path, base, train_root, eval_root, options)
    train: FolderSource | EmptySource = EmptySource()
    if options.with_train:
        train = _open_split(base, train_root, "data.train_split", options)
        class_names = train.files.class_names
    else:
        class_names = class_folders(train_root)
    evaluation = _open_split(
        base, eval_root, "data.eval_split", options, class_names or None
    )
    return Dataset(
        name=f"folder:{path}",
        train=train,
        evaluation=evaluation,
        class_names=readable_names(class_names or evaluation.files.class_names, base),
    )


def _split_training_folder(
    path: str,
    base: pathlib.Path,
    train_root: pathlib.Path,
    eval_root: pathlib.Path,
    options: FolderOptions,
) -> Dataset:
    """Opens a folder whose evaluation split is a part of the training folder."""
    if eval_root.is_dir():
        raise UserError(
            f"data.eval_fraction={options.eval_fraction} and {eval_root} exclude each "
            "other; set data.eval_fraction=0, or data.eval_split to a folder to create"
        )
    root = train_root if train_root.is_dir() else base
    source = _open_split(base, root, "data.train_split", options)
    held_out = hold_out(source.files, options.eval_fraction, options.seed)
    if not held_out.any():
        raise UserError(
            f"data.eval_fraction={options.eval_fraction}: no class in {root} has two images"
        )
    train = SubsetSource(source, np.flatnonzero(~held_out))
    return Dataset(
        name=f"folder:{path}",
        train=train if options.with_train else EmptySource(),
        evaluation=SubsetSource(source, np.flatnonzero(held_out)),
        class_names=readable_names(source.files.class_names, base),
    )


def hold_out(files: FolderIndex, fraction: float, seed: int) -> np.ndarray:
    """Chooses the images that are held out for evaluation.

    The choice is a function of the seed and the file names; after files were added or
    removed, most of it stays.

    Args:
      files: of the training folder.
      fraction: share of each class, in (0, 1). At least one image of a class is held out,
        and at least one is not; a class of one image is not split.
      seed: any integer.

    Returns:
      bool [files].
    """
    key = str(seed).encode()
    ranks = np.empty(len(files.labels), np.uint64)
    for index in range(len(ranks)):
        path = files.relative_path(index)
        digest = hashlib.blake2b(path, digest_size=8, key=key).digest()
        ranks[index] = int.from_bytes(digest, "little")
    held_out = np.zeros(len(ranks), bool)
    # Files are ordered by class.
    starts = np.searchsorted(files.labels, np.arange(1, len(files.classes)))
    for members in np.split(np.arange(len(ranks)), starts):
        if len(members) > 1:
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            held_out[members[np.argsort(ranks[members], kind="stable")[:count]]] = True
    return held_out


def _open_split(
    base: pathlib.Path,
    root: pathlib.Path,
    field: str,
    options: FolderOptions,
    class_names: tuple[str, ...] | None = None,
) -> FolderSource:
    """Opens a split's folder.

    Args:
      base: folder of the dataset.
      root: folder of the split.
      field: config field that names the split, for messages.
      options: of the dataset.
      class_names: of the training split; None: this is the training split, or it is
        missing.
    """
    _check_exists(base, root, field)
    files = folder_index.load_index(
        root, _index_files(base, root, options.index_dir), options.log
    )
    _check_distinct(root, files.class_names)
    if class_names is not None:
        return FolderSource(root, files, _match_labels(root, files, class_names))
    if field == "data.train_split":
        _check_no_empty_class(root, files)
    return FolderSource(root, files, files.labels)


def _find_eval_root(base: pathlib.Path, eval_split: str) -> pathlib.Path:
    """Returns the evaluation folder, which may have either of its usual names."""
    synonyms = _EVAL_NAMES if eval_split in _EVAL_NAMES else ()
    for name in (eval_split, *synonyms):
        if (base / name).is_dir():
            return base / name
    return base / eval_split


def _check_exists(base: pathlib.Path, root: pathlib.Path, field: str) -> None:
    """Raises a UserError, with the expected layout, if a split's folder is missing."""
    if root.is_dir():
        return
    message = f"folder {root} does not exist; check {field}"
    layout = f"expected {base}/train/CLASS/IMAGE and {base}/val/CLASS/IMAGE"
    names = class_folders(base)
    shown = ", ".join(names[:_SHOWN_FOLDERS]) + (", ..." if names[_SHOWN_FOLDERS:] else "")
    if field == "data.eval_split":
        message += f" ({base} has {shown}), or " if names else ", or "
        message += "set data.eval_fraction=0.1 to hold out a tenth of the training images"
    elif not names:
        message += f"; {layout}, but {base} has no folders"
    elif any(listing.list_directory(os.fsencode(base / name)).images for name in names):
        message += (
            f"; {layout}. Its folders ({shown}) look like classes: set "
            "data.eval_fraction=0.1 to hold out a tenth of them for evaluation"
        )
    else:
        message += f" ({base} has {shown}); {layout}"
    raise UserError(message)


def _check_distinct(root: pathlib.Path, class_names: tuple[str, ...]) -> None:
    """Raises a UserError if two class folders look the same."""
    seen: dict[str, str] = {}
    for name in class_names:
        other = seen.setdefault(comparable(name), name)
        if other != name:
            raise UserError(
                f"the class folders {other!a} and {name!a} in {root} look the same; merge "
                "them or rename one"
            )


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
    label_of = {comparable(name): label for label, name in enumerate(class_names)}
    unknown = [name for name in index.class_names if comparable(name) not in label_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} class folders in {root} are not in the training split, e.g. "
            f"{unknown[0]}; rename or remove them"
        )
    table = np.array([label_of[comparable(name)] for name in index.class_names], np.int32)
    return table[index.labels]


def _index_files(
    base: pathlib.Path, root: pathlib.Path, index_dir: str | None
) -> list[pathlib.Path]:
    """Returns the possible paths of the index file, in order of preference."""
    files = []
    if root != base:  # otherwise it would lie outside of the dataset
        files.append(root.parent / f".nfnets_index_{root.name}.npz")
    if index_dir is not None:
        digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        files.append(pathlib.Path(index_dir).expanduser() / f"index_{digest}.npz")
    return files
