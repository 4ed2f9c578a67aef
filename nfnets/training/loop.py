"""The run: batches in, checkpoints and metrics out. No mathematics here."""

from collections.abc import Iterator, Mapping
import dataclasses
import pathlib
import time

import jax
import ml_collections

from nfnets.data import BatchIterator, Dataset, TrainBatch, train_batches
from nfnets.errors import UserError
from nfnets.models import Model, Params, State
from nfnets.training import cpu, distributed, setup
from nfnets.training.checkpoints import RAW
from nfnets.training.config import AUTO, check_split, flatten, model_spec, resolve
from nfnets.training.evaluation import Result, evaluate_dataset
from nfnets.training.interrupts import StopRequest, stop_requests
from nfnets.training.meter import Meter, NonFiniteError
from nfnets.training.microbatch import choose_microbatch
from nfnets.training.provenance import Provenance, check_same_run
from nfnets.training.records import Records
from nfnets.training.state import TrainState, build_model, build_optimizer, create_state
from nfnets.training.step import (
    TrainStep,
    batch_shapes,
    make_eval_step,
    make_train_step,
    map_eval_step,
    map_train_step,
    put_batch,
    replicate,
)
from nfnets.training.step_cache import StepCache
from nfnets.weights import initial_weights, read_weights_info


def train(config: ml_collections.ConfigDict, workdir: str, *, dry_run: bool = False) -> int:
    """Trains a model, or goes on from the newest checkpoint of `workdir`.

    Writes config.json, metrics.jsonl, TensorBoard events, checkpoints/ and, at the end,
    curves.png into `workdir`.

    Args:
      config: as loaded from a config file and overridden.
      workdir: folder of the run, made if absent.
      dry_run: print what would be run, take one step on fake data and write nothing.

    Returns:
      The program's exit code: 0 also after a stop that SIGTERM or SIGUSR1 asked for, 130
      after one by Ctrl-C; in both cases the last step is saved.

    Raises:
      UserError: the config, the data or the workdir are not usable, or the run failed.
    """
    if config.init_from is not None:
        info = read_weights_info(config.init_from)
        config = setup.adopt_model(config, info, config.init_from)
    model_spec(config)
    cpu.run_in_main_thread()
    setup.enable_compilation_cache()
    folder = pathlib.Path(workdir)
    dataset = setup.open_config_dataset(config, None if dry_run else folder)
    resolved = resolve(
        config, num_train=len(dataset.train), num_classes=dataset.num_classes
    )
    check_split(resolved, num_devices=jax.device_count())
    model = setup.as_user_error(lambda: build_model(resolved))
    if resolved.train.microbatch == AUTO:
        resolved = choose_microbatch(resolved, model, say=distributed.say)
    steps = StepCache(resolved)  # reads the step while these lines are made (1 s)
    for line in setup.describe(resolved, model, dataset):
        distributed.say(line)
    if dry_run:
        _dry_run(resolved, model, steps)
        return 0
    run = _Run(
        config=resolved, workdir=folder, dataset=dataset, model=model, steps=steps
    )
    return run.train()


def _dry_run(
    config: ml_collections.FrozenConfigDict, model: Model, steps: StepCache
) -> None:
    optimizer = setup.as_user_error(lambda: build_optimizer(config))
    state = replicate(create_state(config, model, optimizer))
    start = time.monotonic()
    batch = put_batch(setup.fake_batch(config))
    mapped = map_train_step(make_train_step(config, model, optimizer))
    step = steps.prepare(mapped, state, batch)
    state, metrics = step(state, batch)
    loss = float(metrics["loss"])
    compiled = time.monotonic()
    _, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    distributed.say(
        f"dry run   one step on fake data: loss {loss:.4f}, "
        f"{time.monotonic() - compiled:.2f} s (and {compiled - start:.1f} s to compile or "
        "read it); nothing was written"
    )


@dataclasses.dataclass
class _Position:
    """Where a run stands.

    Attributes:
      state: replicated.
      step: updates made.
      bad_records: unreadable training records so far, of all processes.
      rollbacks: see `Provenance`.
      skipped_batches: see `Provenance`.
    """

    state: TrainState
    step: int
    bad_records: int = 0
    rollbacks: int = 0
    skipped_batches: int = 0


