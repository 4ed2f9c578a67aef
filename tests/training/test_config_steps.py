"""Every config takes a step: traced for all, run by the long tests."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets import config_files
from nfnets.training.config import resolve
from nfnets.training.state import build_model, build_optimizer, create_state
from nfnets.training.step import AXIS, make_train_step

CONFIGS = sorted(path.stem for path in pathlib.Path("configs").glob("[!_]*.py"))
# One of each kind; tracing all of them takes minutes.
QUICK = {"digits", "nfnet_f0", "nf_resnet50", "fixup_resnet50"}


def step_and_arguments(name):
    config = config_files.load_config(f"configs/{name}.py")
    config.data.batch_size = 2
    config.data.image_size = 32
    config.train.steps = 10
    config = resolve(config, num_train=100, num_classes=10)
    model, optimizer = build_model(config), build_optimizer(config)
    step = jax.vmap(make_train_step(config, model, optimizer), (None, 0), axis_name=AXIS)
    batch = {
        "images": np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8),
        "labels": np.array([[1, 7]], np.int32),
        "example_index": np.array([[0, 1]], np.int32),
    }
    return step, lambda: create_state(config, model, optimizer), batch


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in CONFIGS],
)
def test_every_config_has_a_step(name):
    step, make_state, batch = step_and_arguments(name)
    state = jax.eval_shape(make_state)
    new_state, metrics = jax.eval_shape(step, state, batch)
    # One device's leading axis apart, the state keeps its structure, shapes and dtypes.
    new_state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), new_state
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_takes_a_step(name):
    step, make_state, batch = step_and_arguments(name)
    state, metrics = jax.jit(step)(make_state(), batch)
    assert np.isfinite(metrics["loss"]).all()
    assert (np.asarray(state.step) == 1).all()
