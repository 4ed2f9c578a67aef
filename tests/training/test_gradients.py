"""Sharpness-aware steps, rematerialized steps, and the examples of the ascent."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets.models import normalize_images
from nfnets.optim import clipping_state
from nfnets.training.gradients import ascent_examples, make_gradient
from nfnets.training.loss import weighted_mean
from nfnets.training.state import AXIS
from nfnets.training.step import make_train_step
from tests.training.micro import (
    NOTHING_RANDOM,
    ONE_BLOCK,
    build,
    make_batch,
    make_config,
    on_devices,
    run_steps,
)


def numbered(size, start=0):
    index = np.arange(start, start + size, dtype=np.int32)
    return {"labels": index % 10, "example_index": index}


def chosen(batch, fraction, **options):
    part = ascent_examples(batch, fraction, **options)
    return part["example_index"][part["weight"] == 1].tolist()


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("microbatch", [None, 2, 4])
@pytest.mark.parametrize("fraction", [0.2, 0.3, 1.0])
def test_the_same_examples_are_ascended_however_the_batch_is_divided(
    devices, microbatch, fraction
):
    size = 32
    options = {"unit": 2, "spread": True, "microbatch": None}
    whole = chosen(numbered(size), fraction, **options)
    options["microbatch"] = microbatch
    parts = []
    for device in range(devices):
        part = numbered(size // devices, device * size // devices)
        got = ascent_examples(part, fraction, **options)
        count = len(got["labels"])
        assert microbatch is None or count < microbatch or count % microbatch == 0
        parts += chosen(part, fraction, **options)
    assert parts == whole
    assert len(whole) == 2 * int(np.ceil(size / 2 * fraction))
    assert all(index + 1 in whole for index in whole if index % 2 == 0)  # whole pairs


def test_examples_are_spread_or_the_first_ones():
    options = {"unit": 1, "microbatch": None}
    assert chosen(numbered(10), 0.2, spread=True, **options) == [0, 5]
    assert chosen(numbered(10), 0.2, spread=False, **options) == [0, 1]
    # A device whose part of the batch begins between two chosen ones.
    assert chosen(numbered(4, 1), 0.2, spread=True, **options) == []
    assert chosen(numbered(4, 1), 0.2, spread=False, **options) == [1]
    options["unit"] = 2
    assert chosen(numbered(20), 0.2, spread=True, **options) == [0, 1, 10, 11]


def plain_gradient(model, params, batch):
    def loss_fn(params):
        images = normalize_images(jnp.asarray(batch["images"]))
        outputs, _ = model.apply(params, {}, None, images, is_training=False)
        targets = 0.9 * jax.nn.one_hot(batch["labels"], 10) + 0.1 / 10
        return optax.softmax_cross_entropy(outputs["logits"], targets).mean()

    return jax.value_and_grad(loss_fn)(params)


def test_one_sharpness_aware_step_by_hand():
    """Ascent on examples 0, 5, 10, 15; descent on all; AGC sees the unperturbed weights."""
    config = make_config(sam__rho=0.3, model__overrides=ONE_BLOCK, **NOTHING_RANDOM)
    model, optimizer, state = build(config)
    batch = make_batch(0, config)
    some = {name: array[::5] for name, array in batch.items()}
    assert len(some["labels"]) == 4

    @jax.jit  # one program instead of one for each shape
    def by_hand(state):
        _, ascent = plain_gradient(model, state.params, some)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(ascent)))
        nearby = jax.tree.map(lambda p, g: p + 0.3 * g / norm, state.params, ascent)
        loss, grads = plain_gradient(model, nearby, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return loss, optax.tree.norm(grads), clipping_state(opt_state), params

    loss, gradient_norm, clipping, params = by_hand(state)
    got, metrics = on_devices(make_train_step(config, model, optimizer), 1)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], gradient_norm, rtol=1e-4)
    np.testing.assert_allclose(metrics["agc_clipped_fraction"], clipping.clipped_fraction)
    chex.assert_trees_all_close(got.params, params, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def sharpness_aware_run():
    return run_steps(1, sam__rho=0.3)


@pytest.mark.long
@pytest.mark.parametrize(("devices", "microbatch"), [(2, 2), (4, None), (1, 4)])
def test_one_sharpness_aware_trajectory(sharpness_aware_run, devices, microbatch):
    expected, final = sharpness_aware_run
    history, state = run_steps(devices, sam__rho=0.3, train__microbatch=microbatch)
    for got, want in zip(history, expected, strict=True):
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-4)
        np.testing.assert_allclose(got["gradient_norm"], want["gradient_norm"], rtol=1e-3)
    chex.assert_trees_all_close(state, final, rtol=1e-3, atol=1e-5)


@pytest.mark.long
def test_each_replica_may_perturb_on_its_own(sharpness_aware_run):
    """With one device, and all examples, both ways are one; with two they are not."""
    everything = {"sam__rho": 0.3, "sam__batch_fraction": 1.0}
    together, _ = run_steps(1, sam__normalize="global", **everything)
    alone, _ = run_steps(1, sam__normalize="replica", **everything)
    halves, _ = run_steps(2, sam__normalize="replica", **everything)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    assert abs(halves[0]["loss"] - together[0]["loss"]) > 1e-5
    assert together[0]["loss"] != sharpness_aware_run[0][0]["loss"]


def squared_distance(config, model, params, net_state, keys, batch):
    """Half the squared distance between the parameters and points of the examples."""
    del config, model, keys
    index = batch["example_index"].astype(jnp.float32)
    points = jnp.stack([index, (index - 3) ** 2], axis=-1)
    distances = 0.5 * jnp.sum((params["moved"]["w"] - points) ** 2, axis=-1)
    distances += 0.5 * (params["frozen"]["w"] - index) ** 2
    loss = weighted_mean(distances, batch)
    return loss, (net_state, {"loss": loss})


@pytest.mark.parametrize(
    ("fraction", "microbatch", "examples"),
    [
        (0.2, None, [0, 1, 10, 11, 20, 21, 30, 31]),  # pairs, as the batch is mixed
        (0.3, 4, [0, 1, 6, 7, 12, 13, 20, 21, 26, 27, 32, 33]),  # six each, padded to eight
    ],
)
def test_ascent_of_two_devices_on_a_quadratic_loss(fraction, microbatch, examples):
    """The ascent is of all devices' chosen examples; frozen parameters stay."""
    config = make_config(
        data__batch_size=40,
        optimizer__frozen=("frozen",),
        sam__rho=0.5,
        sam__batch_fraction=fraction,
        train__loss=f"{__name__}:squared_distance",
        train__microbatch=microbatch,
    )
    params = {"moved": {"w": jnp.array([1.0, -2.0])}, "frozen": {"w": jnp.float32(0.5)}}
    batch = numbered(40)
    got, _, metrics = jax.vmap(
        make_gradient(config, None), in_axes=(None, None, None, 0), axis_name=AXIS
    )(params, {}, None, {name: array.reshape(2, 20) for name, array in batch.items()})

    def points(index):
        return np.stack([index, (index - 3.0) ** 2], axis=-1)

    ascent = params["moved"]["w"] - points(np.array(examples)).mean(axis=0)
    nearby = params["moved"]["w"] + 0.5 * ascent / np.linalg.norm(ascent)
    index = batch["example_index"].reshape(2, 20)
    want = {
        "moved": {"w": nearby - points(index).mean(axis=1)},
        "frozen": {"w": 0.5 - index.mean(axis=1)},
    }
    chex.assert_trees_all_close(got, want, rtol=1e-5)
    distances = 0.5 * np.sum((nearby - points(index)) ** 2, axis=-1)
    distances += 0.5 * (0.5 - index) ** 2
    np.testing.assert_allclose(metrics["loss"], distances.mean(axis=1), rtol=1e-5)


@pytest.mark.long
def test_bfloat16_steps_stay_near(sharpness_aware_run):
    history, state = run_steps(1, sam__rho=0.3, model__compute_dtype="bfloat16")
    expected, _ = sharpness_aware_run
    np.testing.assert_allclose(history[0]["loss"], expected[0]["loss"], rtol=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}


@pytest.mark.long
@pytest.mark.parametrize("remat", ["block", "stage"])
def test_rematerialization_changes_nothing(remat):
    expected, final = run_steps(1)
    history, state = run_steps(1, model__remat=remat)
    for got, want in zip(history, expected, strict=True):
        np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
    chex.assert_trees_all_close(state, final, rtol=1e-3, atol=1e-5)
