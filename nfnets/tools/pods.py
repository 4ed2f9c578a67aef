"""Compiles training steps for TPUs and GPUs ahead of time, without the hardware.

    nfnets pods nfnet_f0 --topology v3:4x4 v4:4x4x8 h100:8 --batch=4096

says for each topology whether the training step fits, what it sums over devices, and how
long XLA's TPU compiler estimates it to take. Nothing is run, and no accelerator is needed,
but the compiler is: `pip install 'nfnets[pods]'` for TPUs, `'nfnets[pods-cuda]'` for GPUs.
A step of NFNet-F0 compiles in one to five minutes.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import math
import pathlib
from typing import TYPE_CHECKING

import jax

from nfnets import cli, config_files
from nfnets.errors import UserError

if TYPE_CHECKING:
    from nfnets.pods.compilation import StepReport
    from nfnets.pods.hlo import Program
    from nfnets.pods.topologies import Topology

# The recipe for models that have none of their own, and its dataset.
_RECIPE = "nfnet_f0"
_NUM_TRAIN, _NUM_CLASSES = 1_281_167, 1_000

# For each JPEG of 500x375 pixels: CPU time of the workers, and of the process that trains
# (docs/benchmarks.md, input pipeline).
_WORKER_SECONDS, _HANDOVER_SECONDS = 0.9e-3, 0.02e-3

_LINES_OF_TABLE = 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the reports that the command line asks for."""
    parser = cli.ConfigParser("pods", "Compile training steps for TPUs and GPUs.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="see nfnets models")
    parser.add_argument(
        "--topology",
        nargs="+",
        action="extend",
        required=True,
        help="TPU slices by their chips, such as v3:4x4, v4:4x4x8, v5e:16x16, v5p:4x4x8, "
        "v6e:16x16, or GPUs of one machine, h100:8",
    )
    parser.add_argument("--batch", type=cli.positive_int, help="images of all devices")
    parser.add_argument(
        "--out", help="folder for the programs and tables of their time by source line"
    )
    options, overrides = parser.split(arguments)
    # The default backend; libtpu is only a compiler here.
    jax.config.update("jax_platforms", "cpu")
    from nfnets.pods.topologies import open_topology

    for topology in [open_topology(name) for name in options.topology]:
        for model in options.models or [None]:
            _report(model, topology, options.config, overrides, options.batch, options.out)


def _report(
    model: str | None,
    topology: "Topology",
    config_path: str | None,
    overrides: Sequence[str],
    batch: int | None,
    out: str | None,
) -> None:
    from nfnets.models import get_spec
    from nfnets.pods.compilation import compile_until_fits
    from nfnets.training.config import resolve

    if config_path is None:
        if model is None:
            raise UserError("name a model, such as nfnet_f0, or give --config=FILE")
        get_spec(model)
        config_path = model if model in config_files.recipes() else _RECIPE
    config = config_files.load_config(config_path)
    if model is not None and model not in config_files.recipes():
        config.model.name = model
    if batch is not None:
        config.data.batch_size = batch
    config_files.apply_overrides(config, overrides)
    resolved = resolve(
        config,
        num_train=_NUM_TRAIN,
        num_classes=config.model.num_classes or _NUM_CLASSES,
    )
    for report, program in compile_until_fits(resolved, topology):
        for line in describe(report, topology):
            print(line, flush=True)
        if out is not None:
            _write(pathlib.Path(out), report, program)


def describe(report: "StepReport", topology: "Topology") -> Iterator[str]:
    """Yields the lines about a step; estimates say that they are."""
    from nfnets.pods.compilation import all_reduce_seconds, fits, roofline_seconds

    per_device = report.batch_size // report.num_devices
    passes = "" if report.microbatch is None else f" in passes of {report.microbatch}"
    remat = "" if report.remat == "none" else f", remat {report.remat}"
    yield (
        f"{report.model} on {report.topology}: {report.num_devices} x "
        f"{topology.chip.title}, {per_device} images each{passes}, "
        f"{report.image_size} px, {report.compute_dtype}{remat}"
    )
    if report.failure is not None:
        yield f"  memory       does not fit: {report.failure[:200]}"
        return
    verdict = "fits" if fits(report, topology) else "does not fit"
    parts = (report.argument_bytes, report.temporary_bytes, report.code_bytes)
    arguments, temporaries, code = (f"{size / 1e9:.2f}" for size in parts)
    yield (
        f"  memory       {report.memory_bytes / 1e9:.2f} of "
        f"{topology.chip.memory / 1e9:.0f} GB: {verdict} (arguments {arguments}, "
        f"temporaries {temporaries}, program {code})"
    )
    reduces = report.all_reduces
    yield (
        f"  all-reduce   {len(reduces)}, {report.reduced_bytes / 1e6:.1f} MB of "
        f"{', '.join(sorted({r.dtype for r in reduces})) or 'nothing'}, "
        f"{sum(r.is_asynchronous for r in reduces)} of them asynchronous; at least "
        f"{all_reduce_seconds(report, topology) * 1e3:.1f} ms at the links' published rate"
    )
    products, traffic = roofline_seconds(report, topology)
    bounds = ""
    if report.flops is not None and products is not None:
        bounds = f"{products * 1e3:.1f} ms for {report.flops / 1e12:.3f} TFLOP, "
    yield (
        f"  rooflines    {bounds}{traffic * 1e3:.1f} ms for "
        f"{report.traffic_bytes / 1e9:.1f} GB of memory traffic (upper bound)"
    )
    yield from _describe_time(report, topology)
    is_tpu = topology.chip.platform == "tpu"
    for opcode, elements, repeats, scope in report.gathers if is_tpu else ():
        yield (
            f"  WARNING      {opcode} of {elements:,} elements, {repeats:g} times a step, "
            f"which TPUs take one by one: {scope}"
        )
    yield f"  compiled in  {report.compile_seconds:.0f} s"


def _describe_time(report: "StepReport", topology: "Topology") -> Iterator[str]:
    """Yields the lines about the estimated time."""
    from nfnets.pods.compilation import all_reduce_seconds

    seconds = report.estimated_seconds
    if seconds is None:
        yield "  step         no estimate: XLA gives none for GPUs; for 10,000 images/s:"
        yield from _describe_feed(10_000)
    else:
        yield (
            f"  step         {seconds * 1e3:.1f} ms by XLA's estimate of clock cycles, "
            "without all-reduces; not measured"
        )
        for part, value in sorted(report.part_seconds.items(), key=lambda item: -item[1]):
            yield f"    {part:<24}{value * 1e3:7.2f} ms {value / seconds:6.1%}"
        whole = seconds + all_reduce_seconds(report, topology)
        rate = report.batch_size / whole
        yield (
            f"  input        {rate / report.num_hosts:,.0f} images/s for each of "
            f"{report.num_hosts} host{'s' * (report.num_hosts > 1)}, if the step takes "
            f"{whole * 1e3:.1f} ms; 360 epochs of ImageNet in "
            f"{360 * _NUM_TRAIN / rate / 3600:.1f} hours"
        )
        yield from _describe_feed(rate / report.num_hosts)


def _describe_feed(rate: float) -> Iterator[str]:
    """Yields the lines about a host's cores, given its images per second."""
    cores = rate * (_WORKER_SECONDS + _HANDOVER_SECONDS)
    yield (
        f"  feed         {math.ceil(cores)} cores of each host at "
        f"{_WORKER_SECONDS * 1e3:.2g} ms an image, measured on one CPU"
    )
    if rate * _HANDOVER_SECONDS > 1:
        yield (
            f"  WARNING      a process takes at most {1 / _HANDOVER_SECONDS:,.0f} images/s "
            "from its workers; run several processes per host"
        )


def _write(folder: pathlib.Path, report: "StepReport", program: "Program | None") -> None:
    """Writes the report, the program, and the estimated cycles by source line."""
    name = f"{report.model}-{report.topology.replace(':', '-')}-{report.batch_size}"
    if report.microbatch is not None:
        name += f"-microbatch{report.microbatch}"
    if report.remat != "none":
        name += f"-{report.remat}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(report), indent=2)
        (folder / f"{name}.json").write_text(text + "\n")
        if program is not None:
            (folder / f"{name}.hlo.txt").write_text(program.text)
            (folder / f"{name}.lines.txt").write_text("\n".join(_lines(program)) + "\n")
    except OSError as error:
        raise UserError(f"cannot write --out={folder}: {error.strerror}") from None


def _lines(program: "Program") -> Iterator[str]:
    """Yields estimated cycles by source line of this package."""
    cycles: dict[str, float] = {}
    for operation in program.operations():
        own = [place for place in program.source(operation) if "/nfnets/" in place]
        place = own[0].rpartition("/nfnets/")[2] if own else "(none)"
        cycles[place] = cycles.get(place, 0.0) + operation.cycles
    total = sum(cycles.values()) or 1.0
    yield f"{'cycles':>14} {'share':>7}  nfnets/FILE:LINE FUNCTION"
    ranked = sorted(cycles.items(), key=lambda item: -item[1])
    for place, count in ranked[:_LINES_OF_TABLE]:
        yield f"{count:14,.0f} {count / total:7.2%}  {place}"
