"""The curves of a run, from its metrics.jsonl."""

from collections.abc import Sequence
import pathlib

from nfnets.training.metrics import METRICS_FILE, read_metrics

# Title -> (label -> key in metrics.jsonl).
_PANELS = {
    "Loss": {
        "training": "train/loss",
        "evaluation": "eval/loss",
        "evaluation, averaged weights": "eval/ema_loss",
    },
    "Top-1 accuracy": {
        "training": "train/top1",
        "evaluation": "eval/top1",
        "evaluation, averaged weights": "eval/ema_top1",
    },
    "Learning rate": {"learning rate": "train/learning_rate"},
    "Share of units clipped by AGC": {"clipped": "train/agc_clipped_fraction"},
}
_COLORS = {"training": "#9ecae1", "evaluation": "#08519c"}
_AVERAGED_COLOR = "#d94801"


def plot_curves(workdir: pathlib.Path) -> pathlib.Path:
    """Draws loss, accuracy, learning rate and clipping over the steps.

    Args:
      workdir: of a run, with metrics.jsonl.

    Returns:
      The picture's path, `workdir/curves.png`.
    """
    from matplotlib.figure import Figure  # at the end of a run, not at its start

    entries = read_metrics(pathlib.Path(workdir) / METRICS_FILE)
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, curves) in zip(
        figure.subplots(2, 2).flat, _PANELS.items(), strict=True
    ):
        for label, key in curves.items():
            steps, values = _series(entries, key)
            if not steps:
                continue
            color = _COLORS.get(label, _AVERAGED_COLOR)
            marker = "o" if label.startswith("evaluation") else None
            axes.plot(steps, values, label=label, color=color, marker=marker, markersize=3)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    path = pathlib.Path(workdir) / "curves.png"
    figure.savefig(path, dpi=100)
    return path


def _series(
    entries: Sequence[dict[str, float]], key: str
) -> tuple[list[float], list[float]]:
    points = [(e["step"], e[key]) for e in entries if e.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
