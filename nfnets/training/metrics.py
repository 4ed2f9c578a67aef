"""Metrics and time of the steps between reports, checks for NaN, and profiling."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.models import Params
from nfnets.training.distributed import log

# Metrics that are not averaged between two reports.
_LAST_VALUE = ("learning_rate",)
_MAXIMUM = ("agc_max_ratio",)

# Metrics that must be finite: the loss, and the gradient of the update.
_WATCHED = ("loss", "gradient_norm")

# Share of the time that steps may wait for input before a line says so, and the shortest
# interval from which that is judged (seconds).
_MAX_DATA_WAIT, _MIN_INTERVAL = 0.05, 10.0

# Steps that the host runs ahead of the devices.
_MAX_IN_FLIGHT = 2


class NonFiniteError(Exception):
    """A loss, a gradient or a parameter is NaN or infinite.

    Attributes:
      step: number of the update, from 1.
      learning_rate: of that update.
    """

    def __init__(self, step: int, what: str, learning_rate: float) -> None:
        """`what` describes the value after the update `step`."""
        self.step = step
        self.learning_rate = learning_rate
        super().__init__(f"{what} at step {step} (learning rate {learning_rate:.3g})")


@jax.jit
def _all_finite(arrays: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()


class StepMetrics:
    """Collects the metrics of the steps since the last report, and measures their time."""

    def __init__(self, batch_size: int) -> None:
        """`batch_size` is the number of images of a step."""
        self._batch_size = batch_size
        self._steps: list[Mapping[str, jax.Array]] = []
        self._running: deque[tuple[int, Mapping[str, jax.Array]]] = deque()
        self._timed_steps = 0
        self._created = time.monotonic()
        self._start: float | None = None
        self._waited = 0.0
        self._has_warned = False
        # Collectives of queued steps can deadlock on CPU devices: one step at a time.
        self._in_flight = 0 if jax.default_backend() == "cpu" else _MAX_IN_FLIGHT

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Adds a step, whose values may still be being computed.

        Raises:
          NonFiniteError: in this step or in an earlier one.
        """
        self._steps.append(metrics)
        self._running.append((step, metrics))
        self.wait(0 if self._start is None else self._in_flight)
        if self._start is None:  # the first step compiles; time counts from its end
            self._start = time.monotonic()
        else:
            self._timed_steps += 1

    def wait(self, in_flight: int = 0) -> None:
        """Waits until at most `in_flight` steps are still being computed.

        Raises:
          NonFiniteError: in one of the others.
        """
        while len(self._running) > in_flight:
            step, metrics = self._running.popleft()
            for name in _WATCHED:
                value = float(metrics[name])
                if not math.isfinite(value):
                    what = f"{name.replace('_', ' ')} is {value}"
                    raise NonFiniteError(step, what, float(metrics["learning_rate"]))

    def check_parameters(self, step: int, params: Params) -> None:
        """Checks that every parameter is finite after the last update.

        The loss and the gradient of a step belong to the parameters before its update.

        Args:
          step: of the last update.
          params: after it, replicated.

        Raises:
          NonFiniteError: one is not.
        """
        # One device's copy: the others', and other processes', are the same.
        arrays = [array.addressable_data(0) for array in jax.tree.leaves(params)]
        if not _all_finite(arrays):
            rate = float(self._steps[-1]["learning_rate"]) if self._steps else math.nan
            raise NonFiniteError(step, "a parameter is not finite", rate)

    def summarize(self) -> dict[str, float]:
        """Returns the metrics since the last call as `train/NAME` and resets them."""
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
        if self._timed_steps and self._start is not None:
            timed, seconds = self._timed_steps, now - self._start
        else:  # the very first step alone, compilation included
            timed, seconds = len(steps), now - self._created
        summary["train/images_per_sec"] = timed * self._batch_size / max(seconds, 1e-9)
        share = min(1.0, self._waited / max(seconds, 1e-9))
        summary["train/data_wait"] = share
        if share > _MAX_DATA_WAIT and seconds >= _MIN_INTERVAL and not self._has_warned:
            self._has_warned = True
            log(
                f"WARNING   training waits for input {share:.0%} of the time "
                "(train/data_wait); more config.data.workers (processes), more "
                "config.data.threads, or smaller image files may help"
            )
        self._steps, self._timed_steps, self._start = [], 0, now
        self._waited = 0.0
        return summary

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Counts the duration of a context as `train/data_wait`, a share of the time."""
        entered = time.monotonic()
        yield
        self._waited += time.monotonic() - entered

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the duration of a context from the measured time."""
        entered = time.monotonic()
        yield
        if self._start is not None:
            self._start += time.monotonic() - entered


class Profiler:
    """Traces the steps of `config.train.profile`; a context manager."""

    def __init__(self, steps: tuple[int, ...] | None, folder: pathlib.Path) -> None:
        """Prepares the trace.

        Args:
          steps: (start, stop), of which `stop` is not traced; None: no trace.
          folder: of the run; the trace goes into `profile` in it.
        """
        self._steps = steps
        self._folder = folder / "profile"
        self._is_tracing = False

    def before_step(self, step: int) -> None:
        """Starts or stops the trace if it is time."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._is_tracing = True
        elif self._steps is not None and step == self._steps[1]:
            self._end()

    def _end(self) -> None:
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            log(f"profile   {self._folder}, steps {self._steps}")

    def __enter__(self) -> "Profiler":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the trace."""
        self._end()
