"""The ascent step of SAM, by hand and against optax's."""

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
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_zero_gradient_gives_a_zero_step():
    step = sam_perturbation(jax.tree.map(jnp.zeros_like, START), 0.05)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(step))


def test_what_is_not_finite_stays_visible():
    step = sam_perturbation({"a": jnp.array([jnp.nan, 1.0])}, 0.05)
    assert np.isnan(step["a"]).all()


def test_half_precision_gradients_have_a_float32_norm():
    """The squares of these overflow float16."""
    gradient = {"a": jnp.full((4,), 1000.0, jnp.float16)}
    step = sam_perturbation(gradient, 0.5)["a"]
    assert step.dtype == jnp.float16
    np.testing.assert_allclose(step, 0.25, rtol=1e-3)


def test_negative_rho_is_an_error():
    with pytest.raises(ValueError, match="rho must be at least 0, not -1"):
        nfnets.sam_perturbation(START, -1)
