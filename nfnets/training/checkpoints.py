"""Checkpoints: the train state and what it belongs to, written by Orbax."""

from collections.abc import Mapping
import dataclasses
import logging as standard_logging
import pathlib
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from nfnets.errors import UserError
from nfnets.models import Params, State
from nfnets.training.state import TrainState
from nfnets.training.step import device_mesh

# The weights themselves, beside their averages.
RAW = "raw"
BEST_METRIC = "eval/top1"
_SHOWN_DIFFERENCES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a checkpoint's arrays belong to.

    Attributes:
      config: the resolved config, `section.field` -> value.
      class_names: the dataset's, index = label.
      bad_records: unreadable training records so far.
    """

    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    bad_records: int


class Checkpoints:
    """The checkpoints of one workdir. Saving goes on in the background.

    The state is stored as one flat dictionary from path to array, so that a checkpoint
    describes itself and two can be compared name by name.
    """

    def __init__(self, workdir: pathlib.Path, *, keep: int = 1, keep_best: int = 0) -> None:
        """Opens or creates `workdir/checkpoints`.

        Args:
          workdir: of the run.
          keep: newest checkpoints to keep.
          keep_best: best ones by `BEST_METRIC` to keep besides.
        """
        standard_logging.getLogger("orbax").setLevel(standard_logging.ERROR)
        policies: list[preservation_policy.PreservationPolicy] = [
            preservation_policy.LatestN(keep)
        ]
        if keep_best:
            policies.append(
                preservation_policy.BestN(
                    n=keep_best,
                    get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            (pathlib.Path(workdir) / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "provenance": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """Returns the newest checkpoint's step, None if there is none."""
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
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_flatten(state)),
                provenance=ocp.args.JsonSave(dataclasses.asdict(provenance)),
            ),
            metrics=dict(metrics) if metrics else None,
        )

    def read_provenance(self, step: int) -> Provenance:
        """Returns what the checkpoint of `step` belongs to."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(provenance=ocp.args.JsonRestore())
        )
        stored = dict(restored["provenance"])
        stored["class_names"] = tuple(stored["class_names"])
        return Provenance(**stored)

    def restore(self, step: int, template: TrainState) -> TrainState:
        """Reads the state of `step`, replicated over all devices.

        Args:
          step: of an existing checkpoint.
          template: arrays or `jax.ShapeDtypeStruct`s that say what is expected.

        Raises:
          UserError: the checkpoint holds other arrays; the message names some.
        """
        expected = _flatten(template)
        self._check_arrays(step, expected)
        sharding = _replicated()
        shapes = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            for path, leaf in expected.items()
        }
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        )["state"]
        leaves = [restored[path] for path in expected]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def restore_weights(self, step: int) -> dict[str, tuple[Params, State]]:
        """Reads parameters and averages, which takes no config and no template.

        Returns:
          "raw" for the parameters themselves, or an average's name -> (params, net_state),
          replicated over all devices.
        """
        metadata = self._manager.item_metadata(step)["state"]
        sharding = _replicated()
        shapes = {
            path: jax.ShapeDtypeStruct(entry.shape, entry.dtype, sharding=sharding)
            for path, entry in metadata.items()
        }
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
        )["state"]
        weights = {RAW: (_subtree(arrays, "params"), _subtree(arrays, "net_state"))}
        for name in sorted({p.split("|")[1] for p in arrays if p.startswith("ema|")}):
            weights[name] = (
                _subtree(arrays, f"ema|{name}|0"),
                _subtree(arrays, f"ema|{name}|1"),
            )
        return weights

    def _check_arrays(self, step: int, expected: Mapping[str, Any]) -> None:
        metadata = self._manager.item_metadata(step)["state"]
        stored = {path: tuple(entry.shape) for path, entry in metadata.items()}
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

    def wait(self) -> None:
        """Waits for a checkpoint that is being written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for a checkpoint that is being written and lets go of the folder."""
        self._manager.close()
        logging.debug("closed checkpoints")


def check_same_run(
    stored: Provenance, current: Provenance, workdir: pathlib.Path
) -> list[str]:
    """Compares a checkpoint's config with the run's.

    Args:
      stored: the checkpoint's.
      current: the run's.
      workdir: for the message.

    Returns:
      The other fields that differ, one `field: old -> new` each.

    Raises:
      UserError: the model, its classes or the optimizer differ.
    """
    differing = {
        name: (stored.config[name], value)
        for name, value in current.config.items()
        # A field that did not exist when the checkpoint was written tells nothing.
        if name in stored.config and _as_json(stored.config[name]) != _as_json(value)
    }
    essential = [
        f"{name} is {old!r} there and {new!r} here"
        for name, (old, new) in differing.items()
        if _decides_arrays(name, old, new)
    ]
    if stored.class_names != current.class_names:
        pairs = zip(stored.class_names, current.class_names, strict=False)
        first = next(((a, b) for a, b in pairs if a != b), None)
        essential.append(
            f"class names differ ({first[0]!r} there, {first[1]!r} here)"
            if first
            else f"{len(stored.class_names)} classes there, {len(current.class_names)} here"
        )
    if essential:
        raise UserError(
            f"{workdir} holds a checkpoint of another run: {'; '.join(essential)}; choose "
            "another --workdir, or the same settings to resume"
        )
    return [f"{name}: {old} -> {new}" for name, (old, new) in differing.items()]


def _decides_arrays(name: str, old: Any, new: Any) -> bool:
    """Whether a difference in this field makes another set of arrays."""
    if name in ("model.name", "model.num_classes", "optimizer.name") or name.startswith(
        "model.overrides."
    ):
        return True
    if name in ("optimizer.clipping", "optimizer.clip_norm") or name.startswith(
        "train.ema."
    ):
        return (old is None) != (new is None)
    return name == "train.log_layers"


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _replicated() -> jax.sharding.Sharding:
    return jax.sharding.NamedSharding(device_mesh(), jax.sharding.PartitionSpec())


def _subtree(arrays: Mapping[str, Any], prefix: str) -> Params:
    """Undoes `_flatten` for a tree module -> name -> array below `prefix`."""
    tree: dict[str, dict[str, jax.Array]] = {}
    for path, array in arrays.items():
        if path.startswith(f"{prefix}|"):
            module, name = path.removeprefix(f"{prefix}|").split("|")
            tree.setdefault(module, {})[name] = array
    return tree


def _flatten(state: TrainState) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="|"): v for path, v in paths}
