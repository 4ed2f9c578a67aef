"""What batch 4096 takes on 8, 64 and 512 devices, on paper: writes SCALING.md.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --step_ms nfnet_f0=12.3 nfnet_f1=30.1 --images=32

A step of D devices takes: forward and backward of 4096 / D images, whose time per image is
measured; the update (AGC, weight decay, momentum, average), which every device does for
all parameters and which no number of devices shortens; and the all-reduce of the float32
gradients. Two efficiencies bound the truth: the all-reduce after the backward pass, or all
of it behind the backward pass.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib

import nfnets
from nfnets.models import count_parameters
from nfnets.models.counting import parameter_shapes

BATCH = 4096
TRAIN_IMAGES = 1_281_167
EPOCHS = 360
DEVICES = (8, 64, 512)
MODELS = tuple(f"nfnet_f{number}" for number in range(7))

# "High-Performance Large-Scale Image Recognition Without Normalization", table 3 (F6: with
# SAM): milliseconds of a training step of 32 images on a TPUv3 core.
PAPER_MS = dict(
    zip(MODELS, (73.3, 158.5, 295.8, 532.2, 1033.3, 1398.5, 2774.1), strict=True)
)
PAPER_IMAGES = 32
# F6's step has SAM's ascent on a fifth of the batch: 1.2 times the work.
SAM_FACTOR = {"nfnet_f6": 1.2}

# Float32 words per parameter that an update moves: it reads gradient, parameter, momentum
# and average, and writes the last three.
UPDATE_WORDS = 7

# Training images/s that one core of ours reads, crops and flips, by crop size (RESULTS.md;
# larger ones at the rate of the largest measured, per pixel).
READ_PER_CORE = {192: 996, 224: 943, 320: 821}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of device and what connects it.

    Attributes:
      name: for the tables.
      peak: of bfloat16 matrix products, FLOP/s per device.
      memory_rate: bytes/s per device.
      near: devices that are connected at `near_rate`.
      near_rate: bytes/s that a device sends, to its near ones.
      far_rate: bytes/s that a device sends, to the others.
      per_host: devices that one host feeds.
      source: of these figures.
    """

    name: str
    peak: float
    memory_rate: float
    near: int
    near_rate: float
    far_rate: float
    per_host: int
    source: str

    def all_reduce_seconds(self, size: float, devices: int) -> float:
        """Rings: scatter and gather among the near ones, a reduction among the far ones."""
        near = min(devices, self.near)
        groups = devices // near
        within = 2 * size * (near - 1) / near / self.near_rate
        among = 2 * size / near * (groups - 1) / groups / self.far_rate
        return within + among


