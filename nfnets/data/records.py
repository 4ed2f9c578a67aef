"""What a dataset is to the rest of the program: records by number, and class names."""

import dataclasses
import errno
from typing import NamedTuple, Protocol

import numpy as np

# What `is_lasting`.
_LASTING_TYPES = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_LASTING_CODES = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)


class Record(NamedTuple):
    """One example, not decoded yet.

    Attributes:
        image: the bytes of an image file, or decoded pixels, uint8 [height, width, 3], RGB.
        label: class, in [0, number of classes).
        name: what to call it in a message: a path, or a dataset's name and a number.
    """

    image: bytes | np.ndarray
    label: int
    name: str


class RecordSource(Protocol):
    """Records by number. Picklable, and safe to read from several threads."""

    def __len__(self) -> int:
        """The number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Returns record `index`, in [0, len(self)).

        Raises:
            UnreadableRecordError: if the record is missing or damaged.
            OSError: if it cannot be read at the moment and may be later; `filename` is
                the record's name. (The kinds that do not pass, such as FileNotFoundError,
                count as the former.)
        """
        ...


class UnreadableRecordError(Exception):
    """A record that is missing, damaged or cannot be decoded.

    Training replaces such a record by another one, evaluation stops at it.

    Attributes:
        name: the record's name.
        reason: what is wrong with it, a clause for a message.
    """

    def __init__(self, name: str, reason: str) -> None:
        """See the class."""
        super().__init__(name, reason)  # Both, so that it survives pickling.
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def named_error(error: OSError, name: str) -> OSError | UnreadableRecordError:
    """Returns what a source raises for a record that it failed to read.

    Args:
        error: the failure.
        name: the record's name.

    Returns:
        An UnreadableRecordError if reading again would fail again, else an OSError.
    """
    if is_lasting(error):
        return UnreadableRecordError(name, reason_of(error))
    return OSError(error.errno, reason_of(error), name)


def is_lasting(error: OSError) -> bool:
    """Whether a failure to read is of the kind that reading again does not mend."""
    return isinstance(error, _LASTING_TYPES) or error.errno in _LASTING_CODES


def reason_of(error: Exception) -> str:
    """What went wrong, in one line and without the name of the file."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.splitlines()), type(error).__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Records from arrays in memory.

    Attributes:
        images: uint8 [n, H, W, 3].
        labels: int32 [n].
        name: a record's name is this and its number.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]), f"{self.name}[{index}]")


class EmptySource:
    """No records: the half of a dataset that was not opened."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Record:
        raise IndexError(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened dataset.

    Attributes:
        name: as the user wrote it, e.g. `tfds:imagenet2012`.
        train: records to train on; empty where only the evaluation half was opened.
        evaluation: records to evaluate on.
        class_names: readable names; the index is the label.
        is_fake: whether the records are made up, so that accuracies mean nothing.
    """

    name: str
    train: RecordSource
    evaluation: RecordSource
    class_names: tuple[str, ...]
    is_fake: bool = False

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)
