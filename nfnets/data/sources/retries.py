"""Retries of transient read errors, with exponential backoff."""

from collections.abc import Callable
import dataclasses
import threading
import time
from typing import Self, TypeVar

from absl import logging

from nfnets.data.sources.base import (
    Record,
    RecordSource,
    UnreadableRecordError,
    first_line,
    is_permanent,
)
from nfnets.errors import UserError

_MAX_WAIT = 5.0  # seconds; a source that is back is noticed this soon
# A failing source fails for many records at once; one warning covers them all.
_SECONDS_BETWEEN_WARNINGS = 30.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retries:
    """How long to retry a read that fails.

    Attributes:
      first_wait: seconds before the second attempt. Each wait is twice the previous one,
        up to 5 s.
      patience: seconds after the first failure at which to give up. The duration of the
        attempts counts: a read from a network file system may take minutes to fail.
    """

    first_wait: float = 0.1
    patience: float = 60.0


DEFAULT_RETRIES = Retries()


class CancelEvent(threading.Event):
    """Event that ends all retries; its copies in worker processes are never set."""

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class CancelledError(RuntimeError):
    """A retry was cancelled because the batches were closed."""


@dataclasses.dataclass(frozen=True, eq=False)
class RetryingSource:
    """A record source that retries transient read errors.

    A permanent OSError becomes an UnreadableRecordError; see `retry` for other errors.

    Attributes:
      source: the records.
      retries: how long to retry.
      cancel: ends the retries once it is set.
    """

    source: RecordSource
    retries: Retries = DEFAULT_RETRIES
    cancel: threading.Event = dataclasses.field(default_factory=CancelEvent)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        name = f"record {index}"  # if the error has no file name
        if self.cancel.is_set():
            raise CancelledError(f"reading {name} was cancelled")
        try:
            return retry(lambda: self.source[index], name, self.retries, self.cancel)
        except OSError as error:
            raise UnreadableRecordError(
                str(error.filename or name), first_line(error)
            ) from error


def retry(
    read: Callable[[], T],
    name: str,
    retries: Retries = DEFAULT_RETRIES,
    cancel: threading.Event | None = None,
) -> T:
    """Calls `read` until it succeeds or fails permanently.

    Args:
      read: may raise an OSError.
      name: for messages, if the error has no file name.
      retries: how long to retry.
      cancel: ends the retries once it is set.

    Returns:
      The result of `read`.

    Raises:
      OSError: a permanent error.
      UserError: transient errors lasted too long.
      CancelledError: `cancel` was set.
    """
    cancel = threading.Event() if cancel is None else cancel
    attempts, first_failure = 0, None
    wait = min(retries.first_wait, _MAX_WAIT)
    while True:
        attempts += 1
        try:
            return read()
        except OSError as error:
            name = str(error.filename or name)
            if is_permanent(error):
                raise
            reason = first_line(error)
            now = time.monotonic()
            first_failure = now if first_failure is None else first_failure
            spent = now - first_failure
            if spent + wait > retries.patience:
                raise UserError(
                    f"cannot read {name}: {reason} ({attempts} attempts in {spent:.3g} s); "
                    "check the disk or the network file system, then rerun the command"
                ) from error
            _warn(name, reason, retries.patience)
        if cancel.wait(wait):
            raise CancelledError(f"reading {name} was cancelled")
        wait = min(2 * wait, _MAX_WAIT)


def _warn(name: str, reason: str, patience: float) -> None:
    """Logs a failed read, at most once every few seconds per process."""
    logging.log_every_n_seconds(
        logging.WARNING,
        "Cannot read %s: %s; retrying for up to %.3g s (logged once in %.3g s)",
        _SECONDS_BETWEEN_WARNINGS,
        name,
        reason,
        patience,
        _SECONDS_BETWEEN_WARNINGS,
    )
