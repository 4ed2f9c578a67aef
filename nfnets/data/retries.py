"""Patience with a source that fails for a while, such as a network file system."""

from collections.abc import Callable
import dataclasses
import time
from typing import TypeVar

from absl import logging

from nfnets.data.records import (
    Record,
    RecordSource,
    UnreadableRecordError,
    is_lasting,
    reason_of,
)
from nfnets.errors import UserError

# When a source fails, it fails for many records at once: one line tells of all of them.
_SECONDS_BETWEEN_WARNINGS = 30.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retries:
    """How long to go on with something that cannot be read at the moment.

    Attributes:
        first_wait: seconds before the second attempt; each wait is twice the one before.
        patience: seconds since the first failure after which to give up. Counts what the
            attempts themselves take: a read of a network file system may fail only after
            minutes, and ten of those would be long.
    """

    first_wait: float = 0.1
    patience: float = 60.0


DEFAULT_RETRIES = Retries()


def read_record(
    source: RecordSource,
    index: int,
    retries: Retries = DEFAULT_RETRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> Record:
    """Reads a record, again and again as long as its source fails for the moment.

    Args:
        source: the records.
        index: of the record.
        retries: how long to go on.
        sleep: waits for so many seconds; may raise to give up early.

    Raises:
        UnreadableRecordError: the record is missing or damaged.
        UserError: the source has failed for too long.
    """
    name = f"record {index}"  # if the source does not name it
    try:
        return retry(lambda: source[index], name, retries, sleep)
    except OSError as error:
        raise UnreadableRecordError(
            str(error.filename or name), reason_of(error)
        ) from error


def retry(
    read: Callable[[], T],
    name: str,
    retries: Retries = DEFAULT_RETRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Calls `read` until it does not fail, or fails for good.

    Args:
        read: may raise an OSError.
        name: of what it reads, where the error has no file name.
        retries: how long to go on.
        sleep: waits for so many seconds; may raise to give up early.

    Returns:
        What `read` returned.

    Raises:
        OSError: of the kind that trying again does not mend.
        UserError: the other errors went on for too long.
    """
    attempts, wait, first_failure = 0, retries.first_wait, None
    while True:
        attempts += 1
        try:
            return read()
        except OSError as error:
            name = str(error.filename or name)
            if is_lasting(error):
                raise
            reason = reason_of(error)
            now = time.monotonic()
            first_failure = now if first_failure is None else first_failure
            spent = now - first_failure
            if spent + wait > retries.patience:
                raise UserError(
                    f"cannot read {name}: {reason} ({attempts} attempts in {spent:.3g} s); "
                    "check the disk or the network file system and start again"
                ) from error
            _warn(name, reason, retries.patience)
        sleep(wait)
        wait *= 2


def _warn(name: str, reason: str, patience: float) -> None:
    """Says that reading fails, not more often than every few seconds per process."""
    logging.log_every_n_seconds(
        logging.WARNING,
        "Cannot read %s: %s; trying again for %.3g s (one such warning in %.3g s at most)",
        _SECONDS_BETWEEN_WARNINGS,
        name,
        reason,
        patience,
        _SECONDS_BETWEEN_WARNINGS,
    )
