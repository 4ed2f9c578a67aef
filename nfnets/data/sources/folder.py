"""Image folders: PATH/SPLIT/CLASS/**/*.jpg."""

from collections.abc import Callable
import dataclasses
import hashlib
import os
import pathlib
import unicodedata

from absl import logging
import numpy as np

from nfnets.data.sources import listing
from nfnets.data.sources.base import (
    Dataset,
    EmptySource,
    Record,
    RecordSource,
    SubsetSource,
    wrap_os_error,
)
from nfnets.data.sources.class_names import comparable, readable_names
from nfnets.data.sources.folder_files import FolderFiles, class_folders, list_files
from nfnets.errors import UserError

_EVAL_NAMES = ("val", "validation")
# Usual names of splits, in lower case: folders of these names are not classes.
SPLIT_NAMES = (*_EVAL_NAMES, "valid", "test", "eval", "dev", "train", "training")


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Records of image files.

    Attributes:
      root: the split's folder.
      files: its files.
      labels: int32 [files].
    """

    root: pathlib.Path
    files: FolderFiles
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
        only used for its class names and may be missing, and an evaluation folder takes
        precedence over `eval_fraction`.
      log: receives one line for each split with files that are left out.
    """

    train_split: str = "train"
    eval_split: str = "validation"
    eval_fraction: float = 0.0
    seed: int = 0
    with_train: bool = True
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
    eval_root = find_eval_root(base, options.eval_split)
    train: RecordSource = EmptySource()
    evaluation: RecordSource
    if options.eval_fraction and (options.with_train or not eval_root.is_dir()):
        _check_no_eval_folder(eval_root, options.eval_fraction)
        whole = _open_split(find_only_root(base, options.train_split), options)
        _check_no_empty_class(whole)
        kept, evaluation = _divide(whole, options.eval_fraction, options.seed)
        train = kept if options.with_train else train
        names = whole.files.class_names
    else:
        names = class_folders(train_root)
        if options.with_train:
            _check_exists(base, train_root, "data.train_split")
            train = whole = _open_split(train_root, options)
            _check_no_empty_class(whole)
        _check_exists(base, eval_root, "data.eval_split")
        if options.eval_fraction:
            options.log(f"{eval_root} is evaluated, not the images that are held out")
        split = _open_split(eval_root, options)
        names = names or split.files.class_names
        evaluation = dataclasses.replace(split, labels=_match(split, names))
    return Dataset(
        name=f"folder:{path}",
        train=train,
        evaluation=evaluation,
        class_names=readable_names(names, base),
    )


def find_eval_root(base: pathlib.Path, eval_split: str) -> pathlib.Path:
    """Returns the evaluation folder, which may have either of its usual names."""
    synonyms = _EVAL_NAMES if eval_split in _EVAL_NAMES else ()
    for name in (eval_split, *synonyms):
        if (base / name).is_dir():
            return base / name
    return base / eval_split


def find_only_root(base: pathlib.Path, train_split: str) -> pathlib.Path:
    """Returns the folder of all classes, where no folder is set apart for evaluation.

    It is the training folder or, if there is none and no other split, `base` itself.

    Raises:
      UserError: the training folder is missing where there are other splits.
    """
    root = base / train_split
    if not root.is_dir() and class_folders(base) and not _splits(base):
        return base
    _check_exists(base, root, "data.train_split")
    return root


