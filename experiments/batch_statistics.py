"""Claim 5, batch dependence: statistics of few images, and images that change others."""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments import data, plot, runs, training
from experiments.runs import Run
from experiments.training import Settings
from nfnets.models import normalize_images

NAME = "batch_statistics"
CONFIG = "configs/resnet50.py"
SIZES = (2, 4, 8, 32)
NETWORKS: dict[str, dict[str, Any]] = {
    "NF-ResNet": dict(network="nf_resnet"),
    "ResNet, batch norm": dict(network="batch_norm"),
}
RATES = (0.1, 0.4)
# On ImageNet the batch of one device is that small, and the learning rate scales with it.
FULL = [{"data.batch_size": size, "train.learning_rate": 0.1} for size in SIZES]


def grid() -> Iterator[Settings]:
    """Yields training with batches of 32 images in groups of 2 to 32."""
    for network in NETWORKS.values():
        for size in SIZES:
            for rate in RATES:
                for seed in runs.SEEDS:
                    yield Settings(statistics=size, rate=rate, seed=seed, **network)


def quick() -> Iterator[Settings]:
    """Yields two epochs of batch norm with pairs of images."""
    yield Settings(network="batch_norm", statistics=2, epochs=2)


@functools.cache
def change_of_others(network: str, size: int, seed: int) -> float:
    """Swaps two images between two groups and returns how much the other outputs change.

    Args:
      network: see `Settings`.
      size: images in each of the two groups.
      seed: of the initial weights, with classifier and skip gains of 1 instead of 0.

    Returns:
      The largest absolute change of a logit of an image that was not swapped.
    """
    settings = Settings(network=network, statistics=size)
    model, images = training.create_model(settings), data.load(settings.data)
    batch = jnp.asarray(images.train_images[: 2 * size], jnp.float32)
    batch = normalize_images(batch, images.mean_rgb, images.stddev_rgb)
    params, state = model.init(jax.random.key(seed), batch)
    head = jax.random.normal(jax.random.key(seed), (96, 10))
    params = {
        module: {
            name: head if array.shape == head.shape else jnp.where(array.ndim, array, 1.0)
            for name, array in arrays.items()
        }
        for module, arrays in params.items()
    }

    @jax.jit
    def logits(batch: jax.Array) -> jax.Array:
        return training.apply_in_groups(settings, model, params, state, batch)[0]

    order = jnp.arange(2 * size).at[jnp.array([0, size])].set(jnp.array([size, 0]))
    difference = jnp.abs(logits(batch) - logits(batch[order]))
    others = jnp.delete(difference, jnp.array([0, size]), axis=0)
    return float(f"{others.max():.3g}")


def train(settings: Settings) -> Mapping[str, Any]:
    """Trains one network and adds `change_of_others` of it before training."""
    assert settings.statistics
    change = change_of_others(settings.network, settings.statistics, settings.seed)
    return {**training.train(settings), "change_of_others": change}


def _best(results: list[Run], size: int, network: Mapping[str, Any]) -> list[Run]:
    """Returns the runs of the learning rate with the best mean accuracy."""
    groups = [runs.select(results, statistics=size, rate=r, **network) for r in RATES]
    return max(groups, key=lambda group: runs.accuracy(group)[0])


def tables(results: list[Run]) -> dict[str, str]:
    """Returns accuracies at the best learning rate, and changes by a swap."""
    rows = []
    for label, network in NETWORKS.items():
        groups = [_best(results, size, network) for size in SIZES]
        cells = ["{:.1f} ± {:.1f}".format(*runs.accuracy(group)) for group in groups]
        changes = [r.result["change_of_others"] for r in runs.select(results, **network)]
        span = f"{min(changes):g} to {max(changes):g}" if any(changes) else "0"
        rows.append([label, *cells, span])
    header = ["network", *(f"{size} images" for size in SIZES), "change of other logits"]
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns accuracy over the number of images in the statistics."""
    figure, (axes,) = plot.new_figure()
    for style, (label, network) in enumerate(NETWORKS.items()):
        groups = [_best(results, size, network) for size in SIZES]
        plot.line(axes, SIZES, groups, label, style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, list(map(str, SIZES)))
    axes.set_xlabel("images in the statistics, of batch 32")
    axes.set_ylabel("top-1 accuracy, %")
    axes.legend(fontsize=8)
    return {NAME: figure}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, train=train)
