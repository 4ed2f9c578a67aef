"""A run's folder: lock, config.json, metrics, checkpoints.

All processes of a run call the same methods of `Workdir`; process 0 reads and writes.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import os
import pathlib
import socket
import sys
import time
from typing import Any

from nfnets.errors import UserError
from nfnets.files import write_text_atomically
from nfnets.training import distributed
from nfnets.training.checkpoints import (
    BEST_METRIC,
    Checkpoints,
    DamagedCheckpointError,
)
from nfnets.training.config import Config, unflatten
from nfnets.training.metric_writers import METRICS_FILE, MetricWriters, read_metrics
from nfnets.training.provenance import Provenance
from nfnets.training.state import TrainState, Weights

CONFIG_FILE = "config.json"
LOCK_FILE = "train.lock"

# A failed checkpoint is retried after this time ...
_RETRY_SECONDS = 30.0
# ... and the last one of a run after each of these.
_LAST_RETRIES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


class Workdir:
    """The folder of a run in progress; a context manager."""

    def __init__(self, config: Config, folder: pathlib.Path) -> None:
        """Opens or creates the folder and locks it.

        Raises:
          UserError: another run uses it, or it is not writable.
        """
        self._config = config
        self._folder = folder
        self._writers: MetricWriters | None = None
        self._retry_at: float | None = None
        self._checkpoints: Checkpoints | None = None
        self._stack = contextlib.ExitStack()
        if not distributed.is_primary():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(lock_folder(folder))
            self._checkpoints = Checkpoints(
                folder,
                keep=config.checkpoint.keep,
                keep_best=config.checkpoint.keep_best,
            )
            self._checkpoints.remove_unfinished()
        except OSError as error:
            raise UserError(f"cannot write to the workdir {folder}: {error}") from None

    def __enter__(self) -> "Workdir":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes everything, after waiting for a save in progress."""
        with self._stack:
            for part in (self._writers, self._checkpoints):
                if part is None:
                    continue
                try:
                    part.close()
                except OSError as error:  # must not hide the reason why the run ends
                    distributed.log(f"WARNING   could not write {error}")

    def begin(self, first_step: int) -> None:
        """Writes config.json and opens the metrics, dropping those after `first_step`."""
        if not distributed.is_primary():
            return
        if self._writers is not None:
            self._writers.close()
        try:
            text = json.dumps(dataclasses.asdict(self._config), indent=2) + "\n"
            write_text_atomically(self._folder / CONFIG_FILE, text)
            self._writers = MetricWriters(self._config, self._folder, first_step)
        except OSError as error:
            raise UserError(f"cannot write to {self._folder}: {error}") from None

    def restore(
        self, template: TrainState, check: Callable[[Provenance], object]
    ) -> tuple[TrainState, Provenance] | None:
        """Returns the newest undamaged checkpoint, the same in every process.

        Args:
          template: expected shapes and dtypes.
          check: raises if a checkpoint is of another run.

        Returns:
          The state as host arrays and what it belongs to; None without a checkpoint.

        Raises:
          UserError: it holds other arrays, or none can be read.
        """
        found = None
        if self._checkpoints is not None:
            try:
                found = self._checkpoints.restore_newest(
                    template, log=distributed.log, check=check
                )
            except OSError as error:
                raise UserError(f"cannot write to {self._folder}: {error}") from None
        stored = distributed.broadcast_object(found and found[1].as_json())
        if stored is None:
            return None
        state = distributed.broadcast_arrays(template if found is None else found[0])
        return state, Provenance.from_json(stored)

    def newest_step(self) -> int | None:
        """Returns the newest complete checkpoint's step; None without one."""
        step = None
        if self._checkpoints is not None:
            try:
                self._checkpoints.wait()
            except OSError as error:
                distributed.log(f"WARNING   could not write {error}")
            step = self._checkpoints.latest_step()
        return distributed.broadcast_object(step)

    def is_evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl holds an evaluation at this step."""
        entries = []
        if distributed.is_primary():
            entries = read_metrics(self._folder / METRICS_FILE)
        return distributed.broadcast_object(
            any(
                entry["step"] == step and any(key.startswith("eval/") for key in entry)
                for entry in entries
            )
        )

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Passes metrics to the writers of `config.train.writers`."""
        if self._writers is not None:
            self._writers.write(step, metrics)

    def save(
        self,
        state: TrainState,
        provenance: Provenance,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint; a failure is logged and retried later."""
        if self._checkpoints is None:
            return
        try:
            self._checkpoints.save(state, provenance, metrics)
        except OSError as error:
            self._warn_unsaved(error)
        else:
            self._retry_at = None

    def save_now(self, state: TrainState, provenance: Provenance) -> None:
        """Writes a checkpoint and waits for it; for a process that is about to end."""
        if self._checkpoints is None:
            return
        try:
            self._checkpoints.save(state, provenance)
            self._checkpoints.wait()
        except OSError as error:
            distributed.log(f"WARNING   could not write {error}; {self._newest_text()}")
        else:
            distributed.log(
                f"saved     step {int(state.step)} before the error; rerun to resume"
            )

    def needs_saving(self) -> bool:
        """Whether it is time to retry a checkpoint that could not be written."""
        if self._checkpoints is None:
            return False
        try:
            self._checkpoints.poll()
        except OSError as error:
            self._warn_unsaved(error)
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    def _warn_unsaved(self, error: OSError) -> None:
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        distributed.log(
            f"WARNING   could not write {error}; {self._newest_text()}; training continues "
            f"and tries again in {_RETRY_SECONDS:.0f} s"
        )

    def _newest_text(self) -> str:
        newest = None if self._checkpoints is None else self._checkpoints.latest_step()
        if newest is None:
            return "there is no checkpoint"
        return f"the newest checkpoint is that of step {newest}"

    def finish(self, state: TrainState, provenance: Provenance) -> None:
        """Writes the last checkpoint of the run, if necessary after several attempts.

        Raises:
          UserError: it could not be written.
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
                    raise UserError(
                        f"could not write {error}; {self._newest_text()}: free some space "
                        "and rerun the same command to resume",
                        exit_code=1,
                    ) from error
                distributed.log(
                    f"WARNING   could not write {error}; trying again in {pause:g} s"
                )
                time.sleep(pause)


@contextlib.contextmanager
def lock_folder(folder: pathlib.Path) -> Any:
    """Locks a workdir for this process for the length of a context.

    A POSIX record lock, which the kernel releases when the process ends in any way: the
    lock file that a dead process leaves behind does not block later runs.

    Raises:
      UserError: another process holds the lock; the message names it.
    """
    path = folder / LOCK_FILE
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"{folder} is in use by another run ({_holder(file.read())}); stop it "
                    "or choose another --workdir"
                ) from None
            print(  # some network file systems have no locks
                f"WARNING: cannot lock {path} ({error.strerror}); make sure that no other "
                "run uses this workdir",
                file=sys.stderr,
            )
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # the lock holds on a full disk, too
            file.truncate(0)
            os.write(file.fileno(), json.dumps(holder).encode())
        yield
        # The empty file stays: removing it could take it from the next run.
        file.truncate(0)


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError):  # not yet written
        return "unknown process"


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """A checkpoint read back.

    Attributes:
      step: of the checkpoint.
      flat_config: the run's resolved config, `section.field` -> value.
      class_names: the dataset's, index = label.
      weights: "raw" or an average's name -> (params, net_state), numpy arrays.
    """

    step: int
    flat_config: Mapping[str, Any]
    class_names: tuple[str, ...]
    weights: Weights

    @functools.cached_property
    def config(self) -> Config:
        """The run's resolved config."""
        return unflatten(self.flat_config)


