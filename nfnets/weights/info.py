"""Metadata of weights files, and the models that it describes."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Annotated, Any

from nfnets import schema
from nfnets.errors import UserError
from nfnets.models import Model, create_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Metadata of a weights file; None where it is unknown.

    Attributes:
      model: name for `nfnets.create_model`.
      num_classes: number of logits.
      overrides: further arguments of `nfnets.create_model`.
      class_names: in the order of the logits.
      image_size: side of the evaluation images, pixels.
      mean_rgb: subtracted from each channel of an image in [0, 255].
      stddev_rgb: divides each channel after that.
      preprocessing: `resize_crop_32`, `crop_resize`, `resize`, `squash` or `center`; see
        `nfnets.data.preprocess_eval`.
      apply_exif: whether training and evaluation turned images by their EXIF orientation
        first, as `nfnets predict` does unless it is False.
      crop_fraction: of `squash` and `center`.
      source: where the weights come from, free text.
      checksum: SHA-256 of the tensors, filled in by `save_weights`.
    """

    model: str | None = None
    num_classes: Annotated[int, "[1, inf)"] | None = None
    overrides: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] | None = None
    image_size: Annotated[int, "[1, inf)"] | None = None
    mean_rgb: tuple[Annotated[float, "(-inf, inf)"], ...] | None = None
    stddev_rgb: tuple[Annotated[float, "(0, inf)"], ...] | None = None
    preprocessing: str | None = None
    apply_exif: bool | None = None
    crop_fraction: Annotated[float, "(0, 1]"] | None = None
    source: str | None = None
    checksum: str | None = None

    def __post_init__(self) -> None:
        """Raises `UserError` unless mean and deviation have one entry per channel."""
        for name in ("mean_rgb", "stddev_rgb"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise UserError(f"{name} must have 3 entries, not {len(value)}")

    def to_json(self) -> str:
        """Returns the known fields as a JSON object."""
        return json.dumps(
            {k: v for k, v in dataclasses.asdict(self).items() if v or v is False}
        )

    @classmethod
    def from_json(cls, text: str) -> "WeightsInfo":
        """Inverts `to_json`; ignores fields that this version does not have.

        Raises:
          ValueError: the text is not a JSON object, or a field has an invalid value.
        """
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise UserError(f"expected a JSON object, not {text[:40]!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {k: _tuples(v) for k, v in stored.items() if k in known}
        return schema.build(cls, fields, "info")


def _tuples(value: Any) -> Any:
    """Turns JSON's lists into the tuples that they were; specs are compared by equality."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return value


def describe_model(model: Model, overrides: Mapping[str, Any] | None = None) -> WeightsInfo:
    """Returns the metadata that follows from a model: sizes, normalization, preprocessing.

    Args:
      model: from `create_model`.
      overrides: arguments that it was created with.
    """
    recipe = model.spec.recipe
    return WeightsInfo(
        model=model.name,
        num_classes=model.num_classes,
        overrides=dict(overrides or {}),
        image_size=recipe.test_size,
        mean_rgb=recipe.mean_rgb,
        stddev_rgb=recipe.stddev_rgb,
        preprocessing=recipe.preprocessing,
        crop_fraction=recipe.crop_fraction,
    )


def model_of(info: WeightsInfo, path: object) -> Model:
    """Creates the model that a weights file belongs to.

    Args:
      info: of the file.
      path: of the file, for messages.

    Raises:
      UserError: the metadata lacks the model or the number of classes, or there is no
        such model.
    """
    if info.model is None or info.num_classes is None:
        field = "model" if info.model is None else "num_classes"
        raise UserError(
            f"{path} has no metadata {field!r}; write it with nfnets.save_weights(..., "
            "info=nfnets.WeightsInfo(model=..., num_classes=...))"
        )
    try:
        return create_model(info.model, info.num_classes, **(info.overrides or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