TPU_V3 = Machine(
    name="TPUv3 core",
    peak=61.5e12,
    memory_rate=450e9,
    near=2048,
    near_rate=166e9,
    far_rate=166e9,
    per_host=8,
    source="Half a chip: 123 TFLOP/s, 900 GB/s and 340 TB/s of all-reduce bandwidth over "
    "1,024 chips (Cloud TPU documentation)",
)
H200 = Machine(
    name="H200",
    peak=989e12,
    memory_rate=4.8e12,
    near=8,
    near_rate=450e9,
    far_rate=50e9,
    per_host=8,
    source="989 TFLOP/s, 4.8 TB/s, NVLink 450 GB/s each way among 8 GPUs, NDR InfiniBand "
    "400 Gb/s per GPU among hosts (vendor's data sheets)",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model on one number of devices; times in seconds."""

    model: str
    devices: int
    compute: float
    update: float
    all_reduce: float
    image_rate: float
    train_size: int

    @property
    def step(self) -> float:
        """With nothing overlapped."""
        return self.compute + self.update + self.all_reduce

    @property
    def efficiency(self) -> tuple[float, float]:
        """Share of the step that is forward and backward: nothing and all overlapped."""
        hidden = max(self.compute, self.all_reduce) + self.update
        return self.compute / self.step, self.compute / hidden

    @property
    def bound(self) -> str:
        """The largest of what is not forward and backward, or `compute`."""
        if self.efficiency[0] >= 0.9:
            return "compute"
        return "all-reduce" if self.all_reduce >= self.update else "update"

    @property
    def hours(self) -> float:
        """Of 360 epochs, nothing overlapped."""
        return math.ceil(EPOCHS * TRAIN_IMAGES / BATCH) * self.step / 3600


def rows_of(machine: Machine, seconds_per_image: Mapping[str, float]) -> list[Row]:
    """Predicts every model and number of devices."""
    rows = []
    for name, per_image in seconds_per_image.items():
        model = nfnets.create_model(name)
        parameters = count_parameters(parameter_shapes(model))
        for devices in DEVICES:
            row = Row(
                model=name,
                devices=devices,
                compute=per_image * BATCH / devices,
                update=4 * parameters * UPDATE_WORDS / machine.memory_rate,
                all_reduce=machine.all_reduce_seconds(4 * parameters, devices),
                image_rate=0.0,
                train_size=model.spec.recipe.train_size,
            )
            hosts = max(1, devices // machine.per_host)
            rows.append(dataclasses.replace(row, image_rate=BATCH / row.step / hosts))
    return rows


def read_per_core(size: int) -> float:
    """Training images/s of one core at this crop size."""
    known = sorted(READ_PER_CORE)
    if size in READ_PER_CORE:
        return READ_PER_CORE[size]
    below = max((k for k in known if k <= size), default=known[0])
    above = min((k for k in known if k >= size), default=None)
    if above is None:
        return READ_PER_CORE[below] * (below / size) ** 2
    share = (size - below) / (above - below)
    return READ_PER_CORE[below] * (1 - share) + READ_PER_CORE[above] * share


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| model | devices | images each | forward and backward ms | update ms | "
        "all-reduce ms | efficiency | bound by | 360 epochs, h | images/s per host | "
        "cores for them |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (f"{value:.0%}" for value in row.efficiency)
        share = low if low == high else f"{low} to {high}"
        cores = row.image_rate / read_per_core(row.train_size)
        lines.append(
            f"| {row.model.removeprefix('nfnet_').upper()} | {row.devices} | "
            f"{BATCH // row.devices} | {row.compute * 1e3:,.1f} | {row.update * 1e3:.1f} | "
            f"{row.all_reduce * 1e3:.1f} | {share} | {row.bound} | {row.hours:,.1f} | "
            f"{row.image_rate:,.0f} | {math.ceil(cores)} |"
        )
    return lines


def paper_seconds(machine: Machine) -> dict[str, float]:
    """Forward and backward of one image: the paper's step less its update."""
    seconds = {}
    for name, milliseconds in PAPER_MS.items():
        parameters = count_parameters(parameter_shapes(nfnets.create_model(name)))
        update = 4 * parameters * UPDATE_WORDS / machine.memory_rate
        seconds[name] = (milliseconds / 1e3 - update) / PAPER_IMAGES
    return seconds


def assumed_seconds(machine: Machine, utilisation: float) -> dict[str, float]:
    """Forward and backward of one image at a share of the peak: three times the forward."""
    seconds = {}
    for name in MODELS:
        model = nfnets.create_model(name)
        size = model.spec.recipe.train_size
        work = 2 * 3 * nfnets.models.count_multiply_adds(model, size)
        work *= SAM_FACTOR.get(name, 1.0)
        seconds[name] = work / (machine.peak * utilisation)
    return seconds


def measured_seconds(pairs: Sequence[str], images: int) -> dict[str, float]:
    """Forward and backward of one image, from NAME=MILLISECONDS of `images` images."""
    measured = dict(pair.split("=") for pair in pairs)
    return {name: float(value) / 1e3 / images for name, value in measured.items()}


def main() -> None:
    """Writes SCALING.md beside this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--step_ms", nargs="+", default=[], metavar="NAME=MS", help="measured on an H200"
    )
    parser.add_argument("--images", type=int, default=32, help="of those steps")
    parser.add_argument(
        "--utilisation", type=float, default=0.45, help="of an H200, where not measured"
    )
    options = parser.parse_args()
    on_h200 = assumed_seconds(H200, options.utilisation)
    on_h200 |= measured_seconds(options.step_ms, options.images)
    basis = (
        f"measured: {', '.join(options.step_ms)}"
        if options.step_ms
        else f"**assumed, not measured**: {options.utilisation:.0%} of the peak, which is "
        "the aim of `train_step.py`"
    )
    text = [
        "# Batch 4096 on 8, 64 and 512 devices, on paper",
        "",
        "Written by `python benchmarks/scaling.py`, whose docstring describes the model.",
        "The lower efficiency has the all-reduce after the backward pass, the higher one",
        "behind it; hours and images/s are those of the lower. The last column is how many",
        "of our cores read, crop and flip that many images (RESULTS.md: 996 images/s per",
        "core at 192 px).",
        "",
        "## TPUv3 cores",
        "",
        f"{TPU_V3.source}. Step times: the paper's, of 32 images per core (F6 with SAM).",
        "",
        *table(rows_of(TPU_V3, paper_seconds(TPU_V3))),
        "",
        "## H200",
        "",
        f"{H200.source}. Step times: {basis}.",
        "",
        *table(rows_of(H200, on_h200)),
        "",
        "## What follows",
        "",
        *conclusions(rows_of(TPU_V3, paper_seconds(TPU_V3)), rows_of(H200, on_h200)),
    ]
    path = pathlib.Path(__file__).with_name("SCALING.md")
    path.write_text("\n".join(text) + "\n")
    print(path.read_text())


def conclusions(tpu: Sequence[Row], gpu: Sequence[Row]) -> list[str]:
    """What the tables say, in sentences whose figures are theirs."""
    worst_tpu = min(tpu, key=lambda row: row.efficiency[0])
    at_512 = [row for row in gpu if row.devices == 512]
    low, high = (f(row.efficiency[0] for row in at_512) for f in (min, max))
    hungry = max(gpu, key=lambda row: row.image_rate / read_per_core(row.train_size))
    cores = math.ceil(hungry.image_rate / read_per_core(hungry.train_size))
    return [
        "- On TPUv3 the interconnect keeps up. The worst case, "
        f"{worst_tpu.model.removeprefix('nfnet_').upper()} on {worst_tpu.devices} cores, "
        f"spends {worst_tpu.efficiency[0]:.0%} of its step on forward and backward, and "
        f"{worst_tpu.update / worst_tpu.step:.0%} on the update.",
        f"- On 512 H200 a batch of 4096 leaves 8 images per GPU: {low:.0%} to {high:.0%} "
        "with nothing overlapped. The all-reduce among hosts costs the most; gradients in "
        "bfloat16 would halve it, a larger batch would dilute it.",
        "- The update is the same on every device and takes a growing share as the devices "
        "multiply; splitting it over the devices (each updates its part) would end that.",
        f"- The hungriest host ({hungry.model.removeprefix('nfnet_').upper()} on "
        f"{hungry.devices} H200) needs {hungry.image_rate:,.0f} images/s, {cores} of our "
        "cores. RandAugment and mixing run on the devices and cost no core.",
    ]


if __name__ == "__main__":
    main()
