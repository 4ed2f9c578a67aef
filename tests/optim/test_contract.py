"""Properties that every gradient transformation of this package shares."""

import inspect
import re
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnets
from nfnets.augment import augment
from nfnets.optim import OPTIMIZERS, create_schedule, rules, sam_perturbation, update_ema
from tests.optim.helpers import HEAD, random_like, small_params

SCHEDULE = create_schedule("cosine", 0.1, 100, 10)
TRANSFORMATIONS = {
    "agc": nfnets.adaptive_grad_clip(0.01),
    "agc per layer": nfnets.adaptive_grad_clip(
        0.01, per_layer=True, mask=lambda params: {name: name != HEAD for name in params}
    ),
    "scale_by_path": rules.scale_by_path(head_multiplier=2.0, frozen=("gain",)),
    **{name: nfnets.create_optimizer(SCHEDULE, name=name) for name in OPTIMIZERS},
    "lion": nfnets.create_optimizer(SCHEDULE, name="lion"),
    "everything": nfnets.create_optimizer(
        SCHEDULE,
        clip_norm=1.0,
        per_layer=True,
        clip_classifier=True,
        head_multiplier=3.0,
        frozen=("gain",),
    ),
}
every_transformation = pytest.mark.parametrize("name", TRANSFORMATIONS)


def types(tree):
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@every_transformation
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_types_are_constant_under_x64(name, dtype):
    """`init` and `update` agree, as `lax.scan`, `lax.cond` and optax's wrappers need."""
    with jax.enable_x64(True):
        params = small_params(dtype=dtype)
        for wrap in (lambda x: x, lambda x: optax.apply_if_finite(x, 5)):
            transformation = wrap(TRANSFORMATIONS[name])

            def step(carry, gradients, transformation=transformation):
                params, state = carry
                updates, state = transformation.update(gradients, state, params)
                return (optax.apply_updates(params, updates), state), None

            def skip(carry, gradients):
                del gradients
                return carry, None

            def run(params, gradients, transformation=transformation, step=step):
                carry = params, transformation.init(params)
                many = jax.tree.map(lambda g: jnp.stack([g, -g]), gradients)
                after, _ = jax.lax.scan(step, carry, many)
                jax.lax.cond(jnp.array(True), step, skip, carry, gradients)
                return carry, after

            # Tracing finds types that do not agree; nothing has to be computed.
            start, after = jax.eval_shape(run, params, params)
            assert types(after) == types(start)
            assert types(start[0]) == types(params)


@every_transformation
def test_states_can_be_donated(name):
    params = small_params()
    transformation = TRANSFORMATIONS[name]
    update = jax.jit(transformation.update, donate_argnums=1)
    _, state = update(random_like(params), transformation.init(params), params)
    jax.block_until_ready(update(random_like(params), state, params))


@every_transformation
def test_leaves_that_are_none_stay_none(name):
    params = {**small_params(), "more": {"frozen": None}}
    transformation = TRANSFORMATIONS[name]
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


HYPERPARAMETERS = {
    "clipping": 0.1,
    "eps": 0.01,
    "weight_decay": 0.1,
    "momentum": 0.8,
    "clip_norm": 1.0,
    "head_multiplier": 2.0,
}


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (nfnets.adaptive_grad_clip, {"clipping": 0.1, "eps": 0.01}),
        (rules.scale_by_path, {"head_multiplier": 2.0}),
        (nfnets.create_optimizer, {"learning_rate": SCHEDULE, **HYPERPARAMETERS}),
        (nfnets.create_optimizer, {"learning_rate": 0.1, "name": "lion", "clipping": 0.1}),
    ],
)
def test_hyperparameters_may_be_traced(factory, options):
    params = small_params()
    plain, injected = factory(**options), optax.inject_hyperparams(factory)(**options)
    state, injected_state = plain.init(params), jax.jit(injected.init)(params)
    for seed in range(2):
        gradients = random_like(params, seed)
        want, state = plain.update(gradients, state, params)
        got, injected_state = jax.jit(injected.update)(gradients, injected_state, params)
        chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_clipping_may_follow_a_schedule():
    inject = optax.inject_hyperparams(nfnets.adaptive_grad_clip)
    clip = inject(lambda step: 0.1 * (1 + step))
    params = {"w": jnp.array([1.0])}
    state = clip.init(params)
    for want in (0.1, 0.2):
        updates, state = clip.update({"w": jnp.array([5.0])}, state, params)
        np.testing.assert_allclose(updates["w"], want, rtol=1e-6)


def test_the_radius_of_sam_may_be_traced():
    gradient = small_params()
    chex.assert_trees_all_close(
        jax.jit(sam_perturbation)(gradient, 0.5), sam_perturbation(gradient, 0.5), rtol=1e-5
    )


def test_clipping_needs_neither_haiku_nor_a_config():
    code = (
        "import sys, nfnets; nfnets.adaptive_grad_clip; nfnets.create_optimizer;"
        "assert 'optax' in sys.modules;"
        "assert not {'haiku', 'ml_collections', 'nfnets.training'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def run_example(function):
    """Runs the example in a docstring and returns its variables."""
    example = re.search(r"Example.*:\n\n((?: {4}.*\n)+)", inspect.getdoc(function))[1]
    names = {"jax": jax, "jnp": jnp, "optax": optax, "nfnets": nfnets}
    exec(textwrap.dedent(example), names)
    return names


def test_examples_in_docstrings():
    assert run_example(nfnets.adaptive_grad_clip)["state"][0].clipped_fraction == 1
    params = run_example(nfnets.create_optimizer)["params"]
    assert "NFNet/~/linear" in params
    schedule = run_example(create_schedule)["schedule"]
    np.testing.assert_allclose([schedule(2_500), schedule(30_000)], [0.05, 0.01], rtol=1e-5)
    gradient = run_example(sam_perturbation)["gradient"]["w"]
    np.testing.assert_allclose(gradient, [6.06, 8.08], rtol=1e-5)
    assert 0 < run_example(update_ema)["average"]["w"][0] < 10
    assert run_example(augment)["images"].shape == (4, 32, 32, 3)
