"""The step: one trajectory however the batch is divided, and exact counting."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets.models import normalize_images
from nfnets.optim import update_ema
from nfnets.training import evaluation, loss
from nfnets.training.state import AXIS, build_model
from nfnets.training.step import (
    make_train_step,
    map_eval_step,
    map_train_step,
    put_batch,
    replicate,
    step_keys,
)
from tests.training.micro import (
    NOTHING_RANDOM,
    ONE_BLOCK,
    build,
    make_batch,
    make_config,
    on_devices,
    run_steps,
)


def make_eval_step(model, names=("top1", "top5", "loss")):
    return evaluation.make_eval_step(model, evaluation.find_metrics(names))


@pytest.fixture(scope="module")
def single_device_run():
    return run_steps(1)


@pytest.mark.parametrize(
    ("devices", "microbatch"),
    [(4, None), (2, 2), pytest.param(1, 4, marks=pytest.mark.long)],
    ids=["4x4", "2x4x2", "1x4x4"],
)
def test_one_trajectory_however_the_batch_is_divided(
    single_device_run, devices, microbatch
):
    expected, final = single_device_run
    history, state = run_steps(devices, train__microbatch=microbatch)
    for got, want in zip(history, expected, strict=True):
        for key in ("loss", "gradient_norm", "agc_clipped_fraction"):
            np.testing.assert_allclose(got[key], want[key], rtol=1e-4, err_msg=key)
        assert got["top1"] == want["top1"]
    chex.assert_trees_all_close(state, final, rtol=1e-3, atol=1e-5)


def test_seed_and_step_decide(single_device_run):
    expected, _ = single_device_run
    again, _ = run_steps(1, data__flip=True)  # a field of the host, not of the step
    assert [m["loss"] for m in again] == [m["loss"] for m in expected]


def test_keys_follow_from_seed_and_step():
    def data(seed, step):
        keys = step_keys(seed, step)
        return [tuple(jax.random.key_data(key).tolist()) for key in keys]

    assert data(0, 3) == data(0, 3)
    keys = [key for seed in (0, 1) for step in (0, 1) for key in data(seed, step)]
    assert len(set(keys)) == 8


def test_one_step_by_hand():
    """Without anything random the step is the optimizer on the plain gradient."""
    config = make_config(model__overrides=ONE_BLOCK, **NOTHING_RANDOM)
    model, optimizer, state = build(config)
    batch = make_batch(0, config)

    def loss_fn(params):
        images = normalize_images(jnp.asarray(batch["images"]))
        outputs, _ = model.apply(params, {}, None, images, is_training=False)
        targets = 0.9 * jax.nn.one_hot(batch["labels"], 10) + 0.1 / 10
        log_probs = jax.nn.log_softmax(outputs["logits"])
        return -jnp.mean(jnp.sum(targets * log_probs, axis=-1)), outputs["logits"]

    @jax.jit  # one program instead of one for each shape
    def by_hand(state):
        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, _ = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = {
            name: update_ema(state.params, params, decay, 0)
            for name, decay in (("ema", 0.99), ("slow", 0.9999))
        }
        return loss, logits, optax.tree.norm(grads), params, averages

    loss, logits, norm, params, averages = by_hand(state)
    got, metrics = on_devices(make_train_step(config, model, optimizer), 1)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1 * 16 / 256, rtol=1e-6)
    assert float(metrics["top1"]) == np.mean(np.argmax(logits, -1) == batch["labels"])
    assert got.step == 1
    assert sorted(got.ema) == ["ema", "slow"]
    for tree, want in [(got.params, params)] + [
        (got.ema[name][0], average) for name, average in averages.items()
    ]:
        chex.assert_trees_all_close(tree, want, rtol=1e-4, atol=1e-6)


def test_clipping_figures_per_layer_on_request():
    config = make_config(model__overrides=ONE_BLOCK, train__log_layers=True)
    model, optimizer, state = build(config)
    step = jax.vmap(make_train_step(config, model, optimizer), (None, 0), axis_name=AXIS)
    batch = {k: v[None] for k, v in make_batch(0, config).items()}
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

    step = jax.jit(jax.vmap(make_eval_step(Fixed()), (None, None, 0), axis_name=AXIS))
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
    config = make_config(model__overrides=ONE_BLOCK)
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
    one = jax.jit(jax.vmap(make_eval_step(model), (None, None, 0), axis_name=AXIS))(
        params, state, {k: v[None] for k, v in batch.items()}
    )
    assert int(four["examples"]) == 13
    assert int(four["top1"]) == int(one["top1"][0])
    np.testing.assert_allclose(four["loss"], one["loss"][0], rtol=1e-5)


def test_training_and_evaluation_normalize_as_the_config_says():
    mean, stddev = (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    logits = (pixels[:, 0, 0] - np.float32(mean)) / np.float32(stddev)
    labels = np.array([0, 1, 2, 0], np.int32)

    class FirstPixel:
        """A network whose logits are the first pixel."""

        def apply(self, params, state, rng, images, *options):
            return {"logits": images[:, 0, 0]}, state

    metrics = evaluation.find_metrics(("loss",))
    step = evaluation.make_eval_step(FirstPixel(), metrics, mean, stddev)
    batch = {"images": pixels, "labels": labels, "mask": np.ones(4, bool)}
    sums = jax.vmap(step, (None, None, 0), axis_name=AXIS)(
        {}, {}, {key: jnp.asarray(value)[None] for key, value in batch.items()}
    )
    want = -np.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).sum()
    np.testing.assert_allclose(sums["loss"][0], want, rtol=1e-5)

    config = make_config(**NOTHING_RANDOM, data__mean_rgb=mean, data__stddev_rgb=stddev)
    keys = (jax.random.key(0), jax.random.key(1))
    batch = {"images": pixels, "labels": labels, "example_index": np.arange(4)}
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    got, _, _ = loss.forward(config, FirstPixel(), {}, {}, keys, batch)
    np.testing.assert_allclose(got, logits, rtol=1e-5, atol=1e-6)


def test_the_mapped_step_gives_up_its_state_and_compiles_once(caplog):
    config = make_config(model__overrides=ONE_BLOCK)
    model, optimizer, state = build(config)
    state = replicate(state)
    step = map_train_step(make_train_step(config, model, optimizer))
    batch = {k: v.reshape(4, 4, *v.shape[1:]) for k, v in make_batch(0, config).items()}
    batch = put_batch(batch)
    with jax.transfer_guard("disallow"):
        new_state, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    with jax.log_compiles(), caplog.at_level("WARNING"):
        step(new_state, batch)
    assert "Compiling" not in caplog.text, "the second step must not compile again"
