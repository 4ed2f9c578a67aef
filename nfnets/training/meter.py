"""The figures of the steps since the last log line."""

from collections import deque
from collections.abc import Iterator, Mapping
import contextlib
import math
import time

import jax
import numpy as np

# Metrics that are not averaged between two log lines.
_LAST_VALUE = ("learning_rate",)
_MAXIMUM = ("agc_max_ratio",)

# What must be finite: the loss, and the gradient that has gone into the parameters.
_WATCHED = ("loss", "gradient_norm")

# Steps that the host runs ahead of the devices.
_AHEAD = 2


class NonFiniteError(Exception):
    """A loss or a gradient is NaN or infinite.

    Attributes:
      step: number of the update, from 1.
      learning_rate: of that update.
    """

    def __init__(self, step: int, name: str, metrics: Mapping[str, jax.Array]) -> None:
        """Describes the update `step`, whose metric `name` is not finite."""
        self.step = step
        self.learning_rate = float(metrics["learning_rate"])
        title = name.replace("_", " ")
        super().__init__(
            f"{title} is {float(metrics[name])} at step {step} "
            f"(learning rate {self.learning_rate:.3g})"
        )


class Meter:
    """Collects the metrics of the steps since the last log line, and the time they took."""

    def __init__(self, batch_size: int) -> None:
        """`batch_size` counts the images of a step."""
        self._batch_size = batch_size
        self._steps: list[Mapping[str, jax.Array]] = []
        self._running: deque[tuple[int, Mapping[str, jax.Array]]] = deque()
        self._timed_steps = 0
        self._created = time.monotonic()
        self._start: float | None = None
        # Collectives of queued steps can deadlock on CPU devices: one step at a time there.
        self._ahead = 0 if jax.default_backend() == "cpu" else _AHEAD

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds a step; its values may still be under computation.

        Raises:
          NonFiniteError: in this step or in one before it.
        """
        self._steps.append(metrics)
        self._running.append((step, metrics))
        self.settle(0 if self._start is None else self._ahead)
        if self._start is None:  # the first step compiles; time counts from its end
            self._start = time.monotonic()
        else:
            self._timed_steps += 1

    def settle(self, ahead: int = 0) -> None:
        """Waits until no more than `ahead` steps are under computation.

        Raises:
          NonFiniteError: in one of those that are done.
        """
        while len(self._running) > ahead:
            step, metrics = self._running.popleft()
            for name in _WATCHED:
                if not math.isfinite(float(metrics[name])):
                    raise NonFiniteError(step, name, metrics)

    def summarize(self) -> dict[str, float]:
        """Returns the figures since the last call and starts anew."""
        steps = jax.device_get(self._steps)
        now = time.monotonic()
        summary = {}
        for key in steps[0]:
            values = np.asarray([step[key] for step in steps], np.float64)
            if key in _LAST_VALUE:
                value = values[-1]
            elif key in _MAXIMUM:
                value = values.max()
            else:
                value = values.mean()
            summary[f"train/{key}"] = float(value)
        if self._timed_steps:
            timed, seconds = self._timed_steps, now - self._start
        else:  # the very first step alone, compilation included
            timed, seconds = len(steps), now - self._created
        summary["train/images_per_sec"] = timed * self._batch_size / max(seconds, 1e-9)
        self._steps, self._timed_steps, self._start = [], 0, now
        return summary

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose duration does not count."""
        entered = time.monotonic()
        yield
        if self._start is not None:
            self._start += time.monotonic() - entered
