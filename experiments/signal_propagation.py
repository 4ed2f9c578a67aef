"""Claim 6, initialization: squared mean, variance and branch variance of each block."""

from collections.abc import Iterator, Mapping
import time
from typing import Any

import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np

from experiments import data, plot, runs
from experiments.runs import Run
from experiments.training import Settings
import nfnets
from nfnets.models import normalize_images
from nfnets.tools.signal_propagation import measure

NAME = "signal_propagation"
CONFIG = "configs/nf_resnet50.py"
FULL: list[dict[str, Any]] = [{}]  # the networks measured here are the paper's
_PLAIN = dict(weight_standardization=False, conv_init="he", scaled_activation=False)
# Label -> name for `nfnets.create_model` and overrides.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet-50, batch norm": ("resnet50", dict(conv_init="he")),
    "NF-ResNet-50, without standardization": ("nf_resnet50", _PLAIN),
    "NF-ResNet-50": ("nf_resnet50", {}),
    "NF-SE-ResNet-50": ("nf_seresnet50", {}),
    "NFNet-F0": ("nfnet_f0", {}),
    "NFNet-F0, shortcuts not pooled": ("nfnet_f0", dict(pool_shortcut=False)),
}
_DRAWN = tuple(NETWORKS)[:3]
IMAGES = {"normal": "unit normal", "photographs": "photographs"}


def _settings(label: str, images: str, seed: int) -> Settings:
    name, overrides = NETWORKS[label]
    return Settings(network=name, data=images, seed=seed, model=tuple(overrides.items()))


def grid() -> Iterator[Settings]:
    """Yields all networks with both kinds of images: 16 of 128 or 64 pixels."""
    for label in NETWORKS:
        for images in IMAGES:
            for seed in runs.SEEDS:
                yield _settings(label, images, seed)


def quick() -> Iterator[Settings]:
    """Yields one network."""
    yield _settings("NF-ResNet-50", "normal", 0)


def train(settings: Settings) -> Mapping[str, Any]:
    """Measures a network before training; see `nfnets.tools.signal_propagation`."""
    start = time.process_time()
    images = None
    if settings.data == "photographs":
        source = data.load("photographs")
        pixels = source.train_images[16 * settings.seed :][:16].astype(np.float32)
        images = normalize_images(jnp.asarray(pixels), source.mean_rgb, source.stddev_rgb)
    overrides = dict(settings.model, drop_rate=0.0, stochdepth_rate=0.0)
    model = nfnets.create_model(settings.network, **overrides)
    measured = measure(model, seed=settings.seed, images=images)
    result = {
        name: None if values is None else [float(f"{value:.4g}") for value in values]
        for name, values in vars(measured).items()
    }
    return {**result, "seconds": round(time.process_time() - start, 2)}


def _values(results: list[Run], label: str, images: str, name: str) -> np.ndarray:
    """Returns an attribute of `SignalPropagation` for each seed, float [seeds, blocks]."""
    settings = [_settings(label, images, seed) for seed in runs.SEEDS]
    return np.array([run.result[name] for run in results if run.settings in settings])


def _ratios(results: list[Run], label: str, images: str) -> np.ndarray:
    """Returns measured over predicted variance of each block's input but the first's."""
    measured = _values(results, label, images, "variance")[:, 1:-1]
    return measured / _values(results, label, images, "predicted_variance")[:, 1:]


def tables(results: list[Run]) -> dict[str, str]:
    """Returns largest squared means, and variances beside the prediction."""
    rows = []
    for label in NETWORKS:
        cells = []
        for images in IMAGES:
            means = _values(results, label, images, "squared_mean")[:, 1:].mean(0)
            cells.append(f"{means.max():.2g}")
            if label == _DRAWN[0]:
                cells += ["no prediction"] * 2
                continue
            ratio = _ratios(results, label, images).mean(0)
            cells += [f"{ratio.min():.2f} to {ratio.max():.2f}"]
            cells += [f"{(ratio / ratio[0]).min():.2f} to {(ratio / ratio[0]).max():.2f}"]
        rows.append([label, *cells])
    header = ["network"]
    for images in IMAGES.values():
        header += [
            f"{images}: largest squared mean",
            "variance / prediction",
            "relative to block 2",
        ]
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns the paper's three panels, for unit normal images."""
    figure, panels = plot.new_figure(columns=3)
    names = ("squared_mean", "variance", "branch_variance")
    for axes, name in zip(panels, names, strict=True):
        for style, label in enumerate(_DRAWN):
            values = _values(results, label, "normal", name)
            first = int(name == "branch_variance")
            axes.errorbar(
                range(first, first + values.shape[1]),
                values.mean(0),
                values.std(0, ddof=1),
                label=label,
                markersize=3.5,
                linewidth=1.2,
                **plot.STYLES[style],
            )
        axes.set_xlabel("block (0: input of the first)")
        axes.set_xticks(range(0, 17, 4))
    predicted = _values(results, "NF-ResNet-50", "normal", "predicted_variance")[0]
    panels[1].plot(predicted, color="gray", linewidth=3, alpha=0.5, label="predicted")
    panels[0].set_yscale("log")
    panels[0].set_ylabel("mean of squared channel means")
    panels[1].set_ylabel("mean of channel variances")
    panels[2].set_ylabel("residual branch variance")
    panels[1].set_ylim(bottom=0)
    panels[2].set_ylim(bottom=0)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return {NAME: figure}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, train=train)
