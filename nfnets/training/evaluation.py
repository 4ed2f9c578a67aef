"""Accuracies over a whole evaluation set, each example counted once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from nfnets.data import Dataset, EvalBatch, eval_batches
from nfnets.models import Params, State
from nfnets.training import cpu, setup
from nfnets.training.step import put_batch

Result = dict[str, float | int]
EvalStep = Callable[[Params, State, Mapping[str, Any]], Mapping[str, jax.Array]]


def evaluate(
    eval_step: EvalStep,
    weights: Mapping[str, tuple[Params, State]],
    batches: Iterable[EvalBatch],
) -> dict[str, Result]:
    """Evaluates several sets of weights in one pass over the data.

    Args:
      eval_step: mapped over devices, see `nfnets.training.step.map_eval_step`.
      weights: name -> (params, net_state), replicated.
      batches: of one evaluation set, padded and masked.

    Returns:
      name -> {"examples": count, "top1", "top5": shares in [0, 1], "loss": mean cross
      entropy in nats}.
    """
    sums: dict[str, dict[str, float]] = {
        name: dict.fromkeys(("examples", "top1", "top5", "loss"), 0) for name in weights
    }
    for number, batch in enumerate(batches):
        arrays = put_batch(
            {
                "images": batch.images,
                "labels": batch.labels,
                "mask": batch.mask.astype(bool),
            }
        )
        for name, (params, net_state) in weights.items():
            part = jax.device_get(eval_step(params, net_state, arrays))
            for key, value in part.items():
                # Integers stay exact, losses are added up in double precision.
                sums[name][key] += np.asarray(value).item()
        if number == 0:
            cpu.keep_memory()
    return {name: _means(total) for name, total in sums.items()}


def _means(total: Mapping[str, float]) -> Result:
    examples = int(total["examples"])
    means = {key: total[key] / examples for key in ("top1", "top5", "loss")}
    return {"examples": examples, **means}


def evaluate_dataset(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    eval_step: EvalStep,
    weights: Mapping[str, tuple[Params, State]],
) -> dict[str, Result]:
    """Evaluates sets of weights on a dataset's evaluation half.

    Args:
      config: resolved.
      dataset: its `evaluation` records are used.
      eval_step: mapped, see `nfnets.training.step.map_eval_step`.
      weights: name -> (params, net_state), replicated.

    Returns:
      See `evaluate`.
    """
    with eval_batches(
        dataset.evaluation,
        batch_size=config.eval.batch_size,
        image_size=config.eval.image_size,
        preprocessing=config.eval.preprocessing,
        shard=setup.host_shard(),
        threads=config.data.threads,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
    ) as batches:
        return evaluate(eval_step, weights, batches)
