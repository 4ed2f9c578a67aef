"""How the threads and processes behind some batches learn that these were closed."""

import contextlib
import pathlib
import secrets
import tempfile
import threading
import time

# How often a waiting worker process looks whether the batches were closed.
_SECONDS_BETWEEN_LOOKS = 0.2


class BatchesClosedError(RuntimeError):
    """Ends what is still being made for batches that nobody wants any more."""


class Closing:
    """Whether some batches were closed; picklable, for worker processes.

    Threads of this process see an event. Worker processes see a file that exists from
    `set` to `clear`: Grain has no way to hand them an event of multiprocessing.
    """

    def __init__(self) -> None:
        """Of batches that are open."""
        name = f"nfnets-closing-{secrets.token_hex(8)}"
        self._file = pathlib.Path(tempfile.gettempdir(), name)
        self._event: threading.Event | None = threading.Event()

    def set(self) -> None:
        """Says that the batches are being closed."""
        assert self._event is not None, "worker processes do not close batches"
        self._event.set()
        # Without the file, closing takes longer: the workers wait to no purpose.
        with contextlib.suppress(OSError):
            self._file.touch()

    def clear(self) -> None:
        """Removes the file, once there are no worker processes any more."""
        with contextlib.suppress(OSError):
            self._file.unlink()

    def is_set(self) -> bool:
        """Whether the batches are being closed or were closed."""
        return self._event.is_set() if self._event is not None else self._file.exists()

    def sleep(self, seconds: float) -> None:
        """Waits.

        Raises:
            BatchesClosedError: as soon as the batches are closed.
        """
        end = time.monotonic() + seconds
        while not self.is_set():
            left = end - time.monotonic()
            if left <= 0:
                return
            if self._event is not None:
                self._event.wait(left)
            else:
                time.sleep(min(left, _SECONDS_BETWEEN_LOOKS))
        raise BatchesClosedError("the batches were closed")

    def __getstate__(self) -> dict[str, object]:
        return {"_file": self._file, "_event": None}
