"""train.py with patches: the variable DISTURB=NAME:ARGUMENT,... calls functions below.

Run as `python tests/training/disturbed.py`, with the arguments of train.py.
"""

import logging
import os
import pathlib
import runpy
import sys
import threading
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def halt_in_write(step: int) -> None:
    """Prints `writing STEP` when that checkpoint is nearly complete, and hangs."""
    from orbax.checkpoint._src.path import atomicity

    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def halting_finalize(self: Any, *arguments: Any, **options: Any) -> None:
        if self.get_final().name == str(step):
            print(f"writing {step}", flush=True)
            threading.Event().wait()
        await finalize(self, *arguments, **options)

    atomicity.AtomicRenameTemporaryPath.finalize = halting_finalize


def hurry(attempts: int) -> None:
    """Retries writing after a tenth of a second, at the end this number of times."""
    from nfnets.training import workdir

    workdir._RETRY_SECONDS = 0.1
    workdir._LAST_RETRIES = (0.1,) * attempts


def say_reports() -> None:
    """Prints, in every process, the steps whose metrics are reported."""
    from nfnets.training import workdir

    write = workdir.Workdir.write_metrics

    def loud_write(self: Any, step: int, metrics: Any) -> None:
        write(self, step, metrics)
        print(f"report {step}", flush=True)

    workdir.Workdir.write_metrics = loud_write


def say_compilations() -> None:
    """Prints, in every process, what is compiled."""
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
