"""The figures of the steps since the last log line."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.models import Params

# Metrics that are not averaged between two log lines.
_LAST_VALUE = ("learning_rate",)
_MAXIMUM = ("agc_max_ratio",)

# What must be finite: the loss, and the gradient that has gone into the parameters.
_WATCHED = ("loss", "gradient_norm")

# Steps that the host runs ahead of the devices.
_AHEAD = 2


class NonFiniteError(Exception):
    """A loss, a gradient or a parameter is NaN or infinite.

    Attributes:
      step: number of the update, from 1.
      learning_rate: of that update.
    """

    def __init__(self, step: int, what: str, learning_rate: float) -> None:
        """`what` is not finite after the update `step`."""
        self.step = step
        self.learning_rate = learning_rate
        super().__init__(f"{what} at step {step} (learning rate {learning_rate:.3g})")


@jax.jit
def _all_finite(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()


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
                value = float(metrics[name])
                if not math.isfinite(value):
                    what = f"{name.replace('_', ' ')} is {value}"
                    raise NonFiniteError(step, what, float(metrics["learning_rate"]))

    def check_parameters(self, step: int, params: Params) -> None:
        """Makes sure that the last update has left every parameter finite.

        Its loss and its gradient belong to the parameters before it.

        Args:
          step: of the last update.
          params: after it, replicated.

        Raises:
          NonFiniteError: one is not.
        """
        # One device's copy: the others', and other processes', are the same.
        arrays = [array.addressable_data(0) for array in jax.tree.leaves(params)]
        if not _all_finite(arrays):
            rate = float(self._steps[-1]["learning_rate"])
            raise NonFiniteError(step, "a parameter is not finite", rate)

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
