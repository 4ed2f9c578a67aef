"""The largest micro-batch that fits a device: `config.train.microbatch = "auto"`."""

from collections.abc import Callable
import os
import pathlib

import jax
import ml_collections

from nfnets.errors import UserError
from nfnets.models import Model
from nfnets.training import distributed
from nfnets.training.config import fitting_microbatches, with_microbatch
from nfnets.training.state import build_optimizer, create_state
from nfnets.training.step import batch_shapes, make_train_step, map_train_step

# The plan does not hold everything: the next batch, evaluation, the allocator's gaps.
_USABLE_SHARE = 0.85
# On the host, which other programs share.
_USABLE_SHARE_OF_HOST = 0.6

# Two sizes whose plans give away the rest; smaller ones are all overhead (images).
_PROBES = (8, 16)


def choose_microbatch(
    config: ml_collections.FrozenConfigDict, model: Model, *, say: Callable[[str], None]
) -> ml_collections.FrozenConfigDict:
    """Returns the config with the largest `train.microbatch` that the memory holds.

    XLA plans a step's memory when it compiles it. Two small sizes are compiled, the line
    through their plans proposes the largest that fits, and that one is compiled to be
    sure; nothing is run.

    Args:
      config: resolved, with `train.microbatch` "auto".
      model: from `build_model`.
      say: gets a line about the choice.

    Raises:
      UserError: not even the smallest fits.
    """
    per_device = config.data.batch_size // jax.device_count()
    sizes = fitting_microbatches(config, num_devices=jax.device_count())
    limit = distributed.minimum(usable_bytes())

    def planned(size: int) -> int:
        return planned_bytes(with_microbatch(config, size), model)

    probes = sorted({min(sizes, key=lambda s: abs(s - probe)) for probe in _PROBES})
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
            say(
                f"microbatch {size} of {per_device} images per device: "
                f"{plans[size] / 2**30:.2f} GiB planned, {limit / 2**30:.2f} GiB usable"
            )
            return with_microbatch(config, None if size == per_device else size)
    raise UserError(
        f"config.train.microbatch=auto: {sizes[0]} images per device need "
        f"{plans[sizes[0]] / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB; "
        "config.model.remat=block needs less"
    )


def planned_bytes(config: ml_collections.FrozenConfigDict, model: Model) -> int:
    """Compiles the training step and returns the bytes that it needs on one device.

    Those of its arguments and results, where what is updated in place counts once, and of
    everything that lives in between.

    Args:
      config: resolved.
      model: from `build_model`.
    """
    optimizer = build_optimizer(config)
    state = jax.eval_shape(
        lambda initial: create_state(config, model, optimizer, initial), model.shapes()
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
    """Returns the memory that a step may take on each device of this process."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return int(stats["bytes_limit"] * _USABLE_SHARE)
    return int(_host_bytes() * _USABLE_SHARE_OF_HOST) // len(devices)


def _host_bytes() -> int:
    """The host's memory, or what a control group leaves of it."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()))
    return available
