"""Checkpoints: the train state and what it belongs to, written by Orbax."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import logging
import pathlib
import shutil
import time
from typing import Any
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nfnets.errors import UserError
from nfnets.training.provenance import Provenance
from nfnets.training.state import TrainState, Weights, flatten_state, select_weights

BEST_METRIC = "eval/top1"
_SHOWN_DIFFERENCES = 4

# Size of a checkpoint on disk, of that of its arrays; Orbax compresses them.
_COMPRESSION = 0.8


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be read as it was written."""


class Checkpoints:
    """The checkpoints of one workdir. Saving continues in the background.

    The state is stored as one flat dictionary from path to array, so that a checkpoint
    describes itself and two can be compared name by name. The CRC-32 checksums of the
    arrays are stored with the provenance. Of several processes one reads and writes; the
    state is the same in all of them.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, keep_best: int = 0) -> None:
        """Opens or creates `workdir/checkpoints`.

        Args:
          workdir: of the run.
          keep: number of newest checkpoints to keep.
          keep_best: number of best ones, by `BEST_METRIC`, to keep in addition.
        """
        _silence_orbax()
        self._folder = (pathlib.Path(workdir) / "checkpoints").absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._policies: list[preservation_policy.PreservationPolicy] = [
            preservation_policy.LatestN(keep)
        ]
        if keep_best:
            self._policies.append(
                preservation_policy.BestN(
                    n=keep_best,
                    get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._pending: int | None = None  # step of a save in progress
        self._has_failed = False  # to write one, since the last complete checkpoint
        self._open()

    def _open(self) -> None:
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    self._policies
                ),
                multiprocessing_options=alone,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                "provenance": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            },
        )

    def latest_step(self) -> int | None:
        """Returns the newest checkpoint's step, None if there is none.

        Includes a save in progress; `wait` completes it.
        """
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of all checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        provenance: Provenance,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint of the state's step; does nothing if it exists.

        Args:
          state: replicated; may be donated once this returns.
          provenance: what it belongs to.
          metrics: of an evaluation at this step, for keeping the best.

        Raises:
          OSError: this checkpoint or the one before it could not be written. What was
            complete before stays.
        """
        step = int(state.step)
        self.wait()
        if step in self._manager.all_steps():
            return
        # Copied, because on CPU the next step would overwrite the arrays being saved.
        arrays = {path: np.array(leaf) for path, leaf in flatten_state(state).items()}
        # On a full disk, Orbax's threads would each print a traceback.
        needed = _COMPRESSION * sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(
                f"checkpoint {step}: the disk has {free / 1e6:.0f} MB left, of about "
                f"{needed / 1e6:.0f} MB needed"
            )
        sums = {path: _checksum(array) for path, array in arrays.items()}
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    provenance=ocp.args.JsonSave(
                        {**provenance.as_json(), "checksums": sums}
                    ),
                ),
                # Without the metric, Orbax could not rank the checkpoint.
                metrics=dict(metrics) if metrics and BEST_METRIC in metrics else None,
            )
            self._pending = step

    def poll(self) -> None:
        """Polls a save in progress without blocking.

        Raises:
          OSError: the checkpoint could not be written.
        """
        if self._pending is None or self._manager.is_saving_in_progress():
            return
        self.wait()

    def wait(self) -> None:
        """Waits for a save in progress.

        Raises:
          OSError: the checkpoint could not be written.
        """
        step, self._pending = self._pending, None
        if step is None:
            return
        with self._writing(step):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        if self._has_failed:
            # Again: threads of the failed attempt may have kept writing for a while.
            with contextlib.suppress(OSError):
                self.remove_unfinished()
        self._has_failed = False

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns any error of Orbax into an OSError and restarts Orbax."""
        try:
            yield
        except Exception as error:  # of many types: OSError, ValueError, JaxRuntimeError
            self._pending = None
            self._has_failed = True
            with contextlib.suppress(Exception):  # the same error again
                self._manager.close()
            self._open()
            with contextlib.suppress(OSError):
                self.remove_unfinished()  # it takes space that the next attempt needs
            raise OSError(f"checkpoint {step}: {_first_line(error)}") from error

    def restore_newest(
        self,
        template: TrainState,
        *,
        log: Callable[[str], None],
        check: Callable[[Provenance], object] = lambda provenance: None,
    ) -> tuple[TrainState, Provenance] | None:
        """Reads the newest checkpoint that is not damaged.

        Damaged ones that are newer are moved to `damaged/` in the workdir.

        Args:
          template: expected arrays or `jax.ShapeDtypeStruct`s.
          log: gets a line about each damaged one.
          check: raises if a checkpoint is of another run, before its arrays are read.

        Returns:
          The state as numpy arrays and what it belongs to; None without any checkpoint.

        Raises:
          UserError: the checkpoint holds other arrays, or all checkpoints are damaged, in
            which case they stay where they are.
          OSError: a damaged one cannot be moved.
        """
        try:
            self.wait()
        except OSError as error:
            log(f"WARNING   could not write {error}")
        errors: dict[int, DamagedCheckpointError] = {}
        for step in reversed(self.all_steps()):
            try:
                provenance = self.read_provenance(step)
                check(provenance)
                found = self.restore(step, template), provenance
            except DamagedCheckpointError as error:
                errors[step] = error
                continue
            for damaged, reason in errors.items():
                log(f"WARNING   {reason}; moved to {self._set_aside(damaged)}")
            return found
        if not errors:
            return None
        for reason in errors.values():
            log(f"WARNING   {reason}")
        raise UserError(
            f"no checkpoint in {self._folder} can be read; choose another --workdir to "
            "start over"
        )

    def remove_unfinished(self) -> None:
        """Removes the unfinished checkpoints of runs that were killed while writing.

        Only for the one process that writes here.

        Raises:
          OSError: they cannot be removed.
        """
        for path in self._folder.iterdir():
            if path.is_dir() and ocp.utils.TMP_DIR_SUFFIX in path.name:
                shutil.rmtree(path)

    def _set_aside(self, step: int) -> pathlib.Path:
        place = self._folder.parent / "damaged" / f"{step}-{time.time_ns()}"
        place.parent.mkdir(exist_ok=True)
        (self._folder / str(step)).rename(place)
        self._manager.reload()
        return place

    def read_provenance(self, step: int) -> Provenance:
        """Returns what the checkpoint of `step` belongs to.

        Raises:
          DamagedCheckpointError: it cannot be read.
        """
        provenance, _ = self._read_provenance(step)
        return provenance

    def _read_provenance(self, step: int) -> tuple[Provenance, Mapping[str, int]]:
        with self._reading(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(provenance=ocp.args.JsonRestore())
            )
            stored = restored["provenance"]
            # Checkpoints of older versions have none.
            return Provenance.from_json(stored), stored.get("checksums", {})

    def restore(self, step: int, template: TrainState) -> TrainState:
        """Reads the state of `step`, as numpy arrays.

        Args:
          step: of an existing checkpoint.
          template: expected arrays or `jax.ShapeDtypeStruct`s.

        Raises:
          UserError: the checkpoint holds other arrays; the message names some.
          DamagedCheckpointError: it cannot be read.
        """
        expected = flatten_state(template)
        self._check_arrays(step, expected)
        restored = self._read_arrays(step, expected)
        leaves = [restored[path] for path in expected]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def restore_weights(self, step: int) -> Weights:
        """Reads parameters and averages without a config or a template.

        Returns:
          "raw" for the parameters themselves, or an average's name -> (params, net_state),
          as numpy arrays.

        Raises:
          DamagedCheckpointError: they cannot be read.
        """
        return select_weights(self._read_arrays(step, self._metadata(step)))

    def _read_arrays(self, step: int, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Reads arrays with the shapes and dtypes of `expected`; checks their checksums."""
        _, sums = self._read_provenance(step)
        templates = {
            path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            for path, leaf in expected.items()
        }
        with self._reading(step):
            arrays = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(templates))
            )["state"]
        for path, array in arrays.items():
            if sums and _checksum(array) != sums.get(path):
                raise DamagedCheckpointError(
                    f"checkpoint {self._folder}/{step} is damaged: wrong checksum of {path}"
                )
        return arrays

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns any error of Orbax into a DamagedCheckpointError."""
        try:
            yield
        except Exception as error:  # of many types: OSError, ValueError, KeyError, ...
            raise DamagedCheckpointError(
                f"checkpoint {self._folder}/{step} is damaged: {_first_line(error)}"
            ) from error

    def _metadata(self, step: int) -> Mapping[str, Any]:
        with self._reading(step):
            metadata = self._manager.item_metadata(step)["state"]
            if metadata is None:
                raise ValueError("its list of arrays is missing")
            return dict(metadata.items())

    def _check_arrays(self, step: int, expected: Mapping[str, Any]) -> None:
        stored = {p: tuple(entry.shape) for p, entry in self._metadata(step).items()}
        wanted = {path: tuple(leaf.shape) for path, leaf in expected.items()}
        if stored == wanted:
            return
        differences = [
            f"{path} is {_shape_text(stored.get(path))} there and "
            f"{_shape_text(wanted.get(path))} here"
            for path in sorted(stored.keys() | wanted.keys())
            if stored.get(path) != wanted.get(path)
        ]
        more = len(differences) - _SHOWN_DIFFERENCES
        raise UserError(
            f"the checkpoint {self._manager.directory}/{step} does not fit this model or "
            f"optimizer: {'; '.join(differences[:_SHOWN_DIFFERENCES])}"
            + (f"; and {more} more" if more > 0 else "")
        )

    def close(self) -> None:
        """Waits for a save in progress, then closes.

        Raises:
          OSError: the checkpoint could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()


@functools.cache
def _silence_orbax() -> None:
    """Keeps Orbax's tracebacks off the screen: `Checkpoints` reports errors in one line."""
    logging.getLogger("orbax").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname)


def _checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).data)


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