def hold_out(files: FolderFiles, fraction: float, seed: int) -> np.ndarray:
    """Chooses the images that are held out for evaluation.

    The choice is a function of the seed and the file names, whatever their order; after
    files were added or removed, most of it stays.

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
        # A copy on another file system may store accents otherwise.
        name = unicodedata.normalize("NFC", os.fsdecode(files.relative_path(index)))
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8, key=key).digest()
        ranks[index] = int.from_bytes(digest, "little")
    held_out = np.zeros(len(ranks), bool)
    # Files are ordered by class.
    starts = np.searchsorted(files.labels, np.arange(1, len(files.class_names)))
    for members in np.split(np.arange(len(ranks)), starts):
        if len(members) > 1:
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            held_out[members[np.argsort(ranks[members], kind="stable")[:count]]] = True
    return held_out


def _divide(
    source: FolderSource, fraction: float, seed: int
) -> tuple[SubsetSource, SubsetSource]:
    """Divides a split into images for training and images that are held out."""
    held_out = hold_out(source.files, fraction, seed)
    if not held_out.any():
        raise UserError(
            f"data.eval_fraction={fraction}: no class in {source.root} has two images"
        )
    return (
        SubsetSource(source, np.flatnonzero(~held_out)),
        SubsetSource(source, np.flatnonzero(held_out)),
    )


def _open_split(root: pathlib.Path, options: FolderOptions) -> FolderSource:
    """Opens a split's folder; labels are indices of its own classes."""
    files = list_files(root)
    for line in files.describe_left_out(root):
        options.log(line)
    seen: dict[str, str] = {}
    for name in files.class_names:
        other = seen.setdefault(comparable(name), name)
        if other != name:
            raise UserError(
                f"the class folders {other!a} and {name!a} in {root} look the same; merge "
                "them or rename one"
            )
    return FolderSource(root, files, files.labels)


def _check_no_eval_folder(eval_root: pathlib.Path, fraction: float) -> None:
    """Raises a UserError if both an evaluation folder and a fraction exist."""
    if eval_root.is_dir():
        raise UserError(
            f"data.eval_fraction={fraction} holds out training images, but there is the "
            f"evaluation folder {eval_root}; set data.eval_fraction=0 to use it"
        )


def _check_exists(base: pathlib.Path, root: pathlib.Path, field: str) -> None:
    """Raises a UserError, with the expected layout, if a split's folder is missing."""
    if root.is_dir():
        return
    message = f"folder {root} does not exist; "
    names = class_folders(base)
    others = [name for name in _splits(base) if base / name != root]
    hold_out = "data.eval_fraction=0.1 to hold out a tenth of the images for evaluation"
    if field == "data.eval_split":
        others = [name for name in others if not name.lower().startswith("train")]
        if others:
            message += f"{base} has {', '.join(others)}: set {field}={others[0]}, or "
        else:
            message += "set "
        raise UserError(message + hold_out)
    if others:
        raise UserError(f"{message}{base} has {', '.join(others)}; check {field}")
    layout = f"expected {base}/train/CLASS/IMAGE and {base}/val/CLASS/IMAGE"
    if not names:
        count = len(listing.list_directory(os.fsencode(base)).images)
        found = f"{count:,} images without a class" if count else "no folders"
        raise UserError(f"{message}{layout}, but {base} has {found}")
    raise UserError(
        f"{message}{layout}; if its folders ({listing.shorten(names)}) are classes, set "
        f"{hold_out}"
    )


def _splits(base: pathlib.Path) -> list[str]:
    """Returns the folders with usual names of splits."""
    return [name for name in class_folders(base) if name.lower() in SPLIT_NAMES]


def _check_no_empty_class(source: FolderSource) -> None:
    """Raises a UserError if a class has no training images."""
    names = source.files.class_names
    counts = np.bincount(source.labels, minlength=len(names))
    empty = [names[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise UserError(
            f"{len(empty)} class folders in {source.root} have no images, e.g. {empty[0]}; "
            "add images or remove the folders"
        )


def _match(source: FolderSource, class_names: tuple[str, ...]) -> np.ndarray:
    """Returns a split's labels, int32 [files], as indices of `class_names`."""
    label_of = {comparable(name): label for label, name in enumerate(class_names)}
    own = source.files.class_names
    unknown = [name for name in own if comparable(name) not in label_of]
    if unknown:
        raise UserError(
            f"{len(unknown)} class folders in {source.root} are not in the training split, "
            f"e.g. {unknown[0]}; rename or remove them"
        )
    return np.array([label_of[comparable(name)] for name in own], np.int32)[source.labels]
