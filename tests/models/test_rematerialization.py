"""Activations that the backward pass recomputes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models import REMAT


def count_checkpoints(jaxpr):
    """Rematerialized calls of a program, including nested ones."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name in ("checkpoint", "remat2", "remat")
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            count += count_checkpoints(inner) if hasattr(inner, "eqns") else 0
    return count


def checkpoints_of(model):
    params, state = model.shapes()
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    traced = jax.make_jaxpr(
        lambda params, images: model.apply(
            params, state, jax.random.key(0), images, is_training=True
        )[0]["logits"]
    )(params, images)
    return count_checkpoints(traced.jaxpr), jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(("remat", "calls"), [("block", 12), ("stage", 4)])
def test_blocks_or_stages_are_rematerialized(remat, calls):
    # Activations and standardized weights are, with any setting.
    base, shapes = checkpoints_of(nfnets.create_model("nfnet_f0", num_classes=10))
    model = nfnets.create_model("nfnet_f0", num_classes=10, remat=remat)
    assert checkpoints_of(model) == (base + calls, shapes)


def losses(name, depths):
    """For each unit the loss as a function of parameters and images; and parameters."""
    small = {"widths": (32, 64), "depths": depths, "strides": (1, 2)}
    key = jax.random.key(0)
    models = [
        nfnets.create_model(name, 5, stochdepth_rate=0.2, remat=remat, **small)
        for remat in REMAT
    ]
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params, state = models[0].init(key, image)
    functions = {}
    for model in models:

        def loss(params, images, model=model):
            outputs, after = model.apply(params, state, key, images, is_training=True)
            return jnp.sum(outputs["pool"] ** 2), after

        functions[model.remat] = loss
    return functions, jax.tree.map(lambda x: x + 0.5 if x.ndim == 0 else x, params)


@pytest.mark.parametrize("name", ["nfnet_tiny", "resnet50"])
def test_gradient_and_state_are_the_same(name):
    functions, params = losses(name, depths=(2, 1))
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    plain, *others = jax.jit(
        lambda p, x: [jax.grad(f, has_aux=True)(p, x) for f in functions.values()]
    )(params, images)
    for other in others:
        for got, want in zip(*map(jax.tree.leaves, (other, plain)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["nfnet_tiny", "resnet50"])
def test_the_gradient_stores_less(name):
    # What JAX stores is counted, because XLA undoes rematerialization on CPU; for images
    # so large that the parameters do not matter.
    functions, params = losses(name, depths=(6, 2))
    images = jax.ShapeDtypeStruct((8, 256, 256, 3), jnp.float32)
    stored = {}
    for remat, function in functions.items():
        pullback = partial(jax.vjp, function, has_aux=True)
        leaves = jax.tree.leaves(jax.eval_shape(pullback, params, images)[1])
        stored[remat] = sum(leaf.size for leaf in leaves)
    assert stored["stage"] < 0.9 * stored["block"] < 0.5 * stored["none"]


def test_a_wrong_unit_is_an_error():
    message = "remat must be one of none, block, stage, not 'x'"
    with pytest.raises(UserError, match=message):
        nfnets.create_model("nfnet_f0", remat="x")
