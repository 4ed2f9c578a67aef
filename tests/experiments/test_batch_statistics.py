"""Statistics of groups of images, and which outputs depend on other images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import batch_statistics, training
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
