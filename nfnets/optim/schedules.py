"""Learning rate over the steps of a run."""

import optax


def warmup_cosine(peak: float, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine down to 0.

    "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
    appendix A.

    Args:
      peak: value after the warm-up.
      total_steps: the value is 0 from this step on.
      warmup_steps: at most `total_steps`; 0: none.

    Returns:
      A function from a step, counted from 0, to the learning rate.

    Raises:
      ValueError: a negative warm-up, or one longer than the run.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"a warm-up of {warmup_steps} steps does not fit into {total_steps} steps"
        )
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup_steps),
            optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1)),
        ],
        [warmup_steps],
    )
