"""Learning-rate schedules: a linear warm-up, then one of several decays."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from nfnets import imports
from nfnets.errors import UserError
from nfnets.optim.ranges import check_range


def create_schedule(
    name: str, peak: float, total_steps: int, warmup_steps: int, **kwargs: Any
) -> optax.Schedule:
    """Creates a learning-rate schedule by name.

    Example:

        from nfnets import optim
        schedule = optim.create_schedule("step", 0.1, 90_000, 5_000, factor=0.1)
        optimizer = nfnets.create_optimizer(schedule)
        schedule(2_500)  # 0.05
        schedule(30_000)  # 0.01

    Args:
      name: `cosine` (to 0 at `total_steps`), `linear` (likewise), `constant`, `rsqrt`,
        `step`, or `package.module:function`, called as
        `function(peak, total_steps, warmup_steps, **kwargs)`.
      peak: value after the warm-up.
      total_steps: length of the run, including the warm-up.
      warmup_steps: length of the linear warm-up from 0, in [0, total_steps].
      **kwargs: `timescale` of `rsqrt`, `boundaries` and `factor` of `step`, or those of
        a function of one's own.

    Returns:
      A function from a step, counted from 0, to the learning rate.

    Raises:
      UserError: an unknown schedule or argument; a value out of range.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(
            f"a warm-up of {warmup_steps} steps does not fit into {total_steps} steps"
        )
    function = imports.find(name, _DECAYS, "schedule")
    schedule = imports.call(
        function, f"schedule {name!r}", peak, total_steps, warmup_steps, **kwargs
    )
    if ":" in name:
        return schedule
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def warmup_cosine(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Creates the paper's schedule: linear warm-up, then half a cosine down to 0.

    "High-Performance Large-Scale Image Recognition Without Normalization" (Brock et al.
    2021), appendix A. Arguments and errors are those of `create_schedule`.
    """
    return create_schedule("cosine", peak, total_steps, warmup_steps)


# The decays take the arguments of `create_schedule` and count steps from the end of the
# warm-up.


def _cosine(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))


def _linear(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, max(total_steps - warmup_steps, 1))


def _constant(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    del total_steps, warmup_steps
    return optax.constant_schedule(peak)


def _rsqrt(
    peak: float, total_steps: int, warmup_steps: int, *, timescale: float = 10_000
) -> optax.Schedule:
    """peak / sqrt(1 + count / timescale).

    "Scaling Vision Transformers" (Zhai et al. 2022), section 3.5.
    """
    del total_steps, warmup_steps
    check_range("(0, inf)", timescale=timescale)
    return lambda count: peak / jnp.sqrt(1 + count / timescale)


def _step(
    peak: float,
    total_steps: int,
    warmup_steps: int,
    *,
    boundaries: Sequence[float] = (1 / 3, 2 / 3, 8 / 9),
    factor: float = 0.1,
) -> optax.Schedule:
    """Multiplied by `factor` at each of `boundaries`, which are shares of the whole run.

    The defaults are those of "Accurate, Large Minibatch SGD" (Goyal et al. 2017), section
    5.1: epochs 30, 60 and 80 of 90.
    """
    check_range("[0, inf)", factor=factor)
    for boundary in boundaries:
        check_range("(0, 1)", boundaries=boundary)
    steps = np.array([round(boundary * total_steps) for boundary in boundaries])
    return lambda count: peak * factor ** jnp.sum(count + warmup_steps >= steps)


_DECAYS = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "rsqrt": _rsqrt,
    "step": _step,
}
