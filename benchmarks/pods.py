"""Tables of training steps compiled ahead of time for TPUs and GPUs.

    python benchmarks/pods.py --models nfnet_f0 nfnet_f1 --topologies v3:4x4=1024 h100:8=256

compiles each model for each topology=batch, unless benchmarks/results/pods/ has the report
already (each takes minutes), and prints a Markdown table of all of them. Needs
nfnets[pods]. Nothing is run: memory and sums over devices are the compiler's plan, and
times are its estimates.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from nfnets.pods.compilation import (
    AllReduce,
    StepReport,
    all_reduce_seconds,
    fits,
    roofline_seconds,
)
from nfnets.pods.topologies import CHIPS, Topology

RESULTS = pathlib.Path(__file__).parent / "results" / "pods"
TOPOLOGIES = (
    "v3:4x4=1024",
    "v4:4x4x8=4096",
    "v5e:16x16=4096",
    "v5p:4x4x4=4096",
    "v6e:8x8=4096",
    "h100:8=4096",
)
_NUM_TRAIN, _EPOCHS = 1_281_167, 360


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--topologies", nargs="*", default=TOPOLOGIES)
    parser.add_argument("--timeout", type=float, default=1800, help="of one, seconds")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        for entry in options.topologies:
            topology, _, batch = entry.partition("=")
            if not list(
                RESULTS.glob(f"{model}-{topology.replace(':', '-')}-{batch}*.json")
            ):
                _compile(model, topology, batch, options.timeout)
    for line in table(load()):
        print(line)


def _compile(model: str, topology: str, batch: str, timeout: float) -> None:
    command = [sys.executable, "-m", "nfnets", "pods", model, f"--topology={topology}"]
    command += [f"--batch={batch}", f"--out={RESULTS}"]
    try:
        subprocess.run(command, check=True, timeout=timeout, stdout=sys.stderr)
    except subprocess.TimeoutExpired:
        print(f"{model} for {topology}: not compiled in {timeout:g} s", file=sys.stderr)
    for file in RESULTS.glob("*.txt"):  # programs are large
        file.unlink()


def load() -> list[StepReport]:
    """Returns the stored reports, in the order of `TOPOLOGIES`, then by model."""
    kinds = [entry.partition(":")[0] for entry in TOPOLOGIES]
    reports = []
    for file in RESULTS.glob("*.json"):
        fields = json.loads(file.read_text())
        fields["all_reduces"] = [AllReduce(**reduce) for reduce in fields["all_reduces"]]
        reports.append(StepReport(**fields))
    return sorted(reports, key=lambda r: (kinds.index(r.topology.split(":")[0]), r.model))


def table(reports: list[StepReport]) -> list[str]:
    """Returns the lines of a Markdown table."""
    columns = (
        "topology",
        "model",
        "images per device",
        "GB of HBM",
        "step ms (est.)",
        "augmentation",
        "per parameter",
        "roofline ms: products / memory",
        "all-reduce MB / ms",
        "images/s per host",
        "360 epochs, h",
        "compile s",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|---" + "|---:" * 10 + "|"]
    for report in reports:
        kind = report.topology.split(":")[0]
        topology = Topology(report.topology, CHIPS[kind], (), report.num_hosts)
        images = str(report.batch_size // report.num_devices)
        if report.microbatch is not None:
            images += f" in passes of {report.microbatch}"
        if report.remat != "none":
            images += f", remat {report.remat}"
        if report.failure is not None:
            cells = ["does not fit"] + ["-"] * 8
        else:
            cells = _figures(report, topology)
        cells = [report.topology, report.model, images, *cells]
        lines.append(f"| {' | '.join(cells)} | {report.compile_seconds:.0f} |")
    return lines


def _figures(report: StepReport, topology: Topology) -> list[str]:
    parts, seconds = report.part_seconds, report.estimated_seconds
    products, traffic = roofline_seconds(report, topology)
    reduce = all_reduce_seconds(report, topology)
    verdict = "" if fits(report, topology) else " (does not fit)"
    roofline = "- / " if products is None else f"{products * 1e3:.1f} / "
    cells = [
        f"{report.memory_bytes / 1e9:.2f} of {topology.chip.memory / 1e9:.0f}{verdict}"
    ]
    if seconds is None:
        cells += ["-"] * 3
    else:
        work = parts["weight standardization"] + parts["optimizer, AGC, EMA"]
        cells += [f"{seconds * 1e3:.1f}", f"{parts['augmentation'] / seconds:.0%}"]
        cells += [f"{work / seconds:.0%}"]
    cells += [f"{roofline}{traffic * 1e3:.1f}"]
    cells += [f"{report.reduced_bytes / 1e6:.0f} / {reduce * 1e3:.1f}"]
    if seconds is None:
        return [*cells, "-", "-"]
    rate = report.batch_size / (seconds + reduce)
    hours = _EPOCHS * _NUM_TRAIN / rate / 3600
    return [*cells, f"{rate / report.num_hosts:,.0f}", f"{hours:.1f}"]


if __name__ == "__main__":
    main()
