"""The ascent step of SAM, by hand and against optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
import pytest

import nfnets
from nfnets.optim import sam_perturbation

CURVATURE = {"a": jnp.array([1.0, 10.0]), "b": {"c": jnp.array([[3.0]])}}
START = {"a": jnp.array([2.0, -1.0]), "b": {"c": jnp.array([[4.0]])}}


def loss(params):
    """Half the sum of curvature x parameter^2: the gradient is curvature x parameter."""
    terms = jax.tree.map(lambda k, x: jnp.sum(k * x**2) / 2, CURVATURE, params)
    return jax.tree.reduce(jnp.add, terms)


def test_the_step_goes_along_the_gradient_and_has_the_length_rho():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": {"c": jnp.array([[-4.0]])}}
    step = sam_perturbation(gradient, 0.5)  # |gradient| = 5
    np.testing.assert_allclose(step["a"], [0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(step["b"]["c"], [[-0.4]], rtol=1e-6)


def test_one_step_on_a_quadratic_by_hand():
    # gradient (2, -10, 12), norm sqrt(248); learning rate 0.1, rho 2
    norm = np.sqrt(248.0)
    nearby = optax.tree.add(START, sam_perturbation(jax.grad(loss)(START), 2.0))
    got = optax.tree.add(START, optax.tree.scale(-0.1, jax.grad(loss)(nearby)))
    wanted_a = [2 - 0.1 * (2 + 2 * 2 / norm), -1 - 0.1 * 10 * (-1 - 2 * 10 / norm)]
    wanted_c = 4 - 0.1 * 3 * (4 + 2 * 12 / norm)
    np.testing.assert_allclose(got["a"], wanted_a, rtol=1e-6)
    np.testing.assert_allclose(got["b"]["c"], [[wanted_c]], rtol=1e-6)


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_five_steps_equal_optax(rho):
    inner = optax.sgd(0.05, momentum=0.9)
    ours, state = START, inner.init(START)
    theirs = START
    wrapped = contrib.sam(
        inner,
        optax.chain(contrib.normalize(), optax.sgd(rho)),
        sync_period=2,
        opaque_mode=True,
    )
    wrapped_state = wrapped.init(theirs)
    for _ in range(5):
        nearby = optax.tree.add(ours, sam_perturbation(jax.grad(loss)(ours), rho))
        updates, state = inner.update(jax.grad(loss)(nearby), state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, wrapped_state = wrapped.update(
            jax.grad(loss)(theirs),
            wrapped_state,
            theirs,
            grad_fn=lambda params, _: jax.grad(loss)(params),
        )
        theirs = optax.apply_updates(theirs, updates)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5)


def test_a_zero_gradient_gives_a_zero_step():
    step = sam_perturbation(jax.tree.map(jnp.zeros_like, START), 0.05)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(step))


def test_nan_gradients_are_not_hidden():
    step = sam_perturbation({"a": jnp.array([jnp.nan, 1.0])}, 0.05)
    assert np.isnan(step["a"]).all()


@pytest.mark.parametrize(
    ("dtype", "size", "value"),
    [
        (jnp.float16, 4, 1000.0),  # the square overflows
        (jnp.float16, 4, 1e-4),  # the square underflows
        (jnp.float16, 4096, 1.0),  # a sum in float16 ends at 2048
        (jnp.bfloat16, 4096, 1.0),  # a sum in bfloat16 ends at 256
    ],
)
def test_half_precision_gradients_have_a_float32_norm(dtype, size, value):
    gradient = {"a": jnp.full((size,), value, dtype)}
    step = sam_perturbation(gradient, 0.5)["a"]
    assert step.dtype == dtype
    np.testing.assert_allclose(step, 0.5 / np.sqrt(size), rtol=1e-2)


def test_complex_gradients():
    step = sam_perturbation({"a": jnp.array([3.0 + 4.0j, 12.0])}, 1.0)["a"]  # norm 13
    np.testing.assert_allclose(step, np.array([3 + 4j, 12]) / 13, rtol=1e-6)


def test_negative_rho_is_an_error():
    with pytest.raises(nfnets.UserError, match=r"rho must be .* in \[0, inf\), not -1"):
        nfnets.sam_perturbation(START, -1)
