"""Evaluation metrics, and their means over a whole split, each example counted once.

Axis letters: N examples per device, K classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfnets import imports
from nfnets.cpu import memory
from nfnets.data import Dataset, EvalBatch
from nfnets.models import Params, State, normalize_images
from nfnets.training.config import Config
from nfnets.training.input_pipeline import eval_batches
from nfnets.training.state import AXIS, RAW, Batch, Metrics, Network, Weights
from nfnets.training.step import map_eval_step, put_batch

# (logits float32 [N, K], labels int32 [N]) -> [N], bool, int or float.
EvalMetric = Callable[[jax.Array, jax.Array], jax.Array]
EvalStep = Callable[[Params, State, Mapping[str, Any]], Metrics]
Result = dict[str, float | int]


def label_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the number of classes, int32 [N], that are as likely as the label or more.

    Ties and NaN count against the label: a network that has diverged must not score.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != labels[:, None]
    return jnp.sum(~(logits < of_label) & others, axis=-1)


# Name -> metric. What is added here can be named in `config.eval.metrics` and appears in
# metrics.jsonl, TensorBoard, the table of `eval.py` and eval.json.
METRICS: dict[str, EvalMetric] = {
    "top1": lambda logits, labels: label_rank(logits, labels) < 1,
    "top5": lambda logits, labels: label_rank(logits, labels) < 5,
    "loss": optax.softmax_cross_entropy_with_integer_labels,
}


def find_metrics(names: Iterable[str]) -> dict[str, EvalMetric]:
    """Returns name -> metric for `config.eval.metrics`.

    Args:
      names: of `METRICS`, or "package.module:function", reported as `function`.

    Raises:
      UserError: the metric is unknown.
    """
    found = {}
    for name in names:
        found[name.rpartition(":")[2]] = imports.find(name, METRICS, "config.eval.metrics")
    return found


def make_eval_step(
    model: Network,
    metrics: Mapping[str, EvalMetric],
    mean_rgb: Sequence[float] | None = None,
    stddev_rgb: Sequence[float] | None = None,
) -> EvalStep:
    """Builds the evaluation step of one device, to be mapped with the axis name `AXIS`.

    Args:
      model: from `build_model`.
      metrics: from `find_metrics`.
      mean_rgb: see `normalize_images`.
      stddev_rgb: see `normalize_images`.

    Returns:
      step(params, net_state, batch) -> sums over all devices: `examples` and each metric.
      Examples whose `mask` is False do not count.
    """

    def step(params: Params, net_state: State, batch: Batch) -> Metrics:
        images = normalize_images(batch["images"], mean_rgb, stddev_rgb)
        outputs, _ = model.apply(params, net_state, None, images, False)
        labels, mask = batch["labels"], batch["mask"]
        sums = {"examples": jnp.sum(mask.astype(jnp.int32))}
        for name, metric in metrics.items():
            values = metric(outputs["logits"], labels)
            if values.dtype == bool:
                values = values.astype(jnp.int32)
            sums[name] = jnp.sum(jnp.where(mask, values, 0))
        return jax.lax.psum(sums, AXIS)

    return step


def evaluate(
    eval_step: EvalStep, weights: Weights, batches: Iterable[EvalBatch]
) -> dict[str, Result]:
    """Evaluates several sets of weights in one pass over the data.

    Args:
      eval_step: mapped over devices, see `map_eval_step`.
      weights: name -> (params, net_state), replicated.
      batches: of one evaluation split, padded and masked.

    Returns:
      name -> {"examples": count, and the mean of each metric}.
    """
    sums: dict[str, dict[str, float]] = {name: {} for name in weights}
    for number, batch in enumerate(batches):
        arrays = put_batch(
            {
                "images": batch.images,
                "labels": batch.labels,
                "mask": batch.mask.astype(bool),
            }
        )
        for name, (params, net_state) in weights.items():
            for key, value in jax.device_get(eval_step(params, net_state, arrays)).items():
                # Integers stay exact, losses are added up in double precision.
                total = sums[name].get(key, 0)
                sums[name][key] = total + np.asarray(value).item()
        if number == 0:
            memory.keep_memory()
    return {name: _means(total) for name, total in sums.items()}


def _means(total: Mapping[str, float]) -> Result:
    examples = int(total["examples"])
    means = {key: value / examples for key, value in total.items() if key != "examples"}
    return {"examples": examples, **means}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates weights on a dataset's evaluation split.

    Attributes:
      config: resolved.
      model: from `build_model`.
      dataset: its evaluation split is used.
    """

    config: Config
    model: Network
    dataset: Dataset

    @functools.cached_property
    def _metrics(self) -> dict[str, EvalMetric]:
        return find_metrics(self.config.eval.metrics)

    @functools.cached_property
    def _step(self) -> EvalStep:
        data = self.config.data
        return map_eval_step(
            make_eval_step(self.model, self._metrics, data.mean_rgb, data.stddev_rgb)
        )

    def __call__(self, weights: Weights) -> dict[str, Result]:
        """Returns the results of replicated weights; see `evaluate`."""
        with eval_batches(self.config, self.dataset) as batches:
            results = evaluate(self._step, weights, batches)
        # In the config's order: jax has sorted them by name.
        order = ("examples", *self._metrics)
        return {name: {key: r[key] for key in order} for name, r in results.items()}


def as_metrics(results: Mapping[str, Result]) -> dict[str, float]:
    """Returns eval/METRIC of the weights themselves and eval/NAME_METRIC of averages."""
    metrics: dict[str, float] = {}
    for name, result in results.items():
        prefix = "" if name == RAW else f"{name}_"
        metrics |= {
            f"eval/{prefix}{key}": value
            for key, value in result.items()
            if key != "examples"
        }
    metrics["eval/examples"] = next(iter(results.values()))["examples"]
    return metrics


def as_json(results: Mapping[str, Result]) -> dict[str, object]:
    """Returns the weights' own results at the top, each average's under its name."""
    averages = {name: result for name, result in results.items() if name != RAW}
    return {**results[RAW], **averages}
