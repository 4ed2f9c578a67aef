"""What the backward pass computes again."""

import jax
import jax.numpy as jnp
import pytest

import nfnets


def count_checkpoints(jaxpr):
    """Rematerialised calls of a program, nested ones included."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name in ("checkpoint", "remat2", "remat")
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            count += count_checkpoints(inner) if hasattr(inner, "eqns") else 0
    return count


def checkpoints_of(model):
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)
    traced = jax.make_jaxpr(
        lambda params, images: model.apply(
            params, state, jax.random.key(0), images, is_training=True
        )[0]["logits"]
    )(params, images)
    return count_checkpoints(traced.jaxpr), jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(("remat", "calls"), [("block", 12), ("stage", 4)])
def test_blocks_or_stages_are_rematerialised(remat, calls):
    # Some activations are, in any case.
    base, shapes = checkpoints_of(nfnets.create_model("nfnet_f0", num_classes=10))
    model = nfnets.create_model("nfnet_f0", num_classes=10, remat=remat)
    assert checkpoints_of(model) == (base + calls, shapes)


def test_a_wrong_unit_is_an_error():
    message = "remat must be one of none, block, stage, not 'x'"
    with pytest.raises(ValueError, match=message):
        nfnets.create_model("nfnet_f0", remat="x")
