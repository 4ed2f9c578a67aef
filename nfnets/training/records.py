"""What a run leaves behind: config, metrics, checkpoints, curves, lines on the screen.

All processes of a run call the same methods; process 0 alone reads and writes.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import pathlib
import time

import ml_collections

from nfnets.analysis.curves import plot_curves
from nfnets.errors import UserError
from nfnets.training import distributed
from nfnets.training.checkpoints import Checkpoints
from nfnets.training.files import write_whole
from nfnets.training.lock import WorkdirLock
from nfnets.training.metrics import METRICS_FILE, MetricsLog, Progress, read_metrics
from nfnets.training.provenance import Provenance
from nfnets.training.state import TrainState

CONFIG_FILE = "config.json"

# A checkpoint that could not be written is tried again after this many seconds ...
_RETRY_SECONDS = 30.0
# ... and the last one of a run after each of these.
_LAST_RETRIES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class Records:
    """The workdir of a run that is going on."""

    def __init__(
        self, config: ml_collections.FrozenConfigDict, workdir: pathlib.Path
    ) -> None:
        """Opens or makes the workdir and locks it.

        Raises:
          UserError: another run holds it, or it cannot be written.
        """
        self._config = config
        self._workdir = workdir
        self._progress: Progress | None = None
        self._log: MetricsLog | None = None
        self._retry_at: float | None = None
        self._checkpoints: Checkpoints | None = None
        self._stack = contextlib.ExitStack()
        if not distributed.is_primary():
            return
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(WorkdirLock(workdir))
            self._checkpoints = Checkpoints(
                workdir,
                keep=config.checkpoint.keep,
                keep_best=config.checkpoint.keep_best,
            )
            self._checkpoints.remove_unfinished()
        except OSError as error:
            raise UserError(f"cannot write to the workdir {workdir}: {error}") from None

    def __enter__(self) -> "Records":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes what is open; a checkpoint in the making is finished first."""
        with self._stack:
            for part in (self._progress, self._log, self._checkpoints):
                if part is None:
                    continue
                try:
                    part.close()
                except OSError as error:  # not to hide the reason why the run ends
                    self.say(f"WARNING   could not write {error}")

    def begin(self, first_step: int) -> None:
        """Opens config.json and the metrics, without the entries after `first_step`."""
        if not distributed.is_primary():
            return
        if self._log is not None:
            self._log.close()
        if self._progress is not None:
            self._progress.close()
        self._progress = Progress(self._config.train.steps, first_step)
        try:
            write_whole(
                self._workdir / CONFIG_FILE,
                json.dumps(self._config.to_dict(), indent=2) + "\n",
            )
            self._log = MetricsLog(self._workdir, first_step, warn=self.say)
        except OSError as error:
            raise UserError(f"cannot write to {self._workdir}: {error}") from None

    def restore(
        self, template: TrainState, check: Callable[[Provenance], object]
    ) -> tuple[TrainState, Provenance] | None:
        """Returns the newest whole checkpoint, the same in every process.

        Args:
          template: shapes and dtypes of what is expected.
          check: raises where a checkpoint is of another run.

        Returns:
          The state as host arrays and what it belongs to; None without a checkpoint.

        Raises:
          UserError: it holds other arrays, or none can be read.
        """
        found = None
        if self._checkpoints is not None:
            try:
                found = self._checkpoints.restore_newest(
                    template, complain=self.say, check=check
                )
            except OSError as error:
                raise UserError(f"cannot write to {self._workdir}: {error}") from None
        stored = distributed.broadcast_object(found and found[1].as_json())
        if stored is None:
            return None
        state = distributed.broadcast_arrays(template if found is None else found[0])
        return state, Provenance.from_json(stored)

    def newest_step(self) -> int | None:
        """Returns the newest whole checkpoint's step; None without one."""
        step = None
        if self._checkpoints is not None:
            try:
                self._checkpoints.wait()
            except OSError as error:
                self.say(f"WARNING   could not write {error}")
            step = self._checkpoints.latest_step()
        return distributed.broadcast_object(step)

    def is_evaluated(self, step: int) -> bool:
        """Whether the metrics hold an evaluation at this step."""
        entries = []
        if distributed.is_primary():
            entries = read_metrics(self._workdir / METRICS_FILE)
        return distributed.broadcast_object(
            any(entry["step"] == step and "eval/top1" in entry for entry in entries)
        )

    def say(self, line: str) -> None:
        """Prints a line, above the progress bar where there is one."""
        if self._progress is not None:
            self._progress.say(line)
        else:
            distributed.say(line)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics down."""
        if self._log is not None:
            self._log.write(step, metrics)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes training metrics down and shows them."""
        self.log(step, metrics)
        if self._progress is not None:
            self._progress.report(step, metrics)

    def save(
        self,
        state: TrainState,
        provenance: Provenance,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint; a failure is said and `needs_saving` afterwards."""
        if self._checkpoints is None:
            return
        try:
            self._checkpoints.save(state, provenance, metrics)
        except OSError as error:
            self._warn_unsaved(error)
        else:
            self._retry_at = None

    def needs_saving(self) -> bool:
        """Whether a checkpoint failed some time ago, so that it is time to try again."""
        if self._checkpoints is None:
            return False
        try:
            self._checkpoints.poll()
        except OSError as error:
            self._warn_unsaved(error)
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    def _warn_unsaved(self, error: OSError) -> None:
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        newest = self._checkpoints.latest_step()
        kept = "there is none yet" if newest is None else f"that of step {newest} stays"
        self.say(
            f"WARNING   could not write {error}; {kept}; training goes on and tries again "
            f"in {_RETRY_SECONDS:.0f} s"
        )

    def finish(self, state: TrainState, provenance: Provenance) -> None:
        """Makes sure that the last checkpoint is written.

        Raises:
          UserError: it is not, after several attempts.
        """
        if self._checkpoints is None:
            return
        for pause in (*_LAST_RETRIES, None):
            try:
                self._checkpoints.save(state, provenance)
                self._checkpoints.wait()
                return
            except OSError as error:
                if pause is None:
                    newest = self._checkpoints.latest_step()
                    kept = (
                        "there is no checkpoint"
                        if newest is None
                        else f"the newest checkpoint is that of step {newest}"
                    )
                    raise UserError(
                        f"could not write {error}; {kept}: make room and start again to go "
                        "on from there",
                        exit_code=1,
                    ) from error
                self.say(f"WARNING   could not write {error}; trying again in {pause:g} s")
                time.sleep(pause)

    def plot(self) -> None:
        """Draws the curves of the run."""
        if not distributed.is_primary():
            return
        try:
            self.say(f"curves    {plot_curves(self._workdir)}")
        except OSError as error:
            self.say(f"WARNING   could not draw the curves: {error}")
