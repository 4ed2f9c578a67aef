"""Plots the metrics of one or several runs.

    nfnets curves runs/digits --out=curves.png
    nfnets curves runs/baseline runs/sam --out=comparison.png

draws loss, accuracy, learning rate and clipping over the steps, a color for each run.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from matplotlib.figure import Figure

from nfnets import cli
from nfnets.errors import UserError
from nfnets.training.metric_writers import METRICS_FILE, read_metrics

# Title of the panel -> name of the metric.
_PANELS = {
    "Loss": "loss",
    "Top-1 accuracy": "top1",
    "Learning rate": "learning_rate",
    "Share of units clipped by AGC": "agc_clipped_fraction",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Plots the runs that the command line names."""
    parser = cli.Parser("curves", "Plot the metrics of runs.")
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="folder of a run")
    parser.add_argument("--out", default="curves.png", help="image file to write")
    options = parser.parse_args(arguments)
    plot_curves(options.workdirs, options.out)
    print(options.out)


def plot_curves(workdirs: Sequence[str | pathlib.Path], out: str | pathlib.Path) -> None:
    """Draws the metrics of runs into one image.

    Args:
      workdirs: folders of runs, with metrics.jsonl.
      out: path of the image.

    Raises:
      UserError: a run has no metrics, or the image cannot be written.
    """
    runs = {str(workdir): load_metrics(workdir) for workdir in workdirs}
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, metric) in zip(
        figure.subplots(2, 2).flat, _PANELS.items(), strict=True
    ):
        for number, (workdir, entries) in enumerate(runs.items()):
            for key in _find_keys(entries, metric):
                label = key.removesuffix(metric).rstrip("/_")
                points = [(e["step"], e[key]) for e in entries if e.get(key) is not None]
                axes.plot(
                    *zip(*points, strict=True),
                    label=label if len(runs) == 1 else f"{workdir} {label}",
                    color=f"C{number}",
                    **_style(label),
                )
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    save_figure(figure, out)


def load_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the entries of a run's metrics.jsonl.

    Raises:
      UserError: the file does not exist or is damaged.
    """
    path = pathlib.Path(workdir, METRICS_FILE)
    if not path.is_file():
        raise UserError(f"{workdir} is not the folder of a run: it has no {METRICS_FILE}")
    return read_metrics(path)


def save_figure(figure: Figure, out: str | pathlib.Path) -> None:
    """Writes a figure in the format of the path's suffix.

    Raises:
      UserError: the file cannot be written, or its format is unknown.
    """
    try:
        figure.savefig(out, dpi=100)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write --out={out}: {error}") from None


def _find_keys(entries: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Returns train/METRIC, eval/METRIC and eval/AVERAGE_METRIC, where they have values."""
    keys = {key for entry in entries for key, value in entry.items() if value is not None}
    return sorted(
        (
            key
            for key in keys
            if key in (f"train/{metric}", f"eval/{metric}")
            or (key.startswith("eval/") and key.endswith(f"_{metric}"))
        ),
        reverse=True,
    )


def _style(label: str) -> dict[str, Any]:
    if label == "train":
        return {"alpha": 0.5, "linewidth": 1}
    return {"linestyle": "-" if label == "eval" else "--", "marker": "o", "markersize": 3}
