"""Interface of datasets: records by index, class names and read errors."""

import dataclasses
import errno
from typing import Any, NamedTuple, Protocol

import numpy as np

_PERMANENT_TYPES = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_PERMANENT_CODES = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)


class Record(NamedTuple):
    """One example, not yet decoded.

    Attributes:
      image: bytes of an image file, or decoded pixels, uint8 [height, width, 3], RGB.
      label: class, in [0, number of classes).
      name: identifies the record in messages: a path, or a dataset's name and an index.
    """

    image: bytes | np.ndarray
    label: int
    name: str


class RecordSource(Protocol):
    """Random access to records. Must be picklable and safe to read from several threads."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Returns record `index`, in [0, len(self)).

        Raises:
          UnreadableRecordError: the record is missing or damaged.
          OSError: a read failed. Transient errors are retried; a permanent one, such as
            FileNotFoundError, has the effect of an UnreadableRecordError. `filename` is
            the record's name.
        """
        ...


class UnreadableRecordError(Exception):
    """A record that is missing, damaged or cannot be decoded.

    Training replaces such a record by another one; evaluation stops.

    Attributes:
      name: the record's name.
      reason: the cause, for messages.
    """

    def __init__(self, name: str, reason: str) -> None:
        """See the class."""
        super().__init__(name, reason)  # both, for pickling
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def wrap_os_error(error: OSError, name: str) -> OSError | UnreadableRecordError:
    """Returns the exception that a source raises for a failed read.

    Args:
      error: the failure.
      name: the record's name.

    Returns:
      An UnreadableRecordError for a permanent error, otherwise an OSError.
    """
    if is_permanent(error):
        return UnreadableRecordError(name, first_line(error))
    return OSError(error.errno, first_line(error), name)


def is_permanent(error: OSError) -> bool:
    """Returns whether a read error is permanent, so that retrying cannot help."""
    return isinstance(error, _PERMANENT_TYPES) or error.errno in _PERMANENT_CODES


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, without the file name."""
    text = getattr(error, "strerror", None) or str(error)
    return next(iter(text.splitlines()), type(error).__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Records from arrays in memory.

    Attributes:
      images: uint8 [n, H, W, 3].
      labels: integers [n].
      name: prefix of the records' names.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]), f"{self.name}[{index}]")


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetSource:
    """Some of the records of another source.

    Attributes:
      source: the other source; has the attribute `labels`.
      indices: integers [n], its records.
    """

    source: Any
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the records, integers [n]."""
        return self.source.labels[self.indices]


class EmptySource:
    """A source without records: the training split where only evaluation is needed."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Record:
        raise IndexError(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """An opened dataset.

    Attributes:
      name: as in the config, e.g. `tfds:imagenet2012`.
      train: training records; empty if only the evaluation split was opened.
      evaluation: evaluation records.
      class_names: readable names, indexed by label.
      is_fake: whether the records are synthetic, which makes accuracies meaningless.
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
