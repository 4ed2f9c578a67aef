"""Statistics of groups of images, and which outputs depend on other images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import augmentation, batch_norm_cost, batch_statistics, training
from experiments.training import Settings


@pytest.mark.parametrize("network", ["nf_resnet", "batch_norm"])
def test_only_batch_norm_lets_images_change_others(network):
    change = batch_statistics.change_of_others(network, 4, seed=0)
    assert change > 0.1 if network == "batch_norm" else change == 0


def test_statistics_are_those_of_each_group():
    settings = Settings(network="batch_norm", statistics=2)
    model = training.create_model(settings)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    params, state = model.init(jax.random.key(1), images)
    _, got = training.apply_in_groups(settings, model, params, state, images)
    halves = [
        model.apply(params, state, None, half, is_training=True)[1]
        for half in (images[:2], images[2:])
    ]
    for want, values in zip(jax.tree.leaves(halves[0]), jax.tree.leaves(got), strict=True):
        assert values.dtype == want.dtype
    want = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want
    )
    whole = dataclasses.replace(settings, statistics=0)
    _, state_of_all = training.apply_in_groups(whole, model, params, state, images)
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), got, state_of_all)
    assert max(jax.tree.leaves(differences)) > 1e-4


def test_networks_of_the_cost_differ_by_batch_norm():
    with_norm, without = list(batch_norm_cost.grid())[:2]
    assert dataclasses.replace(without, model=()) == with_norm


def test_mixup_mixes_the_targets_of_pairs():
    apply = augmentation.get_augmentation("MixUp")
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8).at[0].set(200)
    mixed, targets = apply(jax.random.key(0), images, jnp.array([3, 5]))
    share = targets[0, 3] / (targets[0, 3] + targets[0, 5])
    assert mixed.shape == images.shape
    # The smoothed label adds the same to both classes.
    weight = (targets[0, 3] - 0.01) / 0.9
    assert 0 < share < 1
    np.testing.assert_allclose(mixed[0], 200 * weight, atol=0.51)
