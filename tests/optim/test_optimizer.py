"""The whole optimizer against the published trajectory, and each of its parts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnets
from nfnets.models.counting import parameter_shapes
from nfnets.optim import OPTIMIZERS, clipping_state, rules, update_ema, warmup_cosine
from tests import reference

HEAD = "Net/~/linear"
BODY = "Net/~/conv"


def small_params(weight=2.0):
    return {
        BODY: {"w": jnp.full((2, 1), weight), "gain": jnp.ones(1), "bias": jnp.ones(1)},
        HEAD: {"w": jnp.full((2, 1), weight), "b": jnp.ones(1)},
    }


def one_update(optimizer, params, gradients):
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    return updates, state


def test_trajectory_is_the_published_one():
    data = np.load(reference.DATA / "trajectory-NFNet-F0.npz")
    steps, peak = int(data["steps"]), float(data["lr"])
    model = nfnets.create_model(
        "nfnet_f0", drop_rate=0.0, stochdepth_rate=0.0, outline=True
    )
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


def test_schedule_is_the_published_one():
    data = json.loads((reference.DATA / "schedule.json").read_text())
    schedule = warmup_cosine(data["max_val"], data["num_steps"], data["warmup_steps"])
    for step, value in data["values"].items():
        np.testing.assert_allclose(schedule(int(step)), value, rtol=1e-5, atol=1e-6)


def test_schedule_without_warm_up_and_with_nothing_else():
    assert warmup_cosine(2.0, 10, 0)(0) == 2.0
    np.testing.assert_allclose(warmup_cosine(2.0, 10, 0)(5), 1.0)
    np.testing.assert_allclose(warmup_cosine(2.0, 10, 10)(5), 1.0)
    with pytest.raises(ValueError, match="warm-up of 11 steps does not fit into 10"):
        warmup_cosine(2.0, 10, 11)


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


@pytest.mark.parametrize("clipping", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_equals_its_optax_one_with_clipped_gradients(name, clipping):
    params = small_params()
    key = jax.random.key(0)
    gradients = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
    mask = {BODY: {"w": True, "gain": False, "bias": False}, HEAD: {"w": True, "b": False}}
    clip_mask = {BODY: True, HEAD: {"w": False, "b": True}}
    decay = optax.add_decayed_weights(0.01, mask=mask)
    theirs = {
        "sgd": optax.chain(decay, optax.sgd(0.1, momentum=0.9, nesterov=True)),
        "adam": optax.chain(decay, optax.adam(0.1)),
        "adamw": optax.adamw(0.1, weight_decay=0.01, mask=mask),
        "rmsprop": optax.chain(
            decay, optax.rmsprop(0.1, decay=0.999, momentum=0.9, nesterov=True)
        ),
        "lamb": optax.lamb(0.1, eps=1e-8, weight_decay=0.01, mask=mask),
    }[name]
    if clipping is not None:
        clip = nfnets.adaptive_grad_clip(clipping, mask=clip_mask)
        gradients_for_theirs, _ = clip.update(gradients, clip.init(params), params)
    else:
        gradients_for_theirs = gradients
    ours = nfnets.create_optimizer(0.1, name=name, clipping=clipping, weight_decay=0.01)
    our_state, their_state = ours.init(params), theirs.init(params)
    for _ in range(3):
        got, our_state = ours.update(gradients, our_state, params)
        want, their_state = theirs.update(gradients_for_theirs, their_state, params)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # optax's rmsprop scales by the rate before its momentum: the same up to rounding.
        np.testing.assert_allclose(g, w, rtol=1e-4)


@pytest.mark.parametrize("name", ["nfnet_f0", "nfnet_tiny"])
def test_every_parameter_has_one_rule(name):
    shapes = parameter_shapes(nfnets.create_model(name))
    labels = rules.label_parameters(shapes)
    heads = [
        path
        for path, label in jax.tree_util.tree_leaves_with_path(labels)
        if label == "classifier_weight"
    ]
    assert [rules.parameter_path(path) for path in heads] == ["NFNet/~/linear:w"]
    for path, label in jax.tree_util.tree_leaves_with_path(labels):
        name = rules.parameter_path(path).rpartition(":")[2]
        assert (label == "gain_or_bias") == (name != "w")


def test_a_parameter_without_a_rule_is_named():
    optimizer = nfnets.create_optimizer(0.1)
    with pytest.raises(ValueError, match="Net:kernel matches no rule"):
        optimizer.init({"Net": {"kernel": jnp.ones((2, 2))}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgdd"}, "unknown optimizer 'sgdd'; choose one of sgd"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, not -1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"clipping": -0.1}, "clipping must be above 0, not -0.1"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nfnets.create_optimizer(0.1, **options)


def test_average_warms_up_and_takes_over_counters():
    old = {"w": jnp.zeros(2), "count": jnp.zeros((), jnp.int32)}
    new = {"w": jnp.ones(2), "count": jnp.ones((), jnp.int32)}
    for step, decay in ((0, 1 / 10), (8, 9 / 18), (10**6, 0.99)):
        average = update_ema(old, new, 0.99, step)
        np.testing.assert_allclose(average["w"], 1 - decay, rtol=1e-5)
        assert average["count"] == 1


FINE_TUNED = {
    "NFNet/~/stem_conv0": {"w": 1.0},
    "NFNet/~/nf_block": {"skip_gain": 1.0},
    "NFNet/~/nf_block/~/conv0": {"w": 1.0},
    "NFNet/~/nf_block_1/~/conv0": {"w": 1.0},
    "NFNet/~/nf_block_1/~/squeeze_excite/~/linear": {"w": 1.0},
    "NFNet/~/final_conv": {"w": 1.0},
    "NFNet/~/linear": {"w": 1.0, "b": 1.0},
}


def test_learning_rates_fall_from_the_classifier_down():
    rates = rules.learning_rate_multipliers(
        FINE_TUNED, head_multiplier=10.0, layer_decay=0.5, frozen=("squeeze",)
    )
    assert rates == {
        "NFNet/~/stem_conv0": {"w": 0.5**4},
        "NFNet/~/nf_block": {"skip_gain": 0.5**3},
        "NFNet/~/nf_block/~/conv0": {"w": 0.5**3},
        "NFNet/~/nf_block_1/~/conv0": {"w": 0.5**2},
        "NFNet/~/nf_block_1/~/squeeze_excite/~/linear": {"w": 0.0},
        "NFNet/~/final_conv": {"w": 0.5},
        "NFNet/~/linear": {"w": 10.0, "b": 10.0},
    }


def test_multipliers_reach_the_updates():
    params = small_params()
    gradients = jax.tree.map(jnp.ones_like, params)
    options = {"clipping": None, "momentum": 0.0, "weight_decay": 0.0}
    optimizer = nfnets.create_optimizer(
        1.0, head_multiplier=3.0, layer_decay=0.5, frozen=("gain",), **options
    )
    updates, _ = one_update(optimizer, params, gradients)
    np.testing.assert_allclose(updates[HEAD]["w"], -3.0)
    np.testing.assert_allclose(updates[BODY]["w"], -0.5)
    np.testing.assert_array_equal(updates[BODY]["gain"], 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, r"layer_decay must be in \(0, 1\], not 0.0"),
        ({"head_multiplier": -1.0}, "head_multiplier must be at least 0"),
        ({"frozen": ("stem",)}, "'stem' matches no parameter, such as Net"),
    ],
)
def test_wrong_multipliers_are_named(options, message):
    optimizer = nfnets.create_optimizer(0.1, **options)
    with pytest.raises(ValueError, match=message):
        optimizer.init(small_params())
