"""Claim 2: the larger the batch, the smaller the best threshold of AGC."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from experiments import plot, runs
from experiments.large_batch import RATES
from experiments.runs import Run
from experiments.training import Settings

NAME = "best_lambda"
CONFIG = "configs/nf_resnet50.py"
LAMBDAS = (0.01, 0.04, 0.16, 0.64)
PEAKS = (0.1, 0.4)  # learning rates per 256 images, scaled linearly
FULL = [
    {"data.batch_size": batch, "optimizer.clipping": clipping}
    for batch in (256, 512, 1024, 2048, 4096)
    for clipping in (0.01, 0.02, 0.04, 0.08, 0.16)
]


def grid() -> Iterator[Settings]:
    """Yields the runs, three quarters of which are claim 1's."""
    for batch in RATES:
        for rate in PEAKS:
            for threshold in LAMBDAS:
                for seed in runs.SEEDS:
                    yield Settings(
                        batch=batch,
                        rate=rate,
                        clipping="agc",
                        threshold=threshold,
                        seed=seed,
                    )


def quick() -> Iterator[Settings]:
    """Yields two runs of two epochs."""
    for threshold in LAMBDAS[1:3]:
        yield Settings(batch=479, rate=0.4, clipping="agc", threshold=threshold, epochs=2)


def _means(results: list[Run], rate: float) -> list[list[float]]:
    """Returns the mean accuracy for each lambda and batch."""
    return [
        [
            runs.accuracy(
                runs.select(results, threshold=threshold, batch=batch, rate=rate)
            )[0]
            for batch in RATES
        ]
        for threshold in LAMBDAS
    ]


def tables(results: list[Run]) -> dict[str, str]:
    """Returns the accuracy for each lambda, batch and learning rate, the best in bold."""
    rows = []
    for rate in PEAKS:
        means = _means(results, rate)
        largest = [max(column) for column in zip(*means, strict=True)]
        for threshold, line in zip(LAMBDAS, means, strict=True):
            cells = []
            for batch, mean, top in zip(RATES, line, largest, strict=True):
                cell = runs.select(results, threshold=threshold, batch=batch, rate=rate)
                text = f"{mean:.1f} ± {runs.accuracy(cell)[1]:.1f}"
                text = f"**{text}**" if mean == top else text
                lost = runs.diverged(cell)
                cells.append(f"{text}, {lost} diverged" if lost else text)
            rows.append([rate, threshold, *cells])
    header = ["learning rate per 256", "lambda", *(f"batch {batch}" for batch in RATES)]
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns heat maps of accuracy over lambda and batch."""
    figure, panels = plot.new_figure(columns=len(PEAKS))
    for axes, rate in zip(panels, PEAKS, strict=True):
        plot.heat_map(axes, _means(results, rate), LAMBDAS, tuple(RATES))
        axes.set_title(f"top-1, %, at learning rate {rate} per 256 images", fontsize=9)
        axes.set_xlabel("batch, images")
        axes.set_ylabel("AGC's lambda")
    return {NAME: figure}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, shared=("large_batch",))
