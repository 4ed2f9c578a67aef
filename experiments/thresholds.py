"""Claim 4: plain gradient clipping needs a new threshold for every setting, AGC less so."""

from collections.abc import Iterator
import math
import statistics

from matplotlib.figure import Figure

from experiments import plot, runs
from experiments.runs import Run
from experiments.training import Settings

NAME = "thresholds"
CONFIG = "configs/nf_resnet50.py"
THRESHOLDS = {"agc": (0.01, 0.04, 0.16, 0.64), "norm": (0.0625, 0.25, 1.0, 4.0)}
LABELS = {"agc": "AGC", "norm": "global norm"}
# (batch, learning rate per 256 images, blocks per stage): what the threshold may depend on.
PLACES = (
    *((batch, rate, 1) for batch in (32, 128, 479, 1437) for rate in (0.1, 0.4)),
    (479, 0.4, 2),
)
FULL = [
    {
        "model.name": model,
        "data.batch_size": batch,
        "train.learning_rate": rate,
        "optimizer.clipping": threshold if kind == "agc" else None,
        "optimizer.clip_norm": threshold if kind == "norm" else None,
    }
    for model in ("nf_resnet50", "nf_resnet200")
    for batch in (1024, 4096)
    for rate in (0.05, 0.1, 0.2)
    for kind, thresholds in (("agc", (0.01, 0.04, 0.16)), ("norm", (0.25, 1.0, 4.0)))
    for threshold in thresholds
]


def grid() -> Iterator[Settings]:
    """Yields the runs; two thirds of them are claims 1 and 2's."""
    for batch, rate, depth in PLACES:
        for kind, thresholds in THRESHOLDS.items():
            for threshold in thresholds:
                for seed in runs.SEEDS:
                    yield Settings(
                        depth=depth,
                        batch=batch,
                        rate=rate,
                        clipping=kind,
                        threshold=threshold,
                        seed=seed,
                    )


def quick() -> Iterator[Settings]:
    """Yields one run of two epochs."""
    yield Settings(batch=479, rate=0.4, clipping="norm", threshold=1.0, epochs=2)


def _means(results: list[Run], kind: str) -> list[list[float]]:
    """Returns the mean accuracy for each place and threshold."""
    return [
        [
            runs.accuracy(
                runs.select(
                    results,
                    clipping=kind,
                    threshold=threshold,
                    batch=batch,
                    rate=rate,
                    depth=depth,
                )
            )[0]
            for threshold in THRESHOLDS[kind]
        ]
        for batch, rate, depth in PLACES
    ]


def tables(results: list[Run]) -> dict[str, str]:
    """Returns best thresholds, and what the best single threshold loses against them."""
    rows = []
    for kind, thresholds in THRESHOLDS.items():
        means = _means(results, kind)
        bests = [max(line) for line in means]
        at = [thresholds[line.index(best)] for line, best in zip(means, bests, strict=True)]
        losses = [
            [best - line[index] for line, best in zip(means, bests, strict=True)]
            for index in range(len(thresholds))
        ]
        index, loss = min(enumerate(losses), key=lambda pair: statistics.fmean(pair[1]))
        rows.append(
            [
                LABELS[kind],
                f"{min(at)} to {max(at)}",
                f"{statistics.stdev(math.log2(value) for value in at):.1f}",
                thresholds[index],
                f"{statistics.fmean(loss):.1f}",
                f"{max(loss):.1f}",
                f"{statistics.fmean(map(statistics.fmean, losses)):.1f}",
            ]
        )
    header = (
        "clipping",
        "best threshold",
        "its spread, powers of 2",
        "best single threshold",
        "its mean loss, points",
        "its worst loss, points",
        "mean loss of any threshold, points",
    )
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns heat maps of accuracy over threshold and place."""
    figure, panels = plot.new_figure(columns=2)
    for axes, (kind, thresholds) in zip(panels, THRESHOLDS.items(), strict=True):
        labels = [f"{batch}, {rate}, {depth}" for batch, rate, depth in PLACES]
        plot.heat_map(axes, _means(results, kind), labels, thresholds)
        axes.set_title(f"top-1, %, clipping by {LABELS[kind]}", fontsize=9)
        axes.set_xlabel("lambda" if kind == "agc" else "largest norm of the gradient")
    panels[0].set_ylabel("batch, rate per 256, blocks", fontsize=9)
    return {NAME: figure}


if __name__ == "__main__":
    shared = ("large_batch", "best_lambda")
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, shared=shared)
