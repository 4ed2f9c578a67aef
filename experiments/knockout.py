"""Claim 6, training: alpha, beta, gamma and weight standardization each left out."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from experiments import runs
from experiments.runs import Run
from experiments.training import Settings

NAME = "knockout"
CONFIG = "configs/nf_resnet50.py"
RATES = (0.1, 0.4)
_OPEN = ("skip_gain", False)
_UNSTANDARDIZED = (("weight_standardization", False), ("conv_init", "he"))
# Label -> overrides. Without the skip gain, branches are open from the first step on and
# the initial variance depends on all parts.
VARIANTS = {
    "all correct": (_OPEN,),
    "all correct, skip gain from 0": (),
    "alpha 1": (_OPEN, ("alpha", 1.0)),
    "no beta": (_OPEN, ("scale_inputs", False)),
    "alpha 1, no beta": (_OPEN, ("alpha", 1.0), ("scale_inputs", False)),
    "no gamma": (_OPEN, ("scaled_activation", False)),
    "no weight standardization": (_OPEN, *_UNSTANDARDIZED, ("scaled_activation", False)),
}
FULL = [
    {
        "train.learning_rate": rate,
        "model.overrides.alpha": alpha,
        "model.overrides.scale_inputs": scale_inputs,
        "model.overrides.scaled_activation": scaled,
    }
    for rate in RATES
    for alpha, scale_inputs, scaled in (
        (0.2, True, True),
        (1.0, True, True),
        (0.2, False, True),
        (1.0, False, True),
        (0.2, True, False),
    )
]


def grid() -> Iterator[Settings]:
    """Yields NF-ResNets of 16 blocks without clipping."""
    for overrides in VARIANTS.values():
        for rate in RATES:
            for seed in runs.SEEDS:
                yield Settings(depth=4, epochs=10, rate=rate, seed=seed, model=overrides)


def quick() -> Iterator[Settings]:
    """Yields two small networks."""
    for label in ("all correct", "no gamma"):
        yield Settings(epochs=2, model=VARIANTS[label])


def tables(results: list[Run]) -> dict[str, str]:
    """Returns the accuracy of each variant at each learning rate."""
    rows = []
    for label, overrides in VARIANTS.items():
        cells = []
        for rate in RATES:
            group = runs.select(results, model=overrides, rate=rate)
            mean, spread = runs.accuracy(group)
            lost = runs.diverged(group)
            cells.append(f"{mean:.1f} ± {spread:.1f}" + f", {lost} diverged" * bool(lost))
        rows.append([label, *cells])
    return {NAME: runs.table(["NF-ResNet", *(f"rate {r}" for r in RATES)], rows)}


def figures(results: list[Run]) -> dict[str, Figure]:
    """Returns no figure; the table tells all."""
    del results
    return {}


if __name__ == "__main__":
    runs.main(NAME, grid(), quick(), FULL, config=CONFIG)
