"""What a checkpoint belongs to, and whether a run may resume from it."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from nfnets.data.sources.class_names import are_same, comparable
from nfnets.errors import UserError
from nfnets.training.config import FORMER_DEFAULTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a checkpoint's arrays belong to.

    Attributes:
      config: the resolved config, `section.field` -> value.
      class_names: the dataset's, index = label.
      num_train: its training examples; None in checkpoints of older versions.
      bad_records: unreadable training records so far.
      rollbacks: number of returns to a checkpoint after a non-finite value.
      skipped_batches: batches left out by them: step S trains on batch
        S + skipped_batches.
    """

    config: Mapping[str, Any]
    class_names: tuple[str, ...]
    num_train: int | None = None
    bad_records: int = 0
    rollbacks: int = 0
    skipped_batches: int = 0

    def as_json(self) -> dict[str, Any]:
        """Returns the argument of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Provenance":
        """Inverts `as_json`; other entries are ignored, and lists stand for tuples."""
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {key: value for key, value in stored.items() if key in known}
        return cls(**{**fields, "class_names": tuple(stored["class_names"])})


def check_same_run(
    stored: Provenance, current: Provenance, workdir: pathlib.Path
) -> list[str]:
    """Compares a checkpoint's config with the run's.

    Args:
      stored: the checkpoint's.
      current: the run's.
      workdir: for the message.

    Returns:
      The other fields that differ, as `field: old -> new`, and the number of training
      images if it does.

    Raises:
      UserError: the model, its classes, the optimizer, the batch size or the images that
        are held out differ.
    """
    stored_config = {**FORMER_DEFAULTS, **stored.config}
    differing = {
        name: (stored_config[name], value)
        for name, value in current.config.items()
        # A field may be newer than the checkpoint.
        if name in stored_config and _as_json(stored_config[name]) != _as_json(value)
    }
    essential = [
        f"{name} is {old!r} there and {new!r} here"
        for name, (old, new) in differing.items()
        if _is_essential(name, old, new)
        # With another seed, images that were held out would be trained on.
        or (name == "seed" and stored_config["data.eval_fraction"])
    ]
    if not are_same(stored.class_names, current.class_names):
        pairs = zip(stored.class_names, current.class_names, strict=False)
        first = next(((a, b) for a, b in pairs if comparable(a) != comparable(b)), None)
        essential.append(
            f"class names differ ({first[0]!r} there, {first[1]!r} here)"
            if first
            else f"{len(stored.class_names)} classes there, {len(current.class_names)} here"
        )
    if essential:
        raise UserError(
            f"{workdir} holds a checkpoint of another run: {'; '.join(essential)}; use the "
            "same settings to resume it, or another --workdir"
        )
    changes = [f"{name}: {old} -> {new}" for name, (old, new) in differing.items()]
    if stored.num_train not in (None, current.num_train):
        changes.append(f"training images: {stored.num_train:,} -> {current.num_train:,}")
    return changes


def _is_essential(name: str, old: Any, new: Any) -> bool:
    """Whether a run cannot resume after a change of this field.

    It would change the arrays, the function that they are trained for, the images that are
    held out, or, with the batch size, the meaning of the step: which images have been used,
    and the learning rate.
    """
    if name.startswith("model.overrides.") or name in (
        *("model.name", "model.num_classes", "model.activation"),
        *("optimizer.name", "data.batch_size", "data.eval_fraction", "train.log_layers"),
    ):
        return True
    can_be_switched = name in ("optimizer.clipping", "optimizer.clip_norm")
    if can_be_switched or name.startswith("train.ema."):
        return (old is None) != (new is None)
    return False


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
