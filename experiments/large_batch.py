"""Claim 1: adaptive gradient clipping makes large batches trainable."""

from collections.abc import Iterator

from experiments import runs
from experiments.training import Settings

NAME = "large_batch"
BATCHES = (32, 128, 479, 1437)  # divisors of 1,437 or close: epochs drop few images
RATES = (0.025, 0.1, 0.4, 1.6, 6.4)
# Kind of clipping -> thresholds, a factor of 4 apart.
THRESHOLDS = {
    "none": (float("inf"),),
    "agc": (0.04, 0.16, 0.64),
    "norm": (0.25, 1.0, 4.0),
}


def grid() -> Iterator[Settings]:
    """Yields the runs: NF-ResNet and batch norm everywhere, NFNet at two batches."""
    for network, batches, rates in (
        ("nf_resnet", BATCHES, RATES),
        ("batch_norm", BATCHES, RATES),
        ("nfnet", (32, 479), RATES[1:4]),
    ):
        kinds = ("none",) if network == "batch_norm" else tuple(THRESHOLDS)
        for batch in batches:
            for seed in runs.SEEDS:
                for rate in rates:
                    for kind in kinds:
                        for threshold in THRESHOLDS[kind]:
                            yield Settings(
                                network=network,
                                batch=batch,
                                rate=rate,
                                clipping=kind,
                                threshold=threshold,
                                seed=seed,
                            )


if __name__ == "__main__":
    runs.main(NAME, grid(), [], [])
