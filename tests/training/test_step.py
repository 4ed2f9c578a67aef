"""The step: one trajectory however the batch is divided, and exact counting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
from nfnets.models import normalize_images
from nfnets.optim import update_ema
from nfnets.training.config import resolve
from nfnets.training.state import build_model, build_optimizer, create_state
from nfnets.training.step import (
    AXIS,
    make_eval_step,
    make_train_step,
    map_eval_step,
    map_train_step,
    put_batch,
    replicate,
)

STEPS = 3

# Two blocks compile in seconds.
MICRO = {"widths": (16, 32), "depths": (1, 1), "strides": (1, 2), "group_width": 8}


def make_config(**changes):
    config = digits.get_config()
    config.model.overrides.update(MICRO)
    config.model.drop_rate = 0.2
    config.model.stochdepth_rate = 0.2
    config.augment.cutmix_fraction = 0.5
    config.augment.randaugment_layers = 1
    config.augment.randaugment_magnitude = 5
    config.data.batch_size = 16
    config.data.image_size = 16
    config.train.steps = 20
    config.train.warmup_steps = 0
    config.train.ema.slow = 0.9999
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return resolve(config, num_train=100, num_classes=10)


def make_batch(seed, devices, config):
    rng = np.random.default_rng(seed)
    size, batch = config.data.image_size, config.data.batch_size
    return {
        "images": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        "labels": rng.integers(0, 10, batch, np.int32),
        "example_index": np.arange(batch, dtype=np.int32),
    }


def on_devices(step, devices):
    """`map_train_step` over the first `devices` devices."""
    chosen = jax.devices()[:devices]
    mapped = jax.pmap(
        step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), devices=chosen
    )
    # A state that lies elsewhere would be compiled for on its own.
    mesh = jax.sharding.Mesh(np.asarray(chosen), (AXIS,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def call(state, batch):
        split = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
        return mapped(jax.device_put(state, replicated), split)

    return call


@functools.cache
def run(devices, **changes):
    config = make_config(**changes)
    model, optimizer = build_model(config), build_optimizer(config)
    state = create_state(config, model, optimizer)
    step = on_devices(make_train_step(config, model, optimizer), devices)
    history = []
    for number in range(STEPS):
        state, metrics = step(state, make_batch(number, devices, config))
        history.append(jax.device_get(metrics))
    return history, jax.device_get(state)


@pytest.fixture(scope="module")
def single_device_run():
    return run(1)


@pytest.mark.parametrize(
    ("devices", "microbatch"), [(4, None), (2, 2), (1, 4)], ids=["4x4", "2x4x2", "1x4x4"]
)
def test_one_trajectory_however_the_batch_is_divided(
    single_device_run, devices, microbatch
):
    expected, final = single_device_run
    history, state = run(devices, train__microbatch=microbatch)
    for got, want in zip(history, expected, strict=True):
        for key in ("loss", "gradient_norm", "agc_clipped_fraction"):
            np.testing.assert_allclose(got[key], want[key], rtol=1e-4, err_msg=key)
        assert got["top1"] == want["top1"]
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_seed_and_step_decide(single_device_run):
    expected, _ = single_device_run
    again, _ = run.__wrapped__(1)
    assert [m["loss"] for m in again] == [m["loss"] for m in expected]
    other, _ = run(1, data__flip=True)  # a field of the host, not of the step
    assert [m["loss"] for m in other] == [m["loss"] for m in expected]


def test_one_step_by_hand():
    """Without anything random the step is the optimizer on the plain gradient."""
    config = make_config(
        model__drop_rate=0.0,
        model__stochdepth_rate=0.0,
        augment__mixup_fraction=0.0,
        augment__cutmix_fraction=0.0,
        augment__randaugment_layers=0,
    )
    model, optimizer = build_model(config), build_optimizer(config)
    state = create_state(config, model, optimizer)
    batch = make_batch(0, 1, config)

    def loss_fn(params):
        images = normalize_images(jnp.asarray(batch["images"]))
        outputs, _ = model.apply(params, {}, None, images, is_training=False)
        targets = 0.9 * jax.nn.one_hot(batch["labels"], 10) + 0.1 / 10
        log_probs = jax.nn.log_softmax(outputs["logits"])
        return -jnp.mean(jnp.sum(targets * log_probs, axis=-1))

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(state.params)
    updates, _ = jax.jit(optimizer.update)(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    got, metrics = on_devices(make_train_step(config, model, optimizer), 1)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(grads), rtol=1e-4)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1 * 16 / 256, rtol=1e-6)
    assert got.step == 1
    assert sorted(got.ema) == ["ema", "slow"]
    averages = {
        name: update_ema(state.params, params, decay, 0)
        for name, decay in (("ema", 0.99), ("slow", 0.9999))
    }
    for tree, want in [(got.params, params)] + [
        (got.ema[name][0], average) for name, average in averages.items()
    ]:
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_figures_per_layer_on_request():
    config = make_config(train__log_layers=True)
    model, optimizer = build_model(config), build_optimizer(config)
    state = create_state(config, model, optimizer)
    step = jax.vmap(make_train_step(config, model, optimizer), (None, 0), axis_name=AXIS)
    batch = {k: v[None] for k, v in make_batch(0, 1, config).items()}
    _, metrics = jax.eval_shape(step, state, batch)
    assert "agc_max_ratio/NFNet/~/nf_block/~/conv0:w" in metrics
    assert "agc_clipped_fraction/NFNet/~/linear:b" in metrics
    assert "agc_max_ratio/NFNet/~/linear:w" not in metrics  # the classifier's weight


def eval_sums(logits, labels, mask):
    class Fixed:
        """A network that answers with given logits."""

        def apply(self, params, state, rng, images, is_training):
            del params, rng, is_training
            return {"logits": images[:, 0, 0, :1] * 0 + logits}, state

    step = jax.vmap(make_eval_step(Fixed()), (None, None, 0), axis_name=AXIS)
    batch = {
        "images": jnp.zeros((1, len(labels), 2, 2, 3), jnp.uint8),
        "labels": jnp.asarray(labels, jnp.int32)[None],
        "mask": jnp.asarray(mask)[None],
    }
    return {key: float(value[0]) for key, value in step({}, {}, batch).items()}


def test_evaluation_counts_by_hand():
    logits = jnp.array(
        [
            [9.0, 1, 2, 3, 4, 5, 6],  # label 0: first
            [9.0, 1, 2, 3, 4, 5, 6],  # label 2: fifth... sixth of seven
            [9.0, 1, 2, 3, 4, 5, 6],  # label 3: fifth
            [0.0, 0, 0, 0, 0, 0, 0],  # all equal: last
            [9.0, 1, 2, 3, 4, 5, 6],  # padding
        ]
    )
    labels, mask = [0, 2, 3, 1, 0], [True, True, True, True, False]
    sums = eval_sums(logits, labels, mask)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    loss = -sum(log_probs[i, labels[i]] for i in range(4))
    assert (sums["examples"], sums["top1"], sums["top5"]) == (4, 1, 2)
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)


def test_a_diverged_network_scores_nothing():
    sums = eval_sums(jnp.full((2, 7), jnp.nan), [0, 1], [True, True])
    assert (sums["top1"], sums["top5"]) == (0, 0)
    assert np.isnan(sums["loss"])


def test_evaluation_over_devices_equals_one_device():
    config = make_config()
    model = build_model(config)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
        "labels": rng.integers(0, 10, 16, np.int32),
        "mask": np.arange(16) < 13,
    }
    params = replicate(params)
    four = map_eval_step(make_eval_step(model))(
        params, state, {k: v.reshape(4, 4, *v.shape[1:]) for k, v in batch.items()}
    )
    one = jax.vmap(make_eval_step(model), (None, None, 0), axis_name=AXIS)(
        params, state, {k: v[None] for k, v in batch.items()}
    )
    assert int(four["examples"]) == 13
    assert int(four["top1"]) == int(one["top1"][0])
    np.testing.assert_allclose(four["loss"], one["loss"][0], rtol=1e-5)


def test_the_mapped_step_gives_up_its_state_and_compiles_once(caplog):
    config = make_config()
    model, optimizer = build_model(config), build_optimizer(config)
    state = replicate(create_state(config, model, optimizer))
    step = map_train_step(make_train_step(config, model, optimizer))
    batch = {k: v.reshape(4, 4, *v.shape[1:]) for k, v in make_batch(0, 4, config).items()}
    batch = put_batch(batch)
    with jax.transfer_guard("disallow"):
        new_state, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        step(new_state, batch)
    assert "Compiling" not in caplog.text, "the second step must not compile again"
