"""Compiles the training step of a config for a topology, and reports on the program."""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from nfnets.augment import operations as ops
from nfnets.errors import UserError
from nfnets.platform import compile_for
from nfnets.pods.hlo import Operation, Program, dtype_bytes, mean_of_branches
from nfnets.pods.topologies import Topology
from nfnets.training.config import AUTO, Config
from nfnets.training.microbatch import (
    USABLE_SHARE,
    fitting_microbatches,
    with_microbatch,
)
from nfnets.training.state import (
    build_model,
    build_optimizer,
    compute_dtype,
    create_state,
    initial_shapes,
)
from nfnets.training.step import batch_shapes, make_train_step, map_train_step

# Gathers and scatters of more elements are reported: TPUs, not GPUs, take them one by one.
LARGE_GATHER = 100_000

# Part of the step -> what JAX's names of its operations contain; the first that matches.
_PARTS = {
    "augmentation": "augment",
    "weight standardization": "standardize_weight",
    "optimizer, AGC, EMA": "/update/",
    "convolutions": "conv_general_dilated",
}
_COPIES, _OTHER = "layout copies", "other"


@dataclasses.dataclass(frozen=True)
class AllReduce:
    """A sum over devices.

    Attributes:
      dtype: such as `f32`.
      num_bytes: of what is summed, per device.
      is_asynchronous: whether other work may run meanwhile.
    """

    dtype: str
    num_bytes: int
    is_asynchronous: bool


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a compiled training step shows; all figures are per device.

    Attributes:
      topology: name.
      model: name.
      num_devices: in the topology.
      num_hosts: in the topology.
      batch_size: images of all devices.
      image_size: side, pixels.
      microbatch: images per pass; None: all of the device's.
      remat: rematerialization.
      compute_dtype: of the feature maps.
      compile_seconds: of this machine.
      failure: why the compiler refused; None: it did not. All that follows is then 0.
      argument_bytes: state and batch.
      temporary_bytes: planned for everything else.
      code_bytes: of the program.
      flops: as XLA counts them, of the convolutions and matrix products in all passes;
        None where it does not.
      traffic_bytes: operands and results in main memory, an upper bound.
      part_seconds: part of the step -> seconds that XLA estimates; empty for GPUs.
      all_reduces: sums over devices.
      gathers: (opcode, elements, times executed, JAX's name) of the large ones.
    """

    topology: str
    model: str
    num_devices: int
    num_hosts: int
    batch_size: int
    image_size: int
    microbatch: int | None
    remat: str
    compute_dtype: str
    compile_seconds: float
    failure: str | None = None
    argument_bytes: int = 0
    temporary_bytes: int = 0
    code_bytes: int = 0
    flops: float | None = None
    traffic_bytes: float = 0.0
    part_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    all_reduces: Sequence[AllReduce] = ()
    gathers: Sequence[tuple[str, int, float, str]] = ()

    @property
    def memory_bytes(self) -> int:
        """Arguments, which results overwrite, temporaries and the program."""
        return self.argument_bytes + self.temporary_bytes + self.code_bytes

    @property
    def reduced_bytes(self) -> int:
        """Bytes that are summed over devices."""
        return sum(reduce.num_bytes for reduce in self.all_reduces)

    @property
    def estimated_seconds(self) -> float | None:
        """XLA's estimate without the sums over devices; None for GPUs."""
        return sum(self.part_seconds.values()) or None


def compile_step(config: Config, topology: Topology) -> tuple[StepReport, Program | None]:
    """Compiles the training step of a config for a topology.

    Args:
      config: resolved; `train.microbatch` is a number or None.
      topology: from `open_topology`.

    Returns:
      The report, and the program; None if the compiler found that it does not fit.

    Raises:
      UserError: the batch does not divide over the devices.
    """
    count = len(topology.devices)
    if config.data.batch_size % count:
        raise UserError(
            f"{topology.name}: batch {config.data.batch_size} does not divide over its "
            f"{count} devices"
        )
    with compile_for(topology.chip.platform):
        model, optimizer = build_model(config), build_optimizer(config)
        state = jax.eval_shape(
            lambda initial: create_state(config, model, optimizer, initial),
            initial_shapes(config, model),
        )
        step = map_train_step(make_train_step(config, model, optimizer), topology.devices)
        lowered = step.lower(state, batch_shapes(config, count))
        dtype = compute_dtype(config)
    micro = config.train.microbatch
    start = time.monotonic()
    failure, compiled = None, None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        failure = " ".join(str(error).split())
    report = StepReport(
        topology=topology.name,
        model=config.model.name,
        num_devices=count,
        num_hosts=topology.num_hosts,
        batch_size=config.data.batch_size,
        image_size=config.data.image_size,
        microbatch=micro if isinstance(micro, int) else None,
        remat=config.model.remat,
        compute_dtype=dtype,
        compile_seconds=time.monotonic() - start,
        failure=failure,
    )
    if compiled is None:
        return report, None
    return _read(report, compiled, config, topology)


def _read(
    report: StepReport, compiled: Any, config: Config, topology: Topology
) -> tuple[StepReport, Program]:
    plan, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    program = Program(compiled.as_text())
    shares = _branch_shares(config)

    def branch_shares(scope: str, count: int) -> Sequence[float]:
        if len(shares) == count and "augment" in scope:
            return shares
        return mean_of_branches(scope, count)

    operations = list(program.operations(branch_shares))
    clock = topology.chip.clock
    parts: dict[str, float] = collections.defaultdict(float)
    for operation in operations:
        if clock is not None and operation.cycles:
            parts[part_of(operation)] += operation.cycles / clock
    report = dataclasses.replace(
        report,
        argument_bytes=plan.argument_size_in_bytes,
        temporary_bytes=plan.temp_size_in_bytes,
        code_bytes=plan.generated_code_size_in_bytes,
        flops=cost.get("flops"),
        traffic_bytes=sum(operation.traffic for operation in operations),
        part_seconds=dict(parts),
        all_reduces=_all_reduces(operations),
        gathers=_large_gathers(operations),
    )
    return report, program


def part_of(operation: Operation) -> str:
    """Returns the part of the step that an operation belongs to."""
    if not operation.scope:
        return _COPIES
    return next((part for part, mark in _PARTS.items() if mark in operation.scope), _OTHER)


def _branch_shares(config: Config) -> Sequence[float]:
    """How often RandAugment's images run each branch of `augment.one_by_one`."""
    if not config.augment.randaugment_layers:
        return ()
    bank = ops.build_bank(tuple(ops.Step(name, 1) for name in ops.OPERATIONS), 8, 8, 1)
    return [float(np.mean(bank.kind == kind)) for kind in bank.kinds()]


def _all_reduces(operations: Sequence[Operation]) -> list[AllReduce]:
    reduces = []
    for operation in operations:
        if operation.opcode not in ("all-reduce", "all-reduce-start"):
            continue
        sizes: dict[str, int] = collections.defaultdict(int)
        for dtype, shape in operation.result:
            sizes[dtype] += dtype_bytes(dtype) * int(np.prod(shape))
        is_asynchronous = operation.opcode.endswith("-start")
        reduces += [AllReduce(d, size, is_asynchronous) for d, size in sizes.items()]
    return reduces


def _large_gathers(
    operations: Sequence[Operation],
) -> list[tuple[str, int, float, str]]:
    return [
        (part.opcode, part.elements, part.repeats, part.scope)
        for operation in operations
        for part in operation.parts()
        if part.opcode in ("gather", "scatter") and part.elements > LARGE_GATHER
    ]


def compile_until_fits(
    config: Config, topology: Topology
) -> Iterator[tuple[StepReport, Program | None]]:
    """Yields the step as configured and, if it does not fit, alternatives.

    They are rematerialization of blocks, and halved micro-batches until one fits.

    Args:
      config: resolved; `train.microbatch` "auto" starts from the whole part of a device.
      topology: from `open_topology`.
    """
    if config.train.microbatch == AUTO:
        config = with_microbatch(config, None)
    report, program = compile_step(config, topology)
    yield report, program
    if fits(report, topology):
        return
    if config.model.remat == "none":
        model = dataclasses.replace(config.model, remat="block")
        yield compile_step(dataclasses.replace(config, model=model), topology)
    count = len(topology.devices)
    limit = report.microbatch or config.data.batch_size // count
    sizes = fitting_microbatches(config, num_devices=count)
    while smaller := [size for size in sizes if size <= limit // 2]:
        limit = smaller[-1]
        report, program = compile_step(with_microbatch(config, limit), topology)
        yield report, program
        if fits(report, topology):
            return


def fits(report: StepReport, topology: Topology) -> bool:
    """Returns whether a step fits into a device's memory beside the next batch."""
    usable = USABLE_SHARE * topology.chip.memory
    return report.failure is None and report.memory_bytes <= usable


def all_reduce_seconds(report: StepReport, topology: Topology) -> float:
    """Returns the least time of the sums at the published rate of the links.

    Every chip sends the reduced bytes to its neighbors twice, less its own part.
    """
    share = 2 * (report.num_devices - 1) / report.num_devices
    return share * report.reduced_bytes / topology.chip.links


def roofline_seconds(report: StepReport, topology: Topology) -> tuple[float | None, float]:
    """Returns the time of the products at peak rate, and that of the memory traffic."""
    chip = topology.chip
    products = None if report.flops is None else report.flops / chip.flops
    return products, report.traffic_bytes / chip.bandwidth
