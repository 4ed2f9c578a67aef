"""What a weights file says about itself, and the model that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import math
from typing import Any

from nfnets.errors import UserError
from nfnets.models import Model, create_model
from nfnets.models.preprocessing import MEAN_RGB, STDDEV_RGB


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file says about itself; None where it does not say.

    Attributes:
      model: name for `nfnets.create_model`.
      num_classes: logits.
      overrides: further arguments for `nfnets.create_model`.
      class_names: index = class.
      image_size: side of the evaluation images, pixels.
      mean_rgb: subtracted from each channel of an image in [0, 255].
      stddev_rgb: divides each channel after that.
      preprocessing: evaluation preprocessing, `resize_crop_32`, `crop_resize` or `resize`.
      source: where the weights come from, in words.
      checksum: SHA-256 of the tensors, filled in by `save_weights`.
    """

    model: str | None = None
    num_classes: int | None = None
    overrides: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] | None = None
    image_size: int | None = None
    mean_rgb: tuple[float, float, float] | None = None
    stddev_rgb: tuple[float, float, float] | None = None
    preprocessing: str | None = None
    source: str | None = None
    checksum: str | None = None

    def to_json(self) -> str:
        """Returns the fields that say something."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if v}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> WeightsInfo:
        """Inverts `to_json`; leaves out fields that this version does not know.

        Raises:
          ValueError: no JSON object, or a field of the wrong kind.
        """
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise ValueError(f"expected a JSON object, not {text[:40]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {k: _tuples(v) for k, v in stored.items() if k in known}
        for name, value in fields.items():
            if not _KINDS[name](value):
                raise ValueError(f"its {name} is {str(value)[:40]!r}")
        return cls(**fields)


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )


_KINDS = {
    "model": _is_text,
    "num_classes": _is_count,
    "overrides": lambda value: isinstance(value, dict),
    "class_names": lambda v: isinstance(v, tuple) and all(map(_is_text, v)),
    "image_size": _is_count,
    "mean_rgb": _is_color,
    "stddev_rgb": lambda value: _is_color(value) and min(value) > 0,
    "preprocessing": _is_text,
    "source": _is_text,
    "checksum": _is_text,
}


def describe_model(model: Model, overrides: Mapping[str, Any] | None = None) -> WeightsInfo:
    """Returns what follows from a model: sizes, normalisation, preprocessing.

    Args:
      model: from `create_model`.
      overrides: that it was created with.
    """
    return WeightsInfo(
        model=model.name,
        num_classes=model.num_classes,
        overrides=dict(overrides or {}),
        image_size=model.spec.recipe.test_size,
        mean_rgb=MEAN_RGB,
        stddev_rgb=STDDEV_RGB,
        preprocessing="resize_crop_32" if model.spec.final_width else "crop_resize",
    )


def model_of(info: WeightsInfo, path: object) -> Model:
    """Creates the model that a weights file is for.

    Args:
      info: the file's.
      path: of the file, for messages.

    Raises:
      UserError: the file does not say which, or there is no such model.
    """
    if info.model is None or info.num_classes is None:
        missing = "model" if info.model is None else "number of classes"
        raise UserError(
            f"{path} does not say its {missing}: write it with nfnets.save_weights(..., "
            "info=nfnets.WeightsInfo(model=..., num_classes=...))"
        )
    try:
        return create_model(info.model, info.num_classes, **(info.overrides or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
