"""train.py with something going on in it: DISTURB=NAME:ARGUMENT,... calls functions below.

Run as `python tests/training/disturbed.py`, with the arguments of train.py.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import os
import pathlib
import runpy
import sys
import threading
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]


def pause_at(step: int) -> None:
    """Waits for a line on stdin once this step is reported, as `paused at STEP` says."""
    from nfnets.training import metrics

    report = metrics.Progress.report

    def paused_report(self: Any, number: int, figures: Any) -> None:
        report(self, number, figures)
        if number == step:
            self.say(f"paused at {step}")
            sys.stdin.readline()

    metrics.Progress.report = paused_report


def halt_in_write(step: int) -> None:
    """Says `writing STEP` when that checkpoint is all but complete, and stays there."""
    from orbax.checkpoint._src.path import atomicity

    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def halting_finalize(self: Any, *arguments: Any, **options: Any) -> None:
        if self.get_final().name == str(step):
            print(f"writing {step}", flush=True)
            threading.Event().wait()
        await finalize(self, *arguments, **options)

    atomicity.AtomicRenameTemporaryPath.finalize = halting_finalize


def poison(batch: int) -> None:
    """The update with this batch, counted from 1, makes everything NaN."""
    import jax

    from nfnets.training.step_cache import StepCache

    prepare = StepCache.prepare
    _change_batches(lambda n, b: b._replace(labels=b.labels - 100) if n == batch else b)

    def poisoned_prepare(self: StepCache, *arguments: Any) -> Callable:
        prepared = prepare(self, *arguments)

        def call(state: Any, arrays: Any) -> tuple[Any, Any]:
            is_poison = np.asarray(arrays["labels"]).min() < 0
            state, metrics = prepared(state, arrays)
            if not is_poison:
                return state, metrics
            nan = {"loss": metrics["loss"] * np.nan}
            return state._replace(
                params=jax.tree.map(lambda x: x * np.nan, state.params)
            ), {**metrics, **nan}

        return call

    StepCache.prepare = poisoned_prepare


def leave_out(first: int, last: int) -> None:
    """The batches `first` to `last` are not there."""
    _change_batches(lambda n, b: None if first <= n <= last else b)


def _change_batches(change: Callable[[int, Any], Any]) -> None:
    from nfnets.training import loop

    train_batches = loop.train_batches

    @contextlib.contextmanager
    def changed_batches(*arguments: Any, **options: Any) -> Iterator[Iterator[Any]]:
        first = options["start_step"] + 1
        with train_batches(*arguments, **options) as batches:

            def changed() -> Iterator[Any]:
                for number, batch in enumerate(batches, start=first):
                    batch = change(number, batch)
                    if batch is not None:
                        yield batch

            yield changed()

    loop.train_batches = changed_batches


def hurry(attempts: int) -> None:
    """Writing again is tried after a tenth of a second, at the end so many times."""
    from nfnets.training import records

    records._RETRY_SECONDS = 0.1
    records._LAST_RETRIES = (0.1,) * attempts


def say_reports() -> None:
    """Every process says which step it reports."""
    from nfnets.training import records

    report = records.Records.report

    def loud_report(self: Any, step: int, metrics: Any) -> None:
        report(self, step, metrics)
        print(f"report {step}", flush=True)

    records.Records.report = loud_report


def say_compilations() -> None:
    """Every process says what it compiles."""
    import jax

    class Handler(logging.Handler):
        """Prints."""

        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("Compiling "):
                print(f"compiled {message.split()[1]}", flush=True)

    jax.config.update("jax_log_compiles", True)
    logger = logging.getLogger("jax")
    logger.addHandler(Handler())
    logger.propagate = False
    for handler in list(logger.handlers):
        if not isinstance(handler, Handler):
            logger.removeHandler(handler)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for disturbance in os.environ["DISTURB"].split(","):
        name, *arguments = disturbance.split(":")
        globals()[name](*map(int, arguments))
    sys.argv[0] = "train.py"
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
