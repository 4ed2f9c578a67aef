"""Sizes and costs of models, counted without computing anything."""

from collections.abc import Callable
import dataclasses
import hashlib
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.models import layers
from nfnets.models.model import Model, Params


def parameter_shapes(model: Model) -> Params:
    """Returns the parameter tree with `jax.ShapeDtypeStruct` leaves."""
    return model.shapes()[0]


def count_parameters(params: Any) -> int:
    """Returns the number of scalars in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def listing_hash(params: Params) -> str:
    """Returns the SHA-256 of all names and shapes, equal for interchangeable trees.

    The hashed text is one line `module:name:AxBxC` per array, sorted.
    """
    lines = [
        f"{module}:{name}:{'x'.join(map(str, array.shape))}"
        for module, arrays in params.items()
        for name, array in arrays.items()
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def count_multiply_adds(model: Model, image_size: int) -> int:
    """Counts the multiply-adds of one image's forward pass.

    Convolutions and matrix products count; what is done per element (activations, gates,
    pooling) or per weight (standardisation) does not.

    Args:
      model: from `create_model`.
      image_size: side of the image, pixels.
    """
    return sum(call.multiply_adds for call in layer_calls(model, image_size))


def count_activations(model: Model, image_size: int) -> int:
    """Counts the elements of all convolutions' outputs in one image's forward pass.

    "Designing network design spaces" (2020): on accelerators a better predictor of the
    run time than the multiply-adds.

    Args:
      model: from `create_model`.
      image_size: side of the image, pixels.
    """
    calls = layer_calls(model, image_size)
    return sum(call.outputs for call in calls if call.is_conv)


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One layer's work on one image.

    Attributes:
      name: the layer's Haiku path.
      is_conv: a convolution, not a linear layer.
      outputs: elements that come out.
      multiply_adds: spent on them.
    """

    name: str
    is_conv: bool
    outputs: int
    multiply_adds: int


def layer_calls(model: Model, image_size: int) -> list[LayerCall]:
    """Returns the convolutions and linear layers of a forward pass, in order.

    Taken down from the layers, not from the operations they compile to, which differ from
    backend to backend (see `convolution.conv2d`).

    Args:
      model: from `create_model`.
      image_size: side of the image, pixels.
    """
    calls = []

    def record(
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: hk.MethodContext,
    ) -> Any:
        outputs = next_call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return outputs
        is_conv = isinstance(layer, layers.Conv2D)
        if is_conv or isinstance(layer, layers.Linear):
            per_output = args[0].shape[-1]
            if is_conv:
                per_output = math.prod(layer.weight_shape(per_output)[:-1])
            size = math.prod(outputs.shape)
            calls.append(LayerCall(layer.module_name, is_conv, size, size * per_output))
        return outputs

    observe_forward(model, image_size, record)
    return calls


def observe_forward(model: Model, image_size: int, observer: Callable[..., Any]) -> None:
    """Traces one image's forward pass, computing nothing.

    Args:
      model: from `create_model`.
      image_size: side of the image, pixels.
      observer: called for each method of each module, see `hk.intercept_methods`.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    params, state = model.shapes()
    model = dataclasses.replace(model, outline=False)  # look into the blocks
    with hk.intercept_methods(observer):
        jax.eval_shape(lambda p, s, x: model.apply(p, s, None, x), params, state, images)
