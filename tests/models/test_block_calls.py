"""Blocks as functions of their own compute what blocks of the whole compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.models.counting import count_multiply_adds
from nfnets.optim import create_optimizer

SIZE = 32
# Two stages, of which the second ends with two equal blocks.
SMALL = {"widths": (8, 16), "depths": (1, 3), "strides": (1, 2)}
NETWORKS = {
    "nfnet_f0": {**SMALL, "group_width": 4, "stochdepth_rate": 0.5},
    "nf_regnet_b0": {**SMALL, "group_width": 4, "stochdepth_rate": 0.5},
    "fixup_resnet50": SMALL,
    "resnet50": SMALL,  # batch normalisation: outlining is without effect
}


def build(name, **options):
    return nfnets.create_model(name, 5, **NETWORKS[name], **options)


def arguments(model):
    """Parameters that are all active, and two images."""
    images = jax.random.normal(jax.random.key(1), (2, SIZE, SIZE, 3))
    params, state = model.init(jax.random.key(0), images)
    params = jax.tree.map(lambda x: x + 0.5 if x.ndim == 0 else x, params)
    return params, state, images


def loss(model):
    def function(params, state, images):
        outputs, state = model.apply(params, state, jax.random.key(2), images, True)
        return jnp.sum(jnp.square(outputs["logits"])), state

    return function


@pytest.mark.parametrize("name", NETWORKS)
def test_values_gradients_and_state_are_the_same(name):
    plain = build(name)
    args = arguments(plain)
    (expected, state), gradient = jax.jit(jax.value_and_grad(loss(plain), has_aux=True))(
        *args
    )
    outlined = jax.jit(jax.value_and_grad(loss(build(name, outline=True)), has_aux=True))
    (value, new_state), new_gradient = outlined(*args)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jax.tree.structure(new_gradient) == jax.tree.structure(gradient)
    for got, want in zip(
        jax.tree.leaves((new_gradient, new_state)),
        jax.tree.leaves((gradient, state)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def jitted_blocks(model):
    """The traced function of each block."""
    jaxpr = jax.make_jaxpr(loss(model))(*arguments(model))
    return [
        equation.params["jaxpr"]
        for equation in jaxpr.eqns
        if equation.params.get("name") == "_run_block"
    ]


def test_equal_blocks_are_traced_once():
    assert jitted_blocks(build("nfnet_f0")) == []
    blocks = jitted_blocks(build("nfnet_f0", outline=True))
    assert len(blocks) == 4
    assert blocks[2] is blocks[3]
    assert blocks[0] is not blocks[1] is not blocks[2]
    assert jitted_blocks(build("resnet50", outline=True)) == []


def test_the_compiled_step_consists_of_calls():
    def compiled(**options):
        model = build("nfnet_f0", **options)
        args = arguments(model)
        optimizer = create_optimizer(0.1)

        def step(params, opt_state, state, images):
            grads, _ = jax.grad(loss(model), has_aux=True)(params, state, images)
            return optimizer.update(grads, opt_state, params)

        lowered = jax.jit(step).lower(args[0], optimizer.init(args[0]), *args[1:])
        text = lowered.compile().as_text()
        entry = text[text.index("\nENTRY") :]
        return entry.count("jit(_run_block)"), entry.count(" call("), entry.count("fusion(")

    _, norms, many = compiled()
    blocks, calls, few = compiled(outline=True)
    assert calls - norms == 2 * 4  # each block, and its gradient
    assert blocks > 0
    assert few < 0.5 * many


def test_rematerialised_calls_save_memory_and_have_the_same_gradients():
    # XLA's CPU backend undoes rematerialisation within one function.
    deep = {"widths": (256,), "depths": (8,), "strides": (2,), "outline": True}
    args = arguments(nfnets.create_model("nfnet_f0", 5, **deep))
    big = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)

    def compute(remat):
        model = nfnets.create_model("nfnet_f0", 5, remat=remat, **deep)
        gradient = jax.jit(jax.grad(loss(model), has_aux=True))
        plan = gradient.lower(*args[:2], big).compile().memory_analysis()
        return gradient(*args), plan.temp_size_in_bytes

    expected, most = compute("none")
    for remat in ("block", "stage"):
        gradients, planned = compute(remat)
        assert planned < 0.75 * most
        for got, want in zip(
            jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def test_half_precision_is_that_of_the_whole():
    plain = build("nfnet_f0", compute_dtype="bfloat16")
    args = arguments(plain)
    run = lambda model: jax.jit(  # noqa: E731
        lambda params, state, images: model.apply(params, state, None, images)[0]
    )(*args)
    outlined = run(build("nfnet_f0", compute_dtype="bfloat16", outline=True))
    for name, value in run(plain).items():
        assert outlined[name].dtype == value.dtype
        np.testing.assert_allclose(
            np.float32(outlined[name]), np.float32(value), rtol=0.05, atol=0.05
        )


def test_what_looks_into_blocks_still_sees_them():
    plain, outlined = build("nfnet_f0"), build("nfnet_f0", outline=True)
    assert count_multiply_adds(outlined, SIZE) == count_multiply_adds(plain, SIZE) > 0
    params, state, images = arguments(plain)
    expected, _ = plain.apply(params, state, None, images)
    folded, folded_params = nfnets.fold(outlined, params)
    assert folded.outline
    got, _ = jax.jit(folded.apply)(folded_params, state, None, images)
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-3, atol=1e-4)
