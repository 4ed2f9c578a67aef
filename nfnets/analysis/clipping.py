"""What AGC clipped, layer by layer over a run.

    python -m nfnets.analysis.clipping WORKDIR --out=clipping.png

needs a run with --config.train.log_layers=True.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
import numpy as np

from nfnets import command
from nfnets.errors import UserError
from nfnets.training.metrics import METRICS_FILE, read_metrics

_PREFIXES = {
    "Share of units clipped": "train/agc_clipped_fraction/",
    "Largest gradient / weight ratio": "train/agc_max_ratio/",
}
_INCHES_PER_LAYER = 0.13
_MAX_INCHES = 40.0


def plot_clipping(workdir: pathlib.Path, out: pathlib.Path) -> int:
    """Draws two maps, layers by steps: the share of clipped units, the largest ratio.

    Args:
      workdir: of a run with `train.log_layers`.
      out: path of the PNG file.

    Returns:
      The number of arrays shown.

    Raises:
      UserError: no such run, or one without figures by layer.
    """
    path = workdir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{workdir} holds no run: there is no {path}")
    entries = [e for e in read_metrics(path) if _layer_keys(e)]
    if not entries:
        raise UserError(
            f"{path} has no figures by layer; train with --config.train.log_layers=True"
        )
    prefix = next(iter(_PREFIXES.values()))
    layers = sorted(
        (key.removeprefix(prefix) for key in entries[0] if key.startswith(prefix)),
        key=_depth_order,
    )
    height = min(_MAX_INCHES, 2 + _INCHES_PER_LAYER * len(layers))
    figure = Figure(figsize=(16, height), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (title, prefix) in zip(axes, _PREFIXES.items(), strict=True):
        values = _matrix(entries, layers, prefix)
        is_ratio = "ratio" in prefix
        norm = LogNorm(*_positive_range(values)) if is_ratio else None
        image = ax.pcolormesh(
            [entry["step"] for entry in entries],
            np.arange(len(layers)),
            values,
            shading="nearest",
            cmap="viridis" if is_ratio else "magma",
            norm=norm,
        )
        figure.colorbar(image, ax=ax, pad=0.01)
        ax.set_title(title)
        ax.set_xlabel("step")
    axes[0].set_yticks(np.arange(len(layers)), map(_short_name, layers), fontsize=6)
    axes[0].invert_yaxis()
    figure.suptitle(f"Adaptive gradient clipping in {workdir.name}, first layer on top")
    figure.savefig(out, dpi=100)
    return len(layers)


def _layer_keys(entry: Mapping[str, float]) -> bool:
    return any(key.startswith(tuple(_PREFIXES.values())) for key in entry)


def _matrix(
    entries: Sequence[Mapping[str, float]], layers: Sequence[str], prefix: str
) -> np.ndarray:
    """[layers, entries]; NaN where a value is missing."""
    rows = [[entry.get(prefix + layer) for entry in entries] for layer in layers]
    return np.array(rows, dtype=float)


def _positive_range(values: np.ndarray) -> tuple[float, float]:
    positive = values[values > 0]
    return (positive.min(), positive.max()) if positive.size else (1e-6, 1.0)


def _depth_order(path: str) -> tuple[int, int, str]:
    """Stem, blocks by number, the end."""
    block = re.search(r"block(?:_v2)?(?:_(\d+))?[/:]", path)
    if block:
        return 1, int(block[1] or 0), path
    return (0 if re.search(r"stem|initial", path) else 2), 0, path


def _short_name(path: str) -> str:
    return path.split("/~/", 1)[-1].replace("/~/", "/")


def main() -> None:
    """Runs the command line."""
    parser = command.Parser("nfnets.analysis.clipping", __doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path, help="folder of a run")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("clipping.png"),
        help="PNG file to write",
    )
    arguments = parser.parse_args()
    count = plot_clipping(arguments.workdir, arguments.out)
    print(f"{count} arrays of {arguments.workdir} in {arguments.out}")


if __name__ == "__main__":
    command.run(main)
