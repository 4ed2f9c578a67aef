"""Classification of images with the weights of a file."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
from typing import Any

import jax
from jax import export as jax_export

from nfnets.errors import UserError
from nfnets.models import Model, Params, State, fold, normalize_images
from nfnets.models.folding import can_fold
from nfnets.weights import (
    WeightsInfo,
    describe_model,
    fit_weights,
    model_of,
    read_weights,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with its weights, folded if it can be.

    Attributes:
      model: the network.
      params: module -> name -> array.
      state: state of batch normalization, as `params`.
      info: metadata, complete except for `class_names`, `source` and `checksum`, which may
        be None.
    """

    model: Model
    params: Params
    state: State
    info: WeightsInfo

    def probabilities(self, params: Params, state: State, images: jax.Array) -> jax.Array:
        """Classifies images; a pure function to be compiled or exported.

        Args:
          params: `self.params`.
          state: `self.state`.
          images: uint8 [N, S, S, 3] with the side `info.image_size`.

        Returns:
          float32 [N, classes]; each row sums to 1.
        """
        mean_rgb, stddev_rgb = self.info.mean_rgb, self.info.stddev_rgb
        assert mean_rgb is not None and stddev_rgb is not None  # of every classifier
        images = normalize_images(images, mean_rgb, stddev_rgb)
        return self.probabilities_of(params, state, images)

    def probabilities_of(
        self, params: Params, state: State, images: jax.Array
    ) -> jax.Array:
        """As `probabilities`, of normalized images, float32 [N, S, S, 3]."""
        outputs, _ = self.model.apply(params, state, None, images)
        return jax.nn.softmax(outputs["logits"])

    def compile(self) -> Callable[[jax.Array], jax.Array]:
        """Returns `probabilities` as a compiled function of the images alone."""
        compiled = jax.jit(self.probabilities)
        return lambda images: compiled(self.params, self.state, images)

    def class_name(self, index: int) -> str:
        """Returns the name of a class, or its number if the weights have no names."""
        names = self.info.class_names
        return names[index] if names and index < len(names) else f"class {index}"


def load_export(folder: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that `nfnets export` wrote, from uint8 images to probabilities.

    Raises:
      UserError: the files are missing or unreadable, or written for a newer JAX.
    """
    path = pathlib.Path(folder)
    try:
        info = json.loads((path / "model.json").read_text(encoding="utf-8"))
        data = (path / "model.stablehlo").read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a folder of nfnets export: {error}") from None
    version = info.get("calling_convention_version", 0)
    if version > jax_export.maximum_supported_calling_convention_version:
        raise UserError(
            f"{folder} was exported with JAX {info['jax_version']}; JAX {jax.__version__} "
            "is too old to read it"
        )
    return jax_export.deserialize(bytearray(data)).call


def load_classifier(path: str) -> Classifier:
    """Reads a weights file and builds its model.

    Args:
      path: a weights file, or another reference; see `nfnets.weights.hub`. The model
        and the number of classes must be known.

    Raises:
      UserError: the file is missing or does not fit its model.
    """
    params, state, info = read_weights(path)
    model = model_of(info, path)
    params, state = fit_weights(path, params, state, model)
    return make_classifier(model, params, state, info)


def make_classifier(
    model: Model, params: Params, state: State, info: WeightsInfo
) -> Classifier:
    """Folds a model and completes its metadata.

    Args:
      model: from `create_model`.
      params: module -> name -> array.
      state: state of batch normalization, as `params`.
      info: metadata; fields that are None follow from the model.
    """
    known: dict[str, Any] = dataclasses.asdict(describe_model(model))
    given = {k: v for k, v in dataclasses.asdict(info).items() if v is not None}
    info = WeightsInfo(**{**known, **given})
    if can_fold(model):
        model, params = fold(model, params)
    return Classifier(model=model, params=params, state=state, info=info)
