"""Configs, batches and states that compile in seconds, for the tests of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from nfnets.training.checkpoints import Checkpoints
from nfnets.training.config import resolve
from nfnets.training.metric_writers import read_metrics
from nfnets.training.provenance import Provenance
from nfnets.training.state import (
    AXIS,
    TrainState,
    build_model,
    build_optimizer,
    create_state,
)
from nfnets.training.step import make_train_step, replicate

MODEL = {"widths": (16, 32), "depths": (1, 1), "strides": (1, 2), "group_width": 8}

# For tests in which the model does not matter.
ONE_BLOCK = {**MODEL, "widths": (16,), "depths": (1,), "strides": (2,)}

NOTHING_RANDOM = {
    "model__drop_rate": 0.0,
    "model__stochdepth_rate": 0.0,
    "augment__mixup_fraction": 0.0,
    "augment__cutmix_fraction": 0.0,
    "augment__randaugment_layers": 0,
}

STEPS = 3


def change(config, **changes):
    """Sets `section__field=value`."""
    for name, value in changes.items():
        section, field = name.split("__")
        with config[section].ignore_type():
            config[section][field] = value
    return config


def make_config(**changes):
    """A resolved config of 20 steps with everything random switched on."""
    config = digits.get_config()
    config.model.overrides.update(MODEL)
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
    return resolve(change(config, **changes), num_train=100, num_classes=10)


def make_batch(seed, config):
    """A global batch of random pixels."""
    rng = np.random.default_rng(seed)
    size, batch = config.data.image_size, config.data.batch_size
    return {
        "images": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        "labels": rng.integers(0, 10, batch, np.int32),
        "example_index": np.arange(batch, dtype=np.int32),
    }


def build(config):
    """The model, the optimizer and the initial state of a resolved config."""
    model, optimizer = build_model(config), build_optimizer(config)
    return model, optimizer, create_state(config, model, optimizer)


def on_devices(step, devices):
    """`map_train_step` over the first `devices` devices."""
    chosen = jax.devices()[:devices]
    mapped = jax.pmap(
        step, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, None), devices=chosen
    )
    # A state on other devices would be compiled for separately.
    mesh = jax.sharding.Mesh(np.asarray(chosen), (AXIS,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def call(state, batch):
        split = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
        return mapped(jax.device_put(state, replicated), split)

    return call


@functools.cache
def run_steps(devices, **changes):
    """Metrics of `STEPS` steps and the last state; each combination runs once."""
    config = make_config(**changes)
    model, optimizer, state = build(config)
    step = on_devices(make_train_step(config, model, optimizer), devices)
    history = []
    for number in range(STEPS):
        state, metrics = step(state, make_batch(number, config))
        history.append(jax.device_get(metrics))
    return history, jax.device_get(state)


def run_config(**changes):
    """The config of a run of six steps on digits, as a config file returns it."""
    config = digits.get_config()
    config.model.overrides.update(MODEL)
    config.data.image_size = 16
    config.eval.image_size = 16
    config.data.batch_size = 64
    config.eval.batch_size = 100
    config.train.steps = 6
    config.train.warmup_steps = 1
    config.train.log_every = 2
    config.eval.every = 4
    config.checkpoint.every = 3
    return change(config, **changes)


PROVENANCE = Provenance(
    config={"model.name": "a", "seed": 0, "optimizer.clipping": None},
    class_names=("x", "y"),
    bad_records=3,
)


def small_state(step, size=4):
    """A state of a few numbers that follow from `step`."""
    return replicate(
        TrainState(
            step=jnp.asarray(step, jnp.int32),
            params={"net": {"w": jnp.arange(float(size)) * step}},
            net_state={},
            opt_state=(jnp.ones(2) * step, ()),
            ema={"ema": ({"net": {"w": jnp.ones(size)}}, {})},
        )
    )


def stored_arrays(workdir, step=None):
    """All arrays of a run's checkpoint: weights, averages, optimizer, step."""
    checkpoints = Checkpoints(workdir)
    try:
        step = checkpoints.latest_step() if step is None else step
        return checkpoints._read_arrays(step, checkpoints._metadata(step))
    finally:
        checkpoints.close()


def assert_same_arrays(got, want):
    """Two checkpoints are the same to the last bit."""
    assert got.keys() == want.keys()
    for path, array in want.items():
        assert got[path].dtype == array.dtype
        assert got[path].tobytes() == array.tobytes(), path


_OF_THE_CLOCK = ("train/images_per_sec", "train/data_wait")


def logged(workdir):
    """The lines of metrics.jsonl without what depends on the clock."""
    return [
        (e["step"], {k: v for k, v in e.items() if k not in _OF_THE_CLOCK})
        for e in read_metrics(workdir / "metrics.jsonl")
    ]


def assert_same_end(workdir, reference):
    """Two runs end with the same bits and have logged the same metrics."""
    assert_same_arrays(stored_arrays(workdir), stored_arrays(reference))
    assert logged(workdir) == logged(reference)


def losses(workdir):
    """The losses of the steps, which must be there once each and in order."""
    entries = [e for e in read_metrics(workdir / "metrics.jsonl") if "train/loss" in e]
    assert [e["step"] for e in entries] == list(range(1, len(entries) + 1))
    return [e["train/loss"] for e in entries]