@dataclasses.dataclass
class _Run:
    """One run: its fixed parts, and where it stands."""

    config: ml_collections.FrozenConfigDict
    workdir: pathlib.Path
    dataset: Dataset
    model: Model
    steps: StepCache

    def __post_init__(self) -> None:
        config = self.config
        optimizer = setup.as_user_error(lambda: build_optimizer(config))
        self.optimizer = optimizer
        self.mapped_step = map_train_step(make_train_step(config, self.model, optimizer))
        self.train_step: TrainStep | None = None  # from the first `_start` on
        self.eval_step = map_eval_step(make_eval_step(self.model))

    def train(self) -> int:
        """Trains to the last step, or until somebody asks for a stop.

        Returns:
          The program's exit code.
        """
        with Records(self.config, self.workdir) as records, stop_requests() as stop:
            position = self._start(records)
            if position.step:
                records.say(f"resumed at step {position.step}")
            while True:
                records.begin(position.step)
                try:
                    stopped = self._train_from(position, records, stop)
                    break
                except NonFiniteError as error:
                    position = self._roll_back(error, position, records)
            records.finish(position.state, self._provenance(position))
            if stopped:
                records.say(
                    f"stopped after step {position.step}, which is saved; start again to "
                    "go on from there"
                )
                return stop.exit_code
            records.plot()
        return 0

    def _start(self, records: Records) -> _Position:
        """The newest checkpoint's state, or a fresh one."""
        shapes = jax.eval_shape(self._create_state, self.model.shapes())
        found = records.restore(shapes, self._changes)
        initial = None
        if found is None:
            initial = initial_weights(self.config.init_from, self.model, self.config.seed)
        if self.train_step is None:
            # Not earlier: an error would end the process after the compiler's thread only.
            batch = batch_shapes(self.config)
            self.train_step = self.steps.prepare(self.mapped_step, shapes, batch)
        if found is None:
            return _Position(state=replicate(self._create_state(initial)), step=0)
        state, stored = found
        position = _Position(
            state=replicate(state),
            step=int(state.step),
            bad_records=stored.bad_records,
            rollbacks=stored.rollbacks,
            skipped_batches=stored.skipped_batches,
        )
        for change in self._changes(stored):
            records.say(f"changed   {change} since the checkpoint")
        return position

    def _changes(self, stored: Provenance) -> list[str]:
        """See `check_same_run`."""
        current = Provenance(
            config=flatten(self.config), class_names=self.dataset.class_names
        )
        return check_same_run(stored, current, self.workdir)

    def _roll_back(
        self, error: NonFiniteError, position: _Position, records: Records
    ) -> _Position:
        """Goes back to the last checkpoint, past the batches from there to `error`."""
        config = self.config.train
        batch = error.step + position.skipped_batches  # the last one that has been used
        position.state = None  # its memory is wanted for the checkpoint
        if config.on_nonfinite == "rollback" and position.rollbacks < config.max_rollbacks:
            start = self._start(records)
            start.rollbacks = position.rollbacks + 1
            start.skipped_batches = batch - start.step
            records.say(
                f"WARNING   {error}: back to step {start.step}, going on with batch "
                f"{batch + 1} (rollback {start.rollbacks} of {config.max_rollbacks})"
            )
            return start
        found = records.newest_step()
        kept = "there is no checkpoint" if found is None else f"step {found} is saved"
        if config.on_nonfinite == "rollback":
            count = config.max_rollbacks
            advice = f"gave up after {count} rollback{'' if count == 1 else 's'}"
        else:
            advice = "config.train.on_nonfinite=rollback would skip such batches"
        raise UserError(
            f"{error}; {kept}; {advice}; a lower config.train.learning_rate may help",
            exit_code=1,
        )

    def _create_state(self, initial: tuple[Params, State] | None = None) -> TrainState:
        return setup.as_user_error(
            lambda: create_state(self.config, self.model, self.optimizer, initial)
        )

    def _provenance(self, position: _Position) -> Provenance:
        return Provenance(
            config=flatten(self.config),
            class_names=self.dataset.class_names,
            bad_records=position.bad_records,
            rollbacks=position.rollbacks,
            skipped_batches=position.skipped_batches,
        )

    def _train_from(self, position: _Position, records: Records, stop: StopRequest) -> bool:
        """Moves `position` to the last step; returns whether a stop came before it."""
        config, last_step = self.config, self.config.train.steps
        first_step, found_before = position.step, position.bad_records
        found_here = 0
        if first_step >= last_step:
            records.say(f"the run has its {last_step} steps already")
            return False
        is_alone = jax.process_count() == 1
        if self._is_due("evaluate", first_step) and not records.is_evaluated(first_step):
            self._evaluate_and_save(position, records, {"evaluate"})  # a stop was in haste
        meter = Meter(config.data.batch_size)
        with self._train_batches(position) as batches:
            upcoming = _load(batches)
            for step in range(first_step + 1, last_step + 1):
                arrays, bad_records = upcoming
                found_here += len(bad_records)
                position.state, metrics = self.train_step(position.state, arrays)
                position.step = step
                if step < last_step:  # copied to the devices while they compute
                    upcoming = _load(batches)
                meter.add(step, metrics)
                if step == first_step + 1:
                    cpu.keep_memory()
                must_stop = stop.is_due(step)
                actions = self._due_actions(step, must_stop)
                # In several processes only where all of them come together anyway.
                if (actions or is_alone) and records.needs_saving():
                    actions.add("save")
                if not actions:
                    continue
                meter.settle()
                meter.check_parameters(step, position.state.params)
                position.bad_records = found_before + distributed.total(found_here)
                if "log" in actions:
                    records.report(step, self._summary(meter, position))
                with meter.paused():
                    self._evaluate_and_save(position, records, actions)
                if must_stop and step < last_step:
                    return True
        return False

    def _due_actions(self, step: int, must_stop: bool) -> set[str]:
        """What follows a step: some of log, evaluate, save."""
        actions = {name for name in ("log", "evaluate", "save") if self._is_due(name, step)}
        if must_stop and step < self.config.train.steps:
            # What a stop interrupts is short of time: saved now, evaluated after resuming.
            return actions - {"evaluate"} | {"save"}
        return actions

    def _is_due(self, action: str, step: int) -> bool:
        config = self.config
        every = {
            "log": config.train.log_every,
            "evaluate": config.eval.every,
            "save": config.checkpoint.every,
        }[action]
        if step == 0:
            return False
        return step == config.train.steps or (every is not None and step % every == 0)

    def _summary(self, meter: Meter, position: _Position) -> dict[str, float]:
        summary = meter.summarize()
        summary["train/bad_records"] = position.bad_records
        summary["train/rollbacks"] = position.rollbacks
        summary["train/skipped_batches"] = position.skipped_batches
        used = position.step * self.config.data.batch_size
        summary["train/epoch"] = used / len(self.dataset.train)
        return summary

    def _evaluate_and_save(
        self, position: _Position, records: Records, actions: set[str]
    ) -> None:
        results = None
        if "evaluate" in actions:
            results = _eval_metrics(self._evaluate(position.state))
            records.log(position.step, results)
            records.say(_eval_line(position.step, results))
        if "save" in actions:
            records.save(position.state, self._provenance(position), results)

    def _train_batches(self, position: _Position) -> BatchIterator:
        config = self.config
        return train_batches(
            self.dataset.train,
            seed=config.seed,
            batch_size=config.data.batch_size,
            crop=setup.crop_options(config),
            start_step=position.step + position.skipped_batches,
            shard=setup.host_shard(),
            threads=config.data.threads,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            max_bad_records=config.data.max_bad_records,
            bad_records_so_far=position.bad_records,
        )

    def _evaluate(self, state: TrainState) -> dict[str, Result]:
        weights = {RAW: (state.params, state.net_state), **state.ema}
        return evaluate_dataset(self.config, self.dataset, self.eval_step, weights)


def _load(batches: Iterator[TrainBatch]) -> tuple[dict[str, jax.Array], tuple[str, ...]]:
    """The next batch on its way to the devices, and the bad records met in it."""
    batch = next(batches)
    names = ("images", "labels", "example_index")
    return put_batch({name: getattr(batch, name) for name in names}), batch.bad_records


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