def read_run(
    workdir: str | os.PathLike[str], *, step: int | str | None = None
) -> StoredRun:
    """Reads the weights and averages of a run's checkpoint.

    Args:
      workdir: of a run of `nfnets train`.
      step: of the checkpoint; "best": the one with the highest eval/top1; None: the newest
        that is not damaged.

    Raises:
      UserError: the run, or the checkpoint of that step, does not exist.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no run: there is no folder {folder}/checkpoints")
    checkpoints = Checkpoints(folder)
    try:
        found = checkpoints.all_steps()
        if step == "best":
            step = _best_step(folder, found)
        if not found or (step is not None and step not in found):
            raise UserError(
                f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}; "
                f"it has {', '.join(map(str, found)) or 'none'}"
            )
        for candidate in [n for n in reversed(found) if step in (None, n)]:
            try:
                provenance = checkpoints.read_provenance(candidate)
                weights = checkpoints.restore_weights(candidate)
            except DamagedCheckpointError as error:
                print(f"WARNING: {error}", file=sys.stderr)
                continue
            return StoredRun(candidate, provenance.config, provenance.class_names, weights)
        raise UserError(f"none of the checkpoints of {workdir} can be read")
    finally:
        checkpoints.close()


def _best_step(folder: pathlib.Path, steps: Sequence[int]) -> int:
    scores = {
        entry["step"]: entry[BEST_METRIC]
        for entry in read_metrics(folder / METRICS_FILE)
        if entry.get(BEST_METRIC) is not None and entry["step"] in steps
    }
    if not scores:
        raise UserError(f"{folder} has no checkpoint with {BEST_METRIC} in its metrics")
    return max(scores, key=lambda step: scores[step])
