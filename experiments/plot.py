"""Draws the figures of docs/figures and fills in the tables of docs/results.md.

    python -m experiments.plot

reads nothing but experiments/results. An experiment is a module with the functions

    tables(runs) -> {marker: Markdown table}
    figures(runs) -> {file name without .png: matplotlib Figure}

and `<!-- table: marker -->` in docs/results.md stands before each table.
"""

from collections.abc import Iterable, Sequence
import importlib
import pathlib
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import runs

EXPERIMENTS = (
    "large_batch",
    "best_lambda",
    "clip_layers",
    "thresholds",
    "batch_norm_cost",
    "batch_statistics",
    "signal_propagation",
    "knockout",
)
DOCS = pathlib.Path(__file__).parents[1] / "docs"

# Lines differ in marker, dashes and gray value as well as in color.
STYLES: Sequence[dict[str, Any]] = (
    dict(color="#000000", marker="o", linestyle="-"),
    dict(color="#0072b2", marker="s", linestyle="--"),
    dict(color="#d55e00", marker="^", linestyle="-."),
    dict(color="#999999", marker="D", linestyle=":"),
    dict(color="#009e73", marker="v", linestyle=(0, (5, 1))),
    dict(color="#cc79a7", marker="P", linestyle=(0, (1, 1))),
)


def new_figure(columns: int = 1, rows: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its panels, row by row; `kwargs` are those of `subplots`."""
    figure = Figure(figsize=(0.6 + 3.4 * columns, 0.4 + 2.6 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)


def line(
    axes: Axes,
    x: Sequence[Any],
    groups: Iterable[Iterable[runs.Run]],
    label: str,
    style: int,
) -> None:
    """Draws mean and standard deviation of accuracy for a group of runs at each x."""
    means, spreads = zip(*map(runs.accuracy, groups), strict=True)
    axes.errorbar(
        x,
        means,
        spreads,
        label=label,
        capsize=2,
        markersize=4,
        linewidth=1.2,
        **STYLES[style],
    )


def heat_map(
    axes: Axes,
    values: Sequence[Sequence[float]],
    rows: Sequence[Any],
    columns: Sequence[Any],
) -> None:
    """Draws accuracies in percent as shades of gray with the numbers written on them."""
    axes.imshow(values, cmap="Greys_r", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), map(str, columns))
    axes.set_yticks(range(len(rows)), map(str, rows))
    for row, line_values in enumerate(values):
        for column, value in enumerate(line_values):
            color = "black" if value > 55 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)


def fill_in(text: str, tables: dict[str, str]) -> str:
    """Returns a document with every marked table replaced.

    Raises:
      KeyError: a marker names no table.
    """
    pattern = re.compile(r"(<!-- table: (\w+) -->\n\n)(?:\|.*\n)*\n?")
    return pattern.sub(lambda match: match[1] + tables[match[2]] + "\n\n", text)


def all_tables() -> dict[str, str]:
    """Returns the tables of all experiments from their committed results."""
    tables: dict[str, str] = {}
    for name in EXPERIMENTS:
        tables |= importlib.import_module(f"experiments.{name}").tables(runs.read(name))
    return tables


def main() -> None:
    """Writes all figures and the tables of docs/results.md."""
    (DOCS / "figures").mkdir(exist_ok=True)
    for name in EXPERIMENTS:
        module = importlib.import_module(f"experiments.{name}")
        for file, figure in module.figures(runs.read(name)).items():
            path = DOCS / "figures" / f"{file}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
            print(path)
    results = DOCS / "results.md"
    results.write_text(fill_in(results.read_text(), all_tables()))


if __name__ == "__main__":
    main()
