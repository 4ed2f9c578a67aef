"""Claim 5, cost: step time and memory of a network with and without batch norm."""

from collections.abc import Iterator, Mapping
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np

from experiments import runs
from experiments.runs import Run
from experiments.training import Settings
from nfnets import config_files
from nfnets.training.config import Config, resolve
from nfnets.training.state import build_model, build_optimizer, create_state
from nfnets.training.step import batch_shapes, make_train_step, map_train_step

NAME = "batch_norm_cost"
CONFIG = "configs/resnet50.py"
FULL = [{}, {"model.overrides.normalization": "none"}]
ROUNDS = 6
_WITHOUT = (("normalization", "none"),)
# Label -> settings. The second is the first without its batch norms.
NETWORKS: dict[str, dict[str, Any]] = {
    "ResNet-50, batch norm": dict(network="resnet50"),
    "ResNet-50 without": dict(network="resnet50", model=_WITHOUT),
    "NF-ResNet-50": dict(network="nf_resnet50"),
    "NF-ResNet-50, AGC": dict(network="nf_resnet50", clipping="agc", threshold=0.01),
}


def grid(batch: int = 32) -> Iterator[Settings]:
    """Yields full-size networks; one process measures all of them in turns."""
    for network in NETWORKS.values():
        yield Settings(data="random, 64 px", batch=batch, **network)


def quick() -> Iterator[Settings]:
    """Yields the same with two images."""
    yield from grid(batch=2)


def _config(settings: Settings) -> Config:
    config = config_files.load_config("configs/resnet50.py")
    config.model.name = settings.network
    config.model.compute_dtype = "float32"
    config.model.stochdepth_rate = 0.0
    config.model.overrides.update(dict(settings.model))
    config.data.batch_size = settings.batch
    config.data.image_size = 64
    config.optimizer.clipping = settings.threshold if settings.clipping == "agc" else None
    return resolve(config, num_classes=1000, num_train=10_000)


@functools.cache
def _measure(batch: int) -> dict[Settings, Mapping[str, Any]]:
    """Compiles and times the training steps of all networks, in turns.

    Seconds are of CPU time, which other processes on the core disturb less.
    """
    steps, states, batches = {}, {}, {}
    results: dict[Settings, dict[str, Any]] = {}
    for settings in grid(batch):
        config = _config(settings)
        model, optimizer = build_model(config), build_optimizer(config)
        states[settings] = create_state(config, model, optimizer)
        batches[settings] = {
            name: jnp.asarray(np.random.default_rng(0).integers(0, 255, s.shape), s.dtype)
            for name, s in batch_shapes(config).items()
        }
        step = map_train_step(make_train_step(config, model, optimizer))
        compiled = step.lower(states[settings], batches[settings]).compile()
        steps[settings] = compiled
        memory = compiled.memory_analysis()
        results[settings] = {
            "temporary_bytes": memory.temp_size_in_bytes,
            "step_seconds": [],
        }
    for number in range(ROUNDS + 1):  # the first is a warm-up
        for settings, step in steps.items():
            start = time.process_time()
            states[settings], metrics = step(states[settings], batches[settings])
            jax.block_until_ready((states[settings], metrics))
            if number:
                seconds = round(time.process_time() - start, 4)
                results[settings]["step_seconds"].append(seconds)
    return {settings: result for settings, result in results.items()}


def train(settings: Settings) -> Mapping[str, Any]:
    """Returns the bytes and the seconds of steps of one network."""
    return _measure(settings.batch)[settings]


def tables(results: list[Run]) -> dict[str, str]:
    """Returns step time and memory beside those of batch norm."""
    rows = []
    times = np.array([run.result["step_seconds"] for run in results])
    sizes = [run.result["temporary_bytes"] for run in results]
    for label, seconds, size in zip(NETWORKS, times, sizes, strict=True):
        relative = seconds / times[0]  # round by round
        rows.append(
            [
                label,
                f"{statistics.median(seconds):.2f} ± {statistics.stdev(seconds):.2f}",
                f"{np.median(relative):.2f} ± {relative.std(ddof=1):.2f}",
                f"{size / 1e6:.0f}",
                f"{size / sizes[0]:.2f}",
            ]
        )
    header = ("network", "step, s", "relative", "activations, MB", "relative")
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns no figure; the table tells all."""
    del results
    return {}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, train=train)
