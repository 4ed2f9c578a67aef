"""Requests to stop: signals, and preemption notices."""

from collections.abc import Iterator
import contextlib
import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

# SIGTERM: Slurm, Kubernetes, cloud preemption; SIGUSR1: Slurm's --signal=USR1@SECONDS.
_NOTICES = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a stop of the run was requested.

    Attributes:
      signal_number: of the request; None without one, or if another process received it.
    """

    def __init__(self) -> None:
        """No stop has been requested."""
        self.signal_number: int | None = None

    def is_due(self, step: int) -> bool:
        """Returns whether to stop after this step, the same one in every process.

        Args:
          step: that was just dispatched; to be called after every step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """0 after a notice, 130 after Ctrl-C."""
        return 130 if self.signal_number == signal.SIGINT else 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches requests to stop for the length of a context.

    A second Ctrl-C interrupts at once. With several processes, JAX's preemption service
    handles SIGTERM and informs all of them.
    """
    request = StopRequest()
    is_alone = jax.process_count() == 1

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and request.signal_number is not None:
            raise KeyboardInterrupt
        request.signal_number = number

    def forward(number: int, frame: FrameType | None) -> None:
        del number, frame
        os.kill(os.getpid(), signal.SIGTERM)

    if is_alone:
        handlers = dict.fromkeys((*_NOTICES, signal.SIGINT), note)
    else:
        handlers = {signal.SIGUSR1: forward}
    before = {number: signal.signal(number, call) for number, call in handlers.items()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
