"""Claim 3: AGC belongs on all four stages and not on the classifier."""

from collections.abc import Iterator
import functools
from typing import Any

import jax
from matplotlib.figure import Figure

from experiments import plot, runs
from experiments.runs import Run
from experiments.training import PARTS, Settings, is_in
from nfnets.models import Params
from nfnets.optim import rules

NAME = "clip_layers"
CONFIG = "configs/nf_resnet50.py"
STANDARD = PARTS[:-1]  # all but the classifier
CASES = {
    "all but the classifier (the paper's choice)": STANDARD,
    "the classifier as well": PARTS,
    **{
        f"not {part.replace('_', ' ')}": tuple(other for other in STANDARD if other != part)
        for part in ("stem", "stage_0", "stage_1", "stage_2", "stage_3")
    },
    "nothing": (),
}
RATE = 0.4  # learning rate per 256 images
BATCH, LAMBDA = 479, 0.04  # the best of claim 1 at this batch
_LARGE = {"data.batch_size": 4096, "optimizer.clipping": 0.01}
FULL: list[dict[str, Any]] = [
    _LARGE,
    _LARGE | {"optimizer.clip_classifier": True},
    *(
        _LARGE | {"optimizer.label_fn": f"experiments.clip_layers:not_{part}"}
        for part in ("stem", "stage_0", "stage_1", "stage_2", "stage_3")
    ),
    _LARGE | {"optimizer.clipping": None},
]


def _label_without(part: str, params: Params) -> Any:
    """Labels parameters for `nfnets.create_optimizer`, which clips no classifier_weight."""

    def label(label: str, is_spared: bool) -> str:
        return "classifier_weight" if is_spared and label == "weight" else label

    spared = is_in((part,), params)
    return jax.tree.map(label, rules.label_parameters(params), spared)


# For `optimizer.label_fn`: weights of one part are not clipped.
not_stem, not_stage_0, not_stage_1, not_stage_2, not_stage_3 = (
    functools.partial(_label_without, part)
    for part in ("stem", "stage_0", "stage_1", "stage_2", "stage_3")
)


def grid() -> Iterator[Settings]:
    """Yields the runs of every case."""
    for clipped in CASES.values():
        for seed in runs.SEEDS:
            yield Settings(
                batch=BATCH,
                rate=RATE,
                clipping="agc" if clipped else "none",
                threshold=LAMBDA if clipped else float("inf"),
                clipped=clipped or STANDARD,
                seed=seed,
            )


def quick() -> Iterator[Settings]:
    """Yields one run of two epochs."""
    yield Settings(
        batch=BATCH, rate=RATE, clipping="agc", threshold=LAMBDA, clipped=PARTS, epochs=2
    )


def _select(results: list[Run], clipped: tuple[str, ...]) -> list[Run]:
    kind = "agc" if clipped else "none"
    return runs.select(results, clipping=kind, clipped=clipped or STANDARD)


def tables(results: list[Run]) -> dict[str, str]:
    """Returns accuracy and diverged runs of every case."""
    rows = []
    for label, clipped in CASES.items():
        chosen = _select(results, clipped)
        mean, spread = runs.accuracy(chosen)
        each = ", ".join(f"{run.result['accuracy']:.0f}" for run in chosen)
        rows.append([label, f"{mean:.1f} ± {spread:.1f}", each, runs.diverged(chosen)])
    return {NAME: runs.table(("AGC clips", "top-1, %", "each seed", "diverged"), rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns a chart of the accuracy of every run and of the means."""
    figure, (axes,) = plot.new_figure()
    for place, clipped in enumerate(CASES.values()):
        chosen = _select(results, clipped)
        values = [run.result["accuracy"] for run in chosen]
        axes.plot(values, [place] * len(values), "o", color="#0072b2", fillstyle="none")
        axes.plot(runs.accuracy(chosen)[0], place, "k|", markersize=12)
    axes.set_yticks(range(len(CASES)), [label.split(" (")[0] for label in CASES])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("top-1 accuracy, %")
    axes.set_title("circles: seeds, bar: mean", fontsize=9)
    axes.set_ylabel("AGC clips")
    return {NAME: figure}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG, shared=("large_batch",))
