"""How a batch divides over devices and passes, and the largest micro-batch that fits."""

from collections.abc import Callable
import dataclasses
import os
import pathlib

import jax

from nfnets.errors import UserError
from nfnets.training import distributed
from nfnets.training.config import AUTO, Config
from nfnets.training.state import Network, build_optimizer, create_state, initial_shapes
from nfnets.training.step import batch_shapes, make_train_step, map_train_step

# The plan leaves out the next batch, evaluation and the allocator's gaps.
USABLE_SHARE = 0.85
# Of the host, which is shared with other programs.
_USABLE_SHARE_OF_HOST = 0.6

# Two sizes from which memory is extrapolated; smaller ones are all overhead (images).
_PROBE_SIZES = (8, 16)


def check_division(config: Config, *, num_devices: int) -> None:
    """Checks that batches divide over the devices and into passes.

    Raises:
      UserError: they do not; the message gives the nearest sizes that do.
    """
    mixes = config.augment.mixes
    unit = num_devices * (2 if mixes else 1)
    batch = config.data.batch_size
    if batch % unit:
        nearest = max(1, round(batch / unit)) * unit
        reason = " x 2 (mixing takes pairs)" if mixes else ""
        raise UserError(
            f"config.data.batch_size={batch} does not divide over {num_devices} "
            f"device{'s' * (num_devices > 1)}{reason}; the nearest that does is {nearest}"
        )
    micro = config.train.microbatch
    fitting = fitting_microbatches(config, num_devices=num_devices)
    if isinstance(micro, int) and micro not in fitting:
        nearest = min(fitting, key=lambda size: abs(size - micro))
        raise UserError(
            f"config.train.microbatch={micro} does not divide the {batch // num_devices} "
            f"images per device{' into pairs' if mixes else ''}; the nearest that does is "
            f"{nearest}"
        )


def fitting_microbatches(config: Config, *, num_devices: int) -> list[int]:
    """Returns every number of images per pass that divides a device's part, ascending."""
    unit = 2 if config.augment.mixes else 1
    per_device = config.data.batch_size // num_devices
    return [size for size in range(unit, per_device + 1, unit) if per_device % size == 0]


def with_microbatch(config: Config, microbatch: int | None) -> Config:
    """Returns a resolved config with another `train.microbatch`."""
    train = dataclasses.replace(config.train, microbatch=microbatch)
    return dataclasses.replace(config, train=train)


def choose_microbatch(
    config: Config, model: Network, *, log: Callable[[str], None]
) -> Config:
    """Returns the config with the largest `train.microbatch` that fits in memory.

    XLA plans the memory of a step when it compiles it. Two small sizes are compiled, the
    line through their plans proposes the largest that fits, and that one is compiled to
    be sure; nothing is run.

    Args:
      config: resolved, with `train.microbatch` "auto".
      model: from `build_model`.
      log: gets a line about the choice.

    Raises:
      UserError: not even the smallest size fits.
    """
    per_device = config.data.batch_size // jax.device_count()
    sizes = fitting_microbatches(config, num_devices=jax.device_count())
    limit = distributed.minimum(usable_bytes())

    def planned(size: int) -> int:
        return planned_bytes(with_microbatch(config, size), model)

    probes = sorted({min(sizes, key=lambda s: abs(s - probe)) for probe in _PROBE_SIZES})
    plans = {size: planned(size) for size in probes}
    slope = 0.0
    if len(probes) == 2:
        low, high = probes
        slope = max(0.0, (plans[high] - plans[low]) / (high - low))
    base = plans[probes[0]] - slope * probes[0]
    candidates = [s for s in sizes if base + slope * s <= limit] or sizes[:1]
    while candidates:
        size = candidates.pop()
        if size not in plans:
            plans[size] = planned(size)
        if plans[size] <= limit:
            log(
                f"microbatch {size} of {per_device} images per device: "
                f"{plans[size] / 2**30:.2f} GiB planned, {limit / 2**30:.2f} GiB usable"
            )
            return with_microbatch(config, None if size == per_device else size)
    raise UserError(
        f"config.train.microbatch={AUTO}: {sizes[0]} images per device need "
        f"{plans[sizes[0]] / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB; "
        "config.model.remat=block needs less"
    )


def planned_bytes(config: Config, model: Network) -> int:
    """Compiles the training step and returns the bytes that it needs on one device.

    Counts arguments, results (once if they are updated in place) and temporaries.

    Args:
      config: resolved.
      model: from `build_model`.
    """
    optimizer = build_optimizer(config)
    state = jax.eval_shape(
        lambda initial: create_state(config, model, optimizer, initial),
        initial_shapes(config, model),
    )
    step = map_train_step(make_train_step(config, model, optimizer))
    plan = step.lower(state, batch_shapes(config)).compile().memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def usable_bytes() -> int:
    """Returns the memory that a step may use on each device of this process."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return int(stats["bytes_limit"] * USABLE_SHARE)
    return int(_host_bytes() * _USABLE_SHARE_OF_HOST) // len(devices)


def _host_bytes() -> int:
    """Returns the host's memory, or the limit of its control group."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()))
    return available
