"""The run: batches in, checkpoints and metrics out. No mathematics here."""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from nfnets.analysis.curves import plot_curves
from nfnets.data import Dataset, TrainBatch, train_batches
from nfnets.models import Model, Params, State
from nfnets.training import setup
from nfnets.training.checkpoints import RAW, Checkpoints, Provenance, check_same_run
from nfnets.training.config import check_split, flatten, model_spec, resolve
from nfnets.training.evaluation import Result, evaluate_dataset
from nfnets.training.metrics import MetricsLog, Progress
from nfnets.training.state import TrainState, build_model, build_optimizer, create_state
from nfnets.training.step import (
    make_eval_step,
    make_train_step,
    map_eval_step,
    map_train_step,
    put_batch,
    replicate,
)
from nfnets.weights import initial_weights, read_weights_info

CONFIG_FILE = "config.json"

# Metrics that are not averaged between two log lines.
_LAST_VALUE = ("learning_rate",)
_MAXIMUM = ("agc_max_ratio",)


def train(
    config: ml_collections.ConfigDict, workdir: str, *, dry_run: bool = False
) -> None:
    """Trains a model, or goes on from the newest checkpoint of `workdir`.

    Writes config.json, metrics.jsonl, TensorBoard events, checkpoints/ and, at the end,
    curves.png into `workdir`.

    Args:
      config: as loaded from a config file and overridden.
      workdir: folder of the run, made if absent.
      dry_run: print what would be run, take one step on fake data and write nothing.

    Raises:
      UserError: the config, the data or the workdir are not usable.
    """
    if config.init_from is not None:
        info = read_weights_info(config.init_from)
        config = setup.adopt_model(config, info, config.init_from)
    model_spec(config)
    setup.enable_compilation_cache()
    folder = pathlib.Path(workdir)
    dataset = setup.open_config_dataset(config, None if dry_run else folder)
    resolved = resolve(
        config, num_train=len(dataset.train), num_classes=dataset.num_classes
    )
    check_split(resolved, num_devices=jax.device_count())
    model = setup.as_user_error(lambda: build_model(resolved))
    for line in setup.describe(resolved, model, dataset):
        print(line, flush=True)
    if dry_run:
        _dry_run(resolved, model)
        return
    run = _Run(config=resolved, workdir=folder, dataset=dataset, model=model)
    run.train()


def _dry_run(config: ml_collections.FrozenConfigDict, model: Model) -> None:
    optimizer = setup.as_user_error(lambda: build_optimizer(config))
    state = replicate(create_state(config, model, optimizer))
    step = map_train_step(make_train_step(config, model, optimizer))
    start = time.monotonic()
    batch = put_batch(setup.fake_batch(config))
    state, metrics = step(state, batch)
    loss = float(metrics["loss"])
    compiled = time.monotonic()
    _, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    print(
        f"dry run   one step on fake data: loss {loss:.4f}, "
        f"{time.monotonic() - compiled:.2f} s (and {compiled - start:.1f} s to compile); "
        "nothing was written",
        flush=True,
    )


@dataclasses.dataclass
class _Run:
    """One run's fixed parts; the changing ones go through `train`."""

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    model: Model

    def __post_init__(self) -> None:
        config = self.config
        optimizer = setup.as_user_error(lambda: build_optimizer(config))
        self.optimizer = optimizer
        self.train_step = map_train_step(make_train_step(config, self.model, optimizer))
        self.eval_step = map_eval_step(make_eval_step(self.model))
        self.bad_records = 0

    def train(self) -> None:
        """Trains to the last step."""
        config = self.config
        self.workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(
            self.workdir,
            keep=config.checkpoint.keep,
            keep_best=config.checkpoint.keep_best,
        )
        state = self._start(checkpoints)
        first_step = int(state.step)
        (self.workdir / CONFIG_FILE).write_text(
            json.dumps(config.to_dict(), indent=2) + "\n"
        )
        log = MetricsLog(self.workdir, first_step)
        progress = Progress(config.train.steps, first_step)
        if first_step:
            progress.say(f"resumed at step {first_step}")
        try:
            self._train_from(state, first_step, checkpoints, log, progress)
        finally:
            progress.close()
            log.close()
            checkpoints.close()
        print(f"curves    {plot_curves(self.workdir)}")

    def _start(self, checkpoints: Checkpoints) -> TrainState:
        """The newest checkpoint's state, or a fresh one."""
        config = self.config
        step = checkpoints.latest_step()
        if step is None:
            initial = initial_weights(config.init_from, self.model, config.seed)
            return replicate(self._create_state(initial))
        stored = checkpoints.read_provenance(step)
        for change in check_same_run(stored, self._provenance(), self.workdir):
            print(f"changed   {change} since the checkpoint", flush=True)
        self.bad_records = stored.bad_records
        return checkpoints.restore(step, jax.eval_shape(self._create_state))

    def _create_state(self, initial: tuple[Params, State] | None = None) -> TrainState:
        return setup.as_user_error(
            lambda: create_state(self.config, self.model, self.optimizer, initial)
        )

    def _provenance(self) -> Provenance:
        return Provenance(
            config=flatten(self.config),
            class_names=self.dataset.class_names,
            bad_records=self.bad_records,
        )

    def _train_from(
        self,
        state: TrainState,
        first_step: int,
        checkpoints: Checkpoints,
        log: MetricsLog,
        progress: Progress,
    ) -> None:
        config, last_step = self.config, self.config.train.steps
        meter = _Meter(config.data.batch_size)
        with self._train_batches(first_step) as batches:
            upcoming = _load(batches) if first_step < last_step else None
            for step in range(first_step + 1, last_step + 1):
                arrays, bad_records = upcoming
                state, metrics = self.train_step(state, arrays)
                self.bad_records += len(bad_records)
                if step < last_step:  # copied to the devices while they compute
                    upcoming = _load(batches)
                meter.add(metrics)
                if step % config.train.log_every == 0 or step == last_step:
                    summary = meter.summarize()
                    summary["train/bad_records"] = self.bad_records
                    summary["train/epoch"] = self._epoch(step)
                    log.write(step, summary)
                    progress.report(step, summary)
                results = None
                if _is_due(step, config.eval.every, last_step):
                    with meter.paused():
                        results = _eval_metrics(self._evaluate(state))
                    log.write(step, results)
                    progress.say(_eval_line(step, results))
                if _is_due(step, config.checkpoint.every, last_step):
                    with meter.paused():
                        checkpoints.save(state, self._provenance(), results)
        if first_step >= last_step:
            progress.say(f"the run has its {last_step} steps already")

    def _train_batches(self, first_step: int) -> Any:
        config = self.config
        return train_batches(
            self.dataset.train,
            seed=config.seed,
            batch_size=config.data.batch_size,
            crop=setup.crop_options(config),
            start_step=first_step,
            shard=setup.host_shard(),
            threads=config.data.threads,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            max_bad_records=config.data.max_bad_records,
            bad_records_so_far=self.bad_records,
        )

    def _evaluate(self, state: TrainState) -> dict[str, Result]:
        weights = {RAW: (state.params, state.net_state), **state.ema}
        return evaluate_dataset(self.config, self.dataset, self.eval_step, weights)

    def _epoch(self, step: int) -> float:
        return step * self.config.data.batch_size / len(self.dataset.train)


