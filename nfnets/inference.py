"""From a weights file to a function from pixels to probabilities."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from nfnets.models import Model, Params, State, fold
from nfnets.weights import (
    WeightsInfo,
    describe_model,
    load_weights,
    model_of,
    read_weights_info,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with its weights, in its inference form where it has one.

    Attributes:
      model: built for `params`.
      params: module -> name -> array.
      state: likewise, of batch norm.
      info: every field is filled in but for `class_names` and `source`.
    """

    model: Model
    params: Params
    state: State
    info: WeightsInfo

    def probabilities(self, params: Params, state: State, images: jax.Array) -> jax.Array:
        """Classifies images; a pure function, to be compiled.

        Args:
          params: `self.params`.
          state: `self.state`.
          images: uint8 [N, S, S, 3] of the side `info.image_size`.

        Returns:
          float32 [N, classes], each row with the sum 1.
        """
        mean = jnp.asarray(self.info.mean_rgb, jnp.float32)
        stddev = jnp.asarray(self.info.stddev_rgb, jnp.float32)
        normalized = (images.astype(jnp.float32) - mean) / stddev
        outputs, _ = self.model.apply(params, state, None, normalized)
        return jax.nn.softmax(outputs["logits"])

    def compile(self) -> Callable[[jax.Array], jax.Array]:
        """Returns `probabilities` as a compiled function of the images alone."""
        compiled = jax.jit(self.probabilities)
        return lambda images: compiled(self.params, self.state, images)

    def class_name(self, index: int) -> str:
        """Returns a class's name, its number where the weights give no names."""
        names = self.info.class_names
        return names[index] if names and index < len(names) else f"class {index}"


def load_classifier(path: str) -> Classifier:
    """Reads a weights file with all that belongs to it.

    Args:
      path: a file of `nfnets.save_weights` that says its model and number of classes.

    Raises:
      UserError: no such file, or one that does not fit its model.
    """
    info = read_weights_info(path)
    model = model_of(info, path)
    params, state = load_weights(path, model)
    given = {k: v for k, v in dataclasses.asdict(info).items() if v is not None}
    info = dataclasses.replace(describe_model(model), **given)
    if model.spec.block.normalization == "none":
        model, params = fold(model, params)
    return Classifier(model=model, params=params, state=state, info=info)
