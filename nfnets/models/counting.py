"""Sizes and costs of models, counted without computing anything."""

from collections.abc import Iterator
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from nfnets.models.model import Model, Params


def parameter_shapes(model: Model) -> Params:
    """Returns the parameter tree with `jax.ShapeDtypeStruct` leaves."""
    # The parameters do not depend on the image size; the smallest one traces fastest.
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), images)
    return params


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
    shapes = parameter_shapes(model)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)

    def forward(params: Params, images: jax.Array) -> jax.Array:
        return model.apply(params, {}, None, images, is_training=False)[0]["logits"]

    jaxpr = jax.make_jaxpr(forward)(shapes, images)
    return sum(_multiply_adds(equation) for equation in _equations(jaxpr.jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of inner functions included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _multiply_adds(equation: Any) -> int:
    name = equation.primitive.name
    if name not in ("conv_general_dilated", "dot_general"):
        return 0
    output = math.prod(equation.outvars[0].aval.shape)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return output * math.prod(lhs[axis] for axis in contracted)
    weight = equation.invars[1].aval.shape
    channel_axis = equation.params["dimension_numbers"].rhs_spec[0]
    return output * math.prod(weight) // weight[channel_axis]
