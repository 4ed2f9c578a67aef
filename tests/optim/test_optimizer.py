"""The optimizer against the published trajectory, and each of its parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnets
from nfnets.models.counting import parameter_shapes
from nfnets.optim import OPTIMIZERS, clipping_state, update_ema
from tests import reference
from tests.optim.helpers import (
    BODY,
    HEAD,
    decoupled_sgd,
    doubled_sgd,
    one_update,
    random_like,
    small_params,
)


def test_trajectory_is_the_published_one():
    data = np.load(reference.DATA / "trajectory-NFNet-F0.npz")
    steps, peak = int(data["steps"]), float(data["lr"])
    model = nfnets.create_model("nfnet_f0", drop_rate=0.0, stochdepth_rate=0.0)
    start = jax.tree.map(jnp.asarray, reference.formula_params(parameter_shapes(model)))
    images = reference.formula_images(4, 32)
    targets = optax.smooth_labels(jax.nn.one_hot(jnp.array([1, 7, 500, 999]), 1000), 0.1)
    optimizer = nfnets.create_optimizer(
        lambda step: peak * (step + 1) / steps,
        clipping=float(data["clipping"]),
        eps=float(data["eps"]),
        weight_decay=float(data["weight_decay"]),
        momentum=float(data["momentum"]),
    )

    def loss_fn(params):
        outputs, _ = model.apply(params, {}, None, images, is_training=True)
        return jnp.mean(optax.softmax_cross_entropy(outputs["logits"], targets))

    @jax.jit
    def update(params, state, average, step):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = update_ema(average, params, float(data["ema_decay"]), step)
        return params, state, average, loss

    params, average, state = start, start, optimizer.init(start)
    for step in range(steps):
        params, state, average, loss = update(params, state, average, step)
        np.testing.assert_allclose(loss, data["losses"][step], rtol=1e-3)
    for tree, key in ((params, "delta_norms"), (average, "ema_delta_norms")):
        for path, expected in zip(data["names"], data[key], strict=True):
            module, _, name = path.rpartition(":")
            moved = np.linalg.norm(tree[module][name] - start[module][name])
            np.testing.assert_allclose(moved, expected, rtol=1e-2, err_msg=path)


def test_sgd_by_hand():
    """Clipping, then decay, then two steps of Nesterov momentum, all by hand."""
    params = small_params()
    gradients = jax.tree.map(jnp.ones_like, params)
    optimizer = nfnets.create_optimizer(
        0.5, clipping=0.1, weight_decay=0.01, momentum=0.9, nesterov=True
    )
    updates, state = one_update(optimizer, params, gradients)
    # Norm sqrt(8) of the weight, sqrt(2) of the gradient: clipped to 0.2 each; plus
    # decay 0.02; first Nesterov step: (1 + 0.9) g.
    np.testing.assert_allclose(updates[BODY]["w"], -0.5 * 1.9 * 0.22, rtol=1e-5)
    np.testing.assert_allclose(updates[HEAD]["w"], -0.5 * 1.9 * 1.02, rtol=1e-5)
    for path in ((BODY, "gain"), (BODY, "bias"), (HEAD, "b")):
        np.testing.assert_allclose(updates[path[0]][path[1]], -0.5 * 1.9 * 0.1, rtol=1e-5)
    updates, _ = optimizer.update(gradients, state, params)
    # Momentum 0.9 g + g = 1.9 g, looked ahead: 0.9 * 1.9 g + g = 2.71 g.
    np.testing.assert_allclose(updates[BODY]["w"], -0.5 * 2.71 * 0.22, rtol=1e-5)
    # Of four clipped units, one each of three vectors and a column, all are above.
    assert clipping_state(state).clipped_fraction == 1.0


def test_clipping_can_include_the_classifier_or_be_off():
    params = small_params()
    gradients = jax.tree.map(jnp.ones_like, params)

    def head_update(**options):
        optimizer = nfnets.create_optimizer(1.0, momentum=0.0, weight_decay=0.0, **options)
        updates, state = one_update(optimizer, params, gradients)
        return updates[HEAD]["w"], state

    clipped, _ = head_update(clipping=0.1, clip_classifier=True)
    np.testing.assert_allclose(clipped, -0.2, rtol=1e-5)
    plain, state = head_update(clipping=None)
    np.testing.assert_allclose(plain, -1.0)
    assert clipping_state(state) is None


def test_clipping_by_global_norm():
    params = small_params()
    gradients = jax.tree.map(jnp.ones_like, params)  # seven ones: norm sqrt(7)
    optimizer = nfnets.create_optimizer(
        1.0, clipping=None, clip_norm=1.0, momentum=0.0, weight_decay=0.0
    )
    updates, _ = one_update(optimizer, params, gradients)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -1 / np.sqrt(7), rtol=1e-5)


# As optax would have them, with weight decay on weights only.
DECAYED = {
    BODY: {"w": True, "gain": False, "bias": False},
    HEAD: {"w": True, "b": False},
}
DECAY = optax.add_decayed_weights(0.01, mask=DECAYED)
THEIRS = {
    "sgd": optax.chain(DECAY, optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "adam": optax.chain(DECAY, optax.adam(0.1)),
    "adamw": optax.adamw(0.1, weight_decay=0.01, mask=DECAYED),
    # Up to rounding: optax scales by the rate before the momentum.
    "rmsprop": optax.chain(
        DECAY, optax.rmsprop(0.1, decay=0.999, momentum=0.9, nesterov=True)
    ),
    "lamb": optax.lamb(0.1, eps=1e-8, weight_decay=0.01, mask=DECAYED),
    "lion": optax.lion(0.1, b1=0.5, weight_decay=0.01, mask=DECAYED),
    "adabelief": optax.chain(DECAY, optax.adabelief(0.1, eps=1e-8)),
    "tests.optim.helpers:doubled_sgd": optax.chain(DECAY, doubled_sgd(0.1, factor=5.0)),
    "tests.optim.helpers:decoupled_sgd": decoupled_sgd(0.1, 0.01, DECAYED),
}
KWARGS = {
    "lion": {"b1": 0.5},
    "adabelief": {"eps": 1e-8},
    "tests.optim.helpers:doubled_sgd": {"factor": 5.0},
}


@pytest.mark.parametrize("clipping", [None, 0.1])
@pytest.mark.parametrize("name", THEIRS)
def test_every_optimizer_equals_its_optax_one_with_clipped_gradients(name, clipping):
    """Also with a frozen parameter."""
    assert set(OPTIMIZERS) <= set(THEIRS)
    params = small_params()
    ours = nfnets.create_optimizer(
        0.1,
        name=name,
        kwargs=KWARGS.get(name),
        clipping=clipping,
        weight_decay=0.01,
        frozen=("gain",),
    )
    our_state, their_state = ours.init(params), THEIRS[name].init(params)
    clip = nfnets.adaptive_grad_clip(
        clipping or 1e9, mask={BODY: True, HEAD: {"w": False, "b": True}}
    )
    for step in range(3):
        gradients = random_like(params, seed=step)
        got, our_state = ours.update(gradients, our_state, params)
        clipped, _ = clip.update(gradients, clip.init(params), params)
        want, their_state = THEIRS[name].update(clipped, their_state, params)
        want[BODY]["gain"] = jnp.zeros(1)
        chex.assert_trees_all_close(got, want, rtol=1e-4)
    assert (clipping_state(our_state) is None) == (clipping is None)


def test_the_chains_of_stored_checkpoints():
    """The optimizer's state is stored by position: AGC, weight decay, momentum, rate."""
    state = nfnets.create_optimizer(lambda step: 0.1).init(small_params())
    assert [type(part).__name__ for part in state] == [
        "AdaptiveGradClipState",
        "MaskedState",
        "TraceState",
        "ScaleByScheduleState",
    ]