def _load(batches: Iterator[TrainBatch]) -> tuple[dict[str, jax.Array], tuple[str, ...]]:
    """The next batch on its way to the devices, and the bad records met in it."""
    batch = next(batches)
    names = ("images", "labels", "example_index")
    return put_batch({name: getattr(batch, name) for name in names}), batch.bad_records


def _is_due(step: int, every: int | None, last_step: int) -> bool:
    return step == last_step or (every is not None and step % every == 0)


def _eval_metrics(results: Mapping[str, Result]) -> dict[str, float]:
    """eval/top1 for the weights themselves, eval/NAME_top1 for the average NAME."""
    metrics = {}
    for name, result in results.items():
        prefix = "" if name == RAW else f"{name}_"
        for key in ("top1", "top5", "loss"):
            metrics[f"eval/{prefix}{key}"] = result[key]
    metrics["eval/examples"] = next(iter(results.values()))["examples"]
    return metrics


def _eval_line(step: int, metrics: Mapping[str, float]) -> str:
    parts = [
        f"{key.removeprefix('eval/')} {value:.4f}"
        for key, value in metrics.items()
        if key != "eval/examples"
    ]
    return f"eval at step {step}: {'  '.join(parts)}  ({metrics['eval/examples']} images)"


class _Meter:
    """Collects the metrics of the steps since the last log line, and the time they took."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._steps: list[Mapping[str, jax.Array]] = []
        self._timed_steps = 0
        self._created = time.monotonic()
        self._start: float | None = None
        # Collectives of queued steps can deadlock on CPU devices: one step at a time there.
        self._wait_for_each = jax.default_backend() == "cpu"

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Adds a step; its values may still be under computation."""
        self._steps.append(metrics)
        if self._wait_for_each or self._start is None:
            jax.block_until_ready(metrics)
        elif len(self._steps) > 2:  # keeps the host two steps ahead, no more
            jax.block_until_ready(self._steps[-3])
        if self._start is None:  # the first step compiles; time counts from its end
            self._start = time.monotonic()
        else:
            self._timed_steps += 1

    def summarize(self) -> dict[str, float]:
        """Returns the figures since the last call and starts anew."""
        steps = jax.device_get(self._steps)
        now = time.monotonic()
        summary = {}
        for key in steps[0]:
            values = np.asarray([step[key] for step in steps], np.float64)
            if key in _LAST_VALUE:
                value = values[-1]
            elif key in _MAXIMUM:
                value = values.max()
            else:
                value = values.mean()
            summary[f"train/{key}"] = float(value)
        if self._timed_steps:
            timed, seconds = self._timed_steps, now - self._start
        else:  # the very first step alone, compilation included
            timed, seconds = len(steps), now - self._created
        summary["train/images_per_sec"] = timed * self._batch_size / max(seconds, 1e-9)
        self._steps, self._timed_steps, self._start = [], 0, now
        return summary

    def paused(self) -> "_Pause":
        """A context whose duration does not count."""
        return _Pause(self)

    def delay(self, seconds: float) -> None:
        """Moves the start of the interval."""
        if self._start is not None:
            self._start += seconds


class _Pause:
    def __init__(self, meter: _Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self._meter.delay(time.monotonic() - self._entered)
