"""Claim 1: adaptive gradient clipping makes large batches trainable."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from experiments import plot, runs
from experiments.runs import Run
from experiments.training import Settings

NAME = "large_batch"
CONFIG = "configs/nf_resnet50.py"
# Batch -> learning rates per 256 images. The last batch is the whole training set; with
# 479, a third of it, and 32 and 128 an epoch uses nearly all images.
TRAINED = 75  # top-1 accuracy in percent from which a network counts as trained
RATES = {
    32: (0.1, 0.4, 1.6, 6.4),
    128: (0.1, 0.4, 1.6, 6.4),
    479: (0.025, 0.1, 0.4, 1.6),
    1437: (0.025, 0.1, 0.4, 1.6),
}
# Kind of clipping -> thresholds, a factor of 4 apart.
THRESHOLDS = {
    "none": (float("inf"),),
    "agc": (0.04, 0.16, 0.64),
    "norm": (0.25, 1.0, 4.0),
}
# The paper's batches, and lambdas.
FULL = [
    {"data.batch_size": batch, "optimizer.clipping": clipping, "optimizer.clip_norm": norm}
    for batch in (256, 512, 1024, 2048, 4096)
    for clipping, norm in (
        (None, None),
        *((clipping, None) for clipping in (0.01, 0.02, 0.04, 0.08, 0.16)),
        *((None, norm) for norm in (0.25, 1.0, 4.0)),
    )
]
LABELS = {"none": "no clipping", "agc": "AGC", "norm": "global norm"}
TITLES = {"nf_resnet": "NF-ResNet", "nfnet": "NFNet", "batch_norm": "ResNet, batch norm"}


def grid() -> Iterator[Settings]:
    """Yields the runs: NF-ResNet and batch norm everywhere, NFNet at one batch."""
    for network, batches in (
        ("nf_resnet", tuple(RATES)),
        ("batch_norm", tuple(RATES)),
        ("nfnet", (479,)),
    ):
        for batch in batches:
            rates = (0.1, 0.4) if network == "nfnet" else RATES[batch]
            for kind in ("none",) if network == "batch_norm" else THRESHOLDS:
                thresholds = THRESHOLDS[kind]
                for threshold in thresholds[:2] if network == "nfnet" else thresholds:
                    for rate in rates:
                        for seed in runs.SEEDS:
                            yield Settings(
                                network=network,
                                batch=batch,
                                rate=rate,
                                clipping=kind,
                                threshold=threshold,
                                seed=seed,
                            )


def quick() -> Iterator[Settings]:
    """Yields the largest difference, in few epochs."""
    for kind, threshold in (("none", float("inf")), ("agc", 0.04)):
        yield Settings(batch=479, rate=0.4, clipping=kind, threshold=threshold, epochs=8)


def _groups(results: list[Run], **fields: object) -> list[list[Run]]:
    """Returns the runs with these settings, grouped by threshold."""
    chosen = runs.select(results, **fields)
    thresholds = dict.fromkeys(run.settings.threshold for run in chosen)
    return [runs.select(chosen, threshold=threshold) for threshold in thresholds]


def best(results: list[Run], **fields: object) -> list[Run]:
    """Returns the runs of the threshold with the best mean accuracy for these settings."""
    return max(_groups(results, **fields), key=lambda group: runs.accuracy(group)[0])


def _rows(results: list[Run], network: str) -> Iterator[list[object]]:
    """Yields a row of the table for each batch and kind of clipping."""
    for batch in dict.fromkeys(
        r.settings.batch for r in runs.select(results, network=network)
    ):
        for kind in THRESHOLDS:
            places = runs.select(results, network=network, batch=batch, clipping=kind)
            rates = sorted({run.settings.rate for run in places})
            if not rates:
                continue
            groups = {rate: best(places, rate=rate) for rate in rates}
            top = max(rates, key=lambda rate: runs.accuracy(groups[rate])[0])
            mean, spread = runs.accuracy(groups[top])
            trained = [rate for rate in rates if runs.accuracy(groups[rate])[0] >= TRAINED]
            threshold = groups[top][0].settings.threshold
            label = LABELS[kind] if kind == "none" else f"{LABELS[kind]}, {threshold}"
            yield [
                TITLES[network],
                batch,
                label,
                f"{mean:.1f} ± {spread:.1f}",
                f"{top * batch / 256:.3g}",
                f"{max(trained) * batch / 256:.3g}" if trained else "-",
                f"{runs.diverged(places)} of {len(places)}",
            ]


def tables(results: list[Run]) -> dict[str, str]:
    """Returns the best accuracy and the range of learning rates for each batch."""
    header = (
        "network",
        "batch",
        "clipping, best threshold",
        "best top-1, %",
        "at learning rate",
        f"largest learning rate with {TRAINED}%",
        "diverged, of all thresholds",
    )
    rows = [row for network in TITLES for row in _rows(results, network)]
    return {NAME: runs.table(header, rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns accuracy over learning rate for each batch, and over batch."""
    nf_resnets = runs.select(results, network="nf_resnet")
    figure, panels = plot.new_figure(columns=len(RATES), sharey=True)
    for axes, (batch, rates) in zip(panels, RATES.items(), strict=True):
        for style, kind in enumerate(THRESHOLDS):
            groups = [best(nf_resnets, batch=batch, rate=r, clipping=kind) for r in rates]
            x = [rate * batch / 256 for rate in rates]
            plot.line(axes, x, groups, LABELS[kind], style)
        norms = [
            runs.select(results, network="batch_norm", batch=batch, rate=r) for r in rates
        ]
        plot.line(axes, x, norms, TITLES["batch_norm"], 3)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:.2g}" for value in x])
        axes.minorticks_off()
        axes.set_title(f"batch {batch}", fontsize=9)
        axes.set_xlabel("peak learning rate")
    panels[0].set_ylabel("top-1 accuracy, %")
    panels[0].legend(fontsize=7, loc="lower left")
    return {NAME: figure}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG)
