"""Checkpoints: the train state and what it belongs to, written by Orbax."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nfnets.errors import UserError
from nfnets.models import Params, State
from nfnets.training import distributed, integrity
from nfnets.training.provenance import Provenance
from nfnets.training.quiet import quieten_orbax
from nfnets.training.state import TrainState

# The weights themselves, beside their averages.
RAW = "raw"
BEST_METRIC = "eval/top1"
_SHOWN_DIFFERENCES = 4


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be read as it was written."""


class Checkpoints:
    """The checkpoints of one workdir. Saving goes on in the background.

    The state is stored as one flat dictionary from path to array, so that a checkpoint
    describes itself and two can be compared name by name. Of several processes one reads
    and writes; the state is the same in all of them.

    Beside what Orbax writes, each checkpoint has the arrays' CRC-32 sums in its provenance
    and, once it is complete, the sizes of its files in `integrity.FILES_NAME`.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, keep_best: int = 0) -> None:
        """Opens or creates `workdir/checkpoints`.

        Args:
          workdir: of the run.
          keep: newest checkpoints to keep.
          keep_best: best ones by `BEST_METRIC` to keep besides.
        """
        quieten_orbax()
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
        self._unlisted: int | None = None  # step whose files are not listed yet
        self._has_failed = False  # to write one, since the last that was complete
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

        One that is being written counts; `wait` makes sure of it.
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
            self._list_files(step)
            return
        # Copied, because on CPU the step that follows would overwrite what is being saved.
        arrays = {path: np.array(leaf) for path, leaf in _flatten(state).items()}
        sums = {path: integrity.checksum(array) for path, array in arrays.items()}
        with self._writing(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    provenance=ocp.args.JsonSave(
                        integrity.sealed({**provenance.as_json(), "checksums": sums})
                    ),
                ),
                metrics=dict(metrics) if metrics else None,
            )
            self._unlisted = step

    def poll(self) -> None:
        """Looks after a checkpoint that is being written, without waiting for it.

        Raises:
          OSError: it could not be written.
        """
        if self._unlisted is None or self._manager.is_saving_in_progress():
            return
        self.wait()

    def wait(self) -> None:
        """Waits for a checkpoint that is being written.

        Raises:
          OSError: it could not be written.
        """
        step, self._unlisted = self._unlisted, None
        if step is None:
            return
        with self._writing(step):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._list_files(step)
        if self._has_failed and distributed.is_primary():
            # Once more: threads of the failed attempt may have gone on writing for a while.
            with contextlib.suppress(OSError):
                self.remove_unfinished()
        self._has_failed = False

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        """Turns whatever keeps Orbax from writing into an OSError and starts it afresh."""
        try:
            yield
        except Exception as error:  # of many types: OSError, ValueError, JaxRuntimeError
            self._unlisted = None
            self._has_failed = True
            with contextlib.suppress(Exception):  # it says the same once more
                self._manager.close()
            self._open()
            with contextlib.suppress(OSError):
                self.remove_unfinished()  # which takes the room that is wanted
            raise OSError(f"checkpoint {step}: {_first_line(error)}") from error

    def restore_newest(
        self,
        template: TrainState,
        *,
        complain: Callable[[str], None],
        check: Callable[[Provenance], object] = lambda provenance: None,
    ) -> tuple[TrainState, Provenance] | None:
        """Reads the newest checkpoint that is not damaged.

        Damaged ones that are newer are moved to `damaged/` in the workdir.

        Args:
          template: arrays or `jax.ShapeDtypeStruct`s that say what is expected.
          complain: gets a line about each damaged one.
          check: raises where a checkpoint is of another run, before its arrays are read.

        Returns:
          The state as numpy arrays and what it belongs to; None without any checkpoint.

        Raises:
          UserError: the checkpoint holds other arrays, or all of them are damaged; then
            they stay where they are.
          OSError: a damaged one cannot be moved.
        """
        try:
            self.wait()
        except OSError as error:
            complain(f"WARNING   could not write {error}")
        errors: dict[int, DamagedCheckpointError] = {}
        for step in reversed(self.all_steps()):
            try:
                provenance = self.read_provenance(step)
                check(provenance)
                found = self.restore(step, template), provenance
            except DamagedCheckpointError as error:
                errors[step] = error
                continue
            for damaged, error in errors.items():
                complain(f"WARNING   {error}; moved to {self._set_aside(damaged)}")
            self._list_files(step)
            return found
        if not errors:
            return None
        for error in errors.values():
            complain(f"WARNING   {error}")
        raise UserError(
            f"no checkpoint of {self._folder} can be read; choose another --workdir to "
            "start over"
        )

    def remove_unfinished(self) -> None:
        """Removes what runs that were killed while they wrote have left.

        Only for the one process that writes here.

        Raises:
          OSError: it cannot be removed.
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
        stored, _ = self._read_provenance(step)
        return stored

    def _read_provenance(self, step: int) -> tuple[Provenance, Mapping[str, int]]:
        with self._reading(step):
            integrity.check_files(self._folder / str(step))
            restored = self._manager.restore(
                step, args=ocp.args.Composite(provenance=ocp.args.JsonRestore())
            )
            stored = integrity.unsealed(restored["provenance"])
            checksums = stored.pop("checksums", {})  # of older versions: none
            return Provenance.from_json(stored), checksums

    def restore(self, step: int, template: TrainState) -> TrainState:
        """Reads the state of `step`, as numpy arrays.

        Args:
          step: of an existing checkpoint.
          template: arrays or `jax.ShapeDtypeStruct`s that say what is expected.

        Raises:
          UserError: the checkpoint holds other arrays; the message names some.
          DamagedCheckpointError: it cannot be read.
        """
        expected = _flatten(template)
        self._check_arrays(step, expected)
        restored = self._read_arrays(step, expected)
        leaves = [restored[path] for path in expected]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def restore_weights(self, step: int) -> dict[str, tuple[Params, State]]:
        """Reads parameters and averages, which takes no config and no template.

        Returns:
          "raw" for the parameters themselves, or an average's name -> (params, net_state),
          as numpy arrays.

        Raises:
          DamagedCheckpointError: they cannot be read.
        """
        arrays = self._read_arrays(step, self._metadata(step))
        weights = {RAW: (_subtree(arrays, "params"), _subtree(arrays, "net_state"))}
        for name in sorted({p.split("|")[1] for p in arrays if p.startswith("ema|")}):
            weights[name] = (
                _subtree(arrays, f"ema|{name}|0"),
                _subtree(arrays, f"ema|{name}|1"),
            )
        return weights

    def _read_arrays(self, step: int, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of `step`, whose sums are checked, like those `expected`."""
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
            if sums and integrity.checksum(array) != sums[path]:
                raise DamagedCheckpointError(
                    f"checkpoint {self._folder}/{step} is damaged: {path} is not what was "
                    "written"
                )
        return arrays

    def _list_files(self, step: int) -> None:
        # On a full disk it does without: the list only makes damage quieter.
        with contextlib.suppress(OSError):
            integrity.list_files(self._folder / str(step))

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns whatever keeps Orbax from reading into a DamagedCheckpointError."""
        try:
            yield
        except Exception as error:  # of many types: OSError, ValueError, KeyError, ...
            raise DamagedCheckpointError(
                f"checkpoint {self._folder}/{step} is damaged: {_first_line(error)}"
            ) from error

    def _metadata(self, step: int) -> Mapping[str, Any]:
        with self._reading(step):
            integrity.check_files(self._folder / str(step))
            metadata = self._manager.item_metadata(step)["state"]
            if metadata is None:
                raise ValueError("the list of its arrays is missing")
            return dict(metadata.items())

    def _check_arrays(self, step: int, expected: Mapping[str, Any]) -> None:
        stored = {p: tuple(entry.shape) for p, entry in self._metadata(step).items()}
        wanted = {path: tuple(leaf.shape) for path, leaf in expected.items()}
        if stored == wanted:
            return
        differences = [
            f"{path} is {_shown(stored.get(path))} there and "
            f"{_shown(wanted.get(path))} here"
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
        """Lets go of the folder. A checkpoint in the making is finished first.

        Raises:
          OSError: it could not be written.
        """
        try:
            self.wait()
        finally:
            self._manager.close()


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _subtree(arrays: Mapping[str, Any], prefix: str) -> Params:
    """Undoes `_flatten` for a tree module -> name -> array below `prefix`."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        if path.startswith(f"{prefix}|"):
            module, name = path.removeprefix(f"{prefix}|").split("|")
            tree.setdefault(module, {})[name] = array
    return tree


def _flatten(state: TrainState) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="|"): v for path, v in paths}
