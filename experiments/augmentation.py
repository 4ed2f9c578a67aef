"""Claim 7: strong augmentation helps normalizer-free networks more than batch norm."""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments import plot, runs, training
from experiments.runs import Run
from experiments.training import Settings
from nfnets.augment import AugmentOptions, augment

NAME = "augmentation"
CONFIG = "configs/nfnet_f0.py"
# Label -> MixUp's and CutMix's share of the images, layers and magnitude of RandAugment.
AUGMENTATIONS = {
    "none": (0.0, 0.0, 0, 0),
    "RandAugment 5": (0.0, 0.0, 2, 5),
    "RandAugment 15": (0.0, 0.0, 2, 15),
    "MixUp": (1.0, 0.0, 0, 0),
    "CutMix": (0.0, 1.0, 0, 0),
    "all": (0.5, 0.5, 2, 15),
}
# Label -> network, learning rate per 256 images, clipping and its threshold.
NETWORKS: dict[str, dict[str, Any]] = {
    "NF-ResNet, AGC 0.16": dict(
        network="nf_resnet", rate=0.4, clipping="agc", threshold=0.16
    ),
    "ResNet, batch norm": dict(network="batch_norm", rate=0.4),
}
FULL = [
    {
        "augment.mixup_fraction": mixup,
        "augment.cutmix_fraction": cutmix,
        "augment.randaugment_layers": 2 * layers,
        "augment.randaugment_magnitude": magnitude,
    }
    for mixup, cutmix, layers, magnitude in AUGMENTATIONS.values()
]


def grid() -> Iterator[Settings]:
    """Yields both networks with every augmentation of the photographs."""
    for label in AUGMENTATIONS:
        for network in NETWORKS.values():
            for seed in runs.SEEDS:
                yield Settings(data="photographs", augmentation=label, seed=seed, **network)


def quick() -> Iterator[Settings]:
    """Yields one short run with all augmentations."""
    yield Settings(augmentation="all", epochs=2)


@functools.cache  # the function is a key of the compiled programs
def get_augmentation(label: str) -> training.Augment:
    """Returns the named augmentation with smoothed labels."""
    mixup, cutmix, layers, magnitude = AUGMENTATIONS[label]
    options = AugmentOptions(
        mixup_fraction=mixup,
        cutmix_fraction=cutmix,
        randaugment_layers=layers,
        randaugment_magnitude=magnitude,
        scale_translation=True,  # published shifts are for 224 px
    )

    def apply(
        key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        images, targets = training.smooth(key, images, labels)
        return augment(key, images, targets, jax.numpy.arange(len(images)), options)

    return apply


def train(settings: Settings) -> Mapping[str, Any]:
    """Trains one network with the augmentation of its settings."""
    return training.train(settings, get_augmentation(settings.augmentation))


def tables(results: list[Run]) -> dict[str, str]:
    """Returns the accuracy with each augmentation and the gain over none."""
    rows = []
    for label in AUGMENTATIONS:
        cells = []
        for network in NETWORKS.values():
            group = runs.select(results, augmentation=label, **network)
            base = runs.select(results, augmentation="none", **network)
            mean, spread = runs.accuracy(group)
            cells += [f"{mean:.1f} ± {spread:.1f}", f"{mean - runs.accuracy(base)[0]:+.1f}"]
        rows.append([label, *cells])
    header = ["augmentation"]
    for name in NETWORKS:
        header += [f"{name}, top-1 %", "gain"]
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns the accuracy with each augmentation."""
    figure, (axes,) = plot.new_figure()
    figure.set_size_inches(6.5, 3.2)
    for style, (name, network) in enumerate(NETWORKS.items()):
        groups = [runs.select(results, augmentation=a, **network) for a in AUGMENTATIONS]
        plot.line(axes, range(len(groups)), groups, name, style)
    axes.set_xticks(range(len(AUGMENTATIONS)), AUGMENTATIONS, fontsize=8)
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_xlabel("augmentation of the photographs")
    axes.legend(fontsize=8)
    return {NAME: figure}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, train=train)
