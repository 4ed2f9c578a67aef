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

    The hashed text has one line `module:name:AxBxC` per array, sorted.
    """
    lines = [
        f"{module}:{name}:{'x'.join(map(str, array.shape))}"
        for module, arrays in params.items()
        for name, array in arrays.items()
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def count_multiply_adds(model: Model, image_size: int) -> int:
    """Returns the multiply-adds of convolutions and linear layers for one image.

    Operations per element (activations, gates, pooling) and per weight (standardization)
    are not counted.

    Args:
      model: a model of `create_model`.
      image_size: side of the image, pixels.
    """
    return sum(call.multiply_adds for call in layer_calls(model, image_size))


def count_activations(model: Model, image_size: int) -> int:
    """Returns the number of elements in all convolutions' outputs for one image.

    On accelerators it predicts the run time better than the multiply-adds: "Designing
    network design spaces" (2020).

    Args:
      model: a model of `create_model`.
      image_size: side of the image, pixels.
    """
    calls = layer_calls(model, image_size)
    return sum(call.outputs for call in calls if call.is_conv)


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """Cost of one layer for one image.

    Attributes:
      name: the layer's Haiku path.
      is_conv: True for a convolution, False for a linear layer.
      outputs: number of output elements.
      multiply_adds: number of multiply-adds.
    """

    name: str
    is_conv: bool
    outputs: int
    multiply_adds: int


def layer_calls(model: Model, image_size: int) -> list[LayerCall]:
    """Returns the convolutions and linear layers of a forward pass, in order.

    They are counted as layers, because the operations that they compile to depend on the
    platform (see `layers.conv2d`).

    Args:
      model: a model of `create_model`.
      image_size: side of the image, pixels.
    """
    calls: list[LayerCall] = []

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
        if isinstance(layer, layers.Conv2D):
            fan_in = math.prod(layer.weight_shape(args[0].shape[-1])[:-1])
        elif isinstance(layer, layers.Linear):
            fan_in = args[0].shape[-1]
        else:
            return outputs
        size = math.prod(outputs.shape)
        is_conv = isinstance(layer, layers.Conv2D)
        calls.append(LayerCall(layer.module_name, is_conv, size, size * fan_in))
        return outputs

    params, state = model.shapes()
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    with hk.intercept_methods(record):
        jax.eval_shape(lambda p, s, x: model.apply(p, s, None, x), params, state, images)
    return calls