def nested_model():
    return {
        "encoder": [{"kernel": jnp.full((2, 1), 2.0), "bias": jnp.ones(1)}, (jnp.ones(2),)],
        "head": {"kernel": jnp.full((2, 1), 2.0)},
    }


def nested_labels(params):
    del params
    return {
        "encoder": [{"kernel": "weight", "bias": "gain_or_bias"}, ("gain_or_bias",)],
        "head": {"kernel": "classifier_weight"},
    }


def test_labels_of_a_tree_of_ones_own():
    params = nested_model()
    optimizer = nfnets.create_optimizer(
        1.0,
        clipping=0.1,
        weight_decay=0.01,
        momentum=0.0,
        label_fn=nested_labels,
        frozen=("encoder:1:0",),
    )
    updates, _ = one_update(optimizer, params, jax.tree.map(jnp.ones_like, params))
    # Norm sqrt(8) of the weight, sqrt(2) of the gradient: clipped to 0.2; decay 0.02.
    np.testing.assert_allclose(updates["encoder"][0]["kernel"], -0.22, rtol=1e-5)
    np.testing.assert_allclose(updates["encoder"][0]["bias"], -0.1, rtol=1e-5)
    np.testing.assert_array_equal(updates["encoder"][1][0], 0.0)
    np.testing.assert_allclose(updates["head"]["kernel"], -1.02, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgdd"}, "unknown optimizer 'sgdd'; did you mean sgd"),
        ({"name": "scale_by_adam"}, "optax.scale_by_adam is not an optimizer"),
        ({"name": "tests.optim.helpers:sgd"}, "unknown optimizer 'tests.*:sgd'"),
        (
            {"name": "tests.optim.helpers:not_an_optimizer"},
            "not_an_optimizer' returned 0.1, not a GradientTransformation",
        ),
        (
            {"name": "lion", "kwargs": {"c": 1}},
            "'lion': got an unexpected .* 'c'",
        ),
        ({"name": "lion", "kwargs": {"mask": 1}}, "mask do not belong in kwargs"),
        ({"kwargs": {"decay": 0.9}}, "kwargs are not for sgd, .*; got {'decay': 0.9}"),
        ({"weight_decay": -1.0}, r"weight_decay must be a number in \[0, inf\), not -1.0"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), not 1.0"),
        ({"b1": -0.1}, r"b1 must be a number in \[0, 1\), not -0.1"),
        ({"b2": 1}, r"b2 must be a number in \[0, 1\), not 1"),
        ({"epsilon": -1e-8}, r"epsilon must be a number in \[0, inf\), not -1e-08"),
        ({"clip_norm": 0.0}, r"clip_norm must be a number in \(0, inf\), not 0.0"),
        ({"clipping": -0.1}, r"clipping must be a number in \(0, inf\), not -0.1"),
        ({"eps": 0.0}, r"eps must be a number in \(0, inf\), not 0.0"),
        ({"layer_decay": 0.0}, r"layer_decay must be a number in \(0, 1\], not 0.0"),
        ({"head_multiplier": -1.0}, r"head_multiplier must be a number in \[0, inf\)"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(nfnets.UserError, match=message):
        nfnets.create_optimizer(0.1, **options)
