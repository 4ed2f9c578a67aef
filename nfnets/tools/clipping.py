"""Plots the units that AGC clipped, layer by layer over a run.

    nfnets clipping WORKDIR --out=clipping.png

needs a run with --config.train.log_layers=True.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
import numpy as np

from nfnets import cli
from nfnets.errors import UserError
from nfnets.models.names import block_index, is_stem
from nfnets.tools.curves import load_metrics, save_figure

_CLIPPED = "train/agc_clipped_fraction/"
_RATIO = "train/agc_max_ratio/"
_INCHES_PER_LAYER = 0.13
_MAX_INCHES = 40.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Plots the run that the command line names."""
    parser = cli.Parser("clipping", "Plot the units that AGC clipped, layer by layer.")
    parser.add_argument("workdir", help="folder of a run")
    parser.add_argument("--out", default="clipping.png", help="image file to write")
    options = parser.parse_args(arguments)
    count = plot_clipping(options.workdir, options.out)
    print(f"{options.out}: {count} arrays of {options.workdir}")


def plot_clipping(workdir: str | pathlib.Path, out: str | pathlib.Path) -> int:
    """Draws two maps of layers by steps: share of clipped units, largest ratio.

    Args:
      workdir: folder of a run with `train.log_layers`.
      out: path of the image.

    Returns:
      The number of arrays shown.

    Raises:
      UserError: the run does not exist, it has no metrics by layer, or the image cannot be
        written.
    """
    entries = [e for e in load_metrics(workdir) if any(k.startswith(_CLIPPED) for k in e)]
    if not entries:
        raise UserError(
            f"{workdir} has no metrics by layer; train with --config.train.log_layers=True"
        )
    layers = sorted(
        (key.removeprefix(_CLIPPED) for key in entries[0] if key.startswith(_CLIPPED)),
        key=_depth_order,
    )
    height = min(_MAX_INCHES, 2 + _INCHES_PER_LAYER * len(layers))
    figure = Figure(figsize=(16, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_map(left, entries, _CLIPPED, layers, "Share of units clipped")
    _draw_map(right, entries, _RATIO, layers, "Largest gradient / weight ratio")
    left.set_yticks(np.arange(len(layers)), map(_short_name, layers), fontsize=6)
    left.invert_yaxis()
    name = pathlib.Path(workdir).name
    figure.suptitle(f"Adaptive gradient clipping in {name}, first layer on top")
    save_figure(figure, out)
    return len(layers)


def _draw_map(
    axes: Any,
    entries: Sequence[Mapping[str, Any]],
    prefix: str,
    layers: Sequence[str],
    title: str,
) -> None:
    rows = [[entry.get(prefix + layer) for entry in entries] for layer in layers]
    values = np.array(rows, dtype=float)  # NaN where an entry is missing
    norm, colors = None, "magma"
    if prefix == _RATIO:
        positive = values[values > 0]
        limits = (positive.min(), positive.max()) if positive.size else (1e-6, 1.0)
        norm, colors = LogNorm(*limits), "viridis"
    image = axes.pcolormesh(
        [entry["step"] for entry in entries],
        np.arange(len(layers)),
        values,
        shading="nearest",
        cmap=colors,
        norm=norm,
    )
    axes.figure.colorbar(image, ax=axes, pad=0.01)
    axes.set_title(title)
    axes.set_xlabel("step")


def _depth_order(path: str) -> tuple[int, int, str]:
    """Sort key: stem, blocks by number, the layers after them."""
    index = block_index(path)
    if index is not None:
        return 1, index, path
    return (0 if is_stem(path) else 2), 0, path


def _short_name(path: str) -> str:
    return path.split("/~/", 1)[-1].replace("/~/", "/")
