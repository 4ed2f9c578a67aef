"""What a checkpoint belongs to, and whether a run may go on from it."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from nfnets.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a checkpoint's arrays belong to.

    Attributes:
      config: the resolved config, `section.field` -> value.
      class_names: the dataset's, index = label.
      bad_records: unreadable training records so far.
      rollbacks: times that the run went back after a value that was not finite.
      skipped_batches: that those left out: step S trains on batch S + skipped_batches.
    """

    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    bad_records: int = 0
    rollbacks: int = 0
    skipped_batches: int = 0

    def as_json(self) -> dict[str, Any]:
        """Returns what `from_json` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Provenance":
        """Inverts `as_json`, lists in place of tuples allowed."""
        return cls(**{**stored, "class_names": tuple(stored["class_names"])})


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
