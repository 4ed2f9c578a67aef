"""The training loop: batches in, checkpoints and metrics out. No mathematics here."""

import dataclasses
import json
import pathlib
import time

import jax
import ml_collections

from nfnets import data
from nfnets.cpu import memory
from nfnets.data import Dataset
from nfnets.errors import UserError
from nfnets.files import local_path
from nfnets.models import Params, State
from nfnets.training import input_pipeline
from nfnets.training.config import AUTO, Config, flatten, model_spec, resolve
from nfnets.training.distributed import log, prepare_process, total
from nfnets.training.evaluation import Evaluator, as_metrics
from nfnets.training.interrupts import StopRequest, stop_requests
from nfnets.training.metric_writers import describe
from nfnets.training.metrics import NonFiniteError, Profiler, StepMetrics
from nfnets.training.microbatch import check_division, choose_microbatch
from nfnets.training.provenance import Provenance, check_same_run
from nfnets.training.state import (
    RAW,
    Network,
    TrainState,
    adopt_model,
    build_model,
    build_optimizer,
    create_state,
    initial_shapes,
)
from nfnets.training.step import make_train_step, map_train_step, put_batch, replicate
from nfnets.training.workdir import Workdir
from nfnets.weights import initial_weights, read_weights_info


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    dry_run: bool = False,
    print_config: bool = False,
) -> int:
    """Trains a model, or resumes from the newest checkpoint of `workdir`.

    Writes config.json, metrics.jsonl, TensorBoard events and checkpoints/ into `workdir`.

    Args:
      config: as loaded from a config file and overridden.
      workdir: folder of the run; created if missing.
      dry_run: print the description, take one step on fake data and write nothing.
      print_config: print the resolved config as JSON.

    Returns:
      The program's exit code: 0, also after a stop by SIGTERM or SIGUSR1; 130 after Ctrl-C.
      In all cases the last step is saved.

    Raises:
      UserError: the config, the data or the workdir is unusable, or the run failed.
    """
    folder = local_path(workdir)
    if config.init_from is not None:
        info = read_weights_info(config.init_from)
        config = adopt_model(config, info, config.init_from)
    model_spec(config.model.name)
    prepare_process()
    dataset = input_pipeline.open_config_dataset(config, or_fake=dry_run)
    if not (dry_run and dataset.is_fake):
        data.check_sampling(dataset.train, config.data.sampling)
    data.check_files(dataset.evaluation)
    resolved = resolve(
        config, num_train=len(dataset.train), num_classes=dataset.num_classes
    )
    check_division(resolved, num_devices=jax.device_count())
    model = build_model(resolved)
    if resolved.train.microbatch == AUTO:
        resolved = choose_microbatch(resolved, model, log=log)
    if print_config:
        log(json.dumps(dataclasses.asdict(resolved), indent=2))
    for line in describe(resolved, model, dataset, folder):
        log(line)
    run = _Run(resolved, folder, dataset, model)
    if dry_run:
        run.try_one_step()
        return 0
    return run.train()


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


class _Run:
    """One run: its fixed parts."""

    def __init__(
        self, config: Config, folder: pathlib.Path, dataset: Dataset, model: Network
    ) -> None:
        self.config = config
        self.folder = folder
        self.dataset = dataset
        self.model = model
        self.optimizer = build_optimizer(config)
        self.train_step = map_train_step(make_train_step(config, model, self.optimizer))
        self.evaluate = Evaluator(config, model, dataset)

    def try_one_step(self) -> None:
        """Takes a step on fake data; writes nothing."""
        state = replicate(self._create_state(self._initial_weights()))
        start = time.monotonic()
        batch = put_batch(input_pipeline.fake_batch(self.config))
        state, metrics = self.train_step(state, batch)
        loss = float(metrics["loss"])
        compiled = time.monotonic()
        _, metrics = self.train_step(state, batch)
        jax.block_until_ready(metrics)
        log(
            f"dry run   one step on fake data: loss {loss:.4f}, "
            f"{time.monotonic() - compiled:.2f} s (and {compiled - start:.1f} s to "
            "compile); nothing was written"
        )

    def train(self) -> int:
        """Trains to the last step, or until a stop is requested.

        Returns:
          The program's exit code.
        """
        with Workdir(self.config, self.folder) as workdir, stop_requests() as stop:
            position = self._start(workdir)
            if position.step:
                log(f"resumed at step {position.step}")
            while True:
                workdir.begin(position.step)
                try:
                    stopped = self._train_from(position, workdir, stop)
                    break
                except NonFiniteError as error:
                    position = self._roll_back(error, position, workdir)
            workdir.finish(position.state, self._provenance(position))
            if stopped:
                log(
                    f"stopped at step {position.step} (checkpoint saved); rerun the same "
                    "command to resume"
                )
                return stop.exit_code
        return 0

    def _start(self, workdir: Workdir) -> _Position:
        """Returns the newest checkpoint's position, or that of a new run."""
        shapes = jax.eval_shape(self._create_state, initial_shapes(self.config, self.model))
        found = workdir.restore(shapes, self._changes)
        if found is None:
            return _Position(replicate(self._create_state(self._initial_weights())), step=0)
        state, stored = found
        for change in self._changes(stored):
            log(f"changed   {change} since the checkpoint")
        return _Position(
            replicate(state),
            step=int(state.step),
            bad_records=stored.bad_records,
            rollbacks=stored.rollbacks,
            skipped_batches=stored.skipped_batches,
        )

    def _initial_weights(self) -> tuple[Params, State] | None:
        return initial_weights(self.config.init_from, self.model, self.config.seed)

    def _create_state(self, initial: tuple[Params, State] | None) -> TrainState:
        return create_state(self.config, self.model, self.optimizer, initial)

    def _changes(self, stored: Provenance) -> list[str]:
        """See `check_same_run`."""
        return check_same_run(stored, self._provenance(), self.folder)

    def _provenance(self, position: _Position | None = None) -> Provenance:
        provenance = Provenance(
            config=flatten(self.config),
            class_names=self.dataset.class_names,
            num_train=len(self.dataset.train),
        )
        if position is None:
            return provenance
        return dataclasses.replace(
            provenance,
            bad_records=position.bad_records,
            rollbacks=position.rollbacks,
            skipped_batches=position.skipped_batches,
        )

    def _roll_back(
        self, error: NonFiniteError, position: _Position, workdir: Workdir
    ) -> _Position:
        """Returns to the last checkpoint, past the batches from there to `error`."""
        options = self.config.train
        batch = error.step + position.skipped_batches  # the last one that was used
        del position.state  # frees memory for the checkpoint's arrays
        if (
            options.on_nonfinite == "rollback"
            and position.rollbacks < options.max_rollbacks
        ):
            start = self._start(workdir)
            start.rollbacks = position.rollbacks + 1
            start.skipped_batches = batch - start.step
            log(
                f"WARNING   {error}: back to step {start.step}, continuing with batch "
                f"{batch + 1} (rollback {start.rollbacks} of {options.max_rollbacks})"
            )
            return start
        found = workdir.newest_step()
        kept = "there is no checkpoint" if found is None else f"step {found} is saved"
        if options.on_nonfinite == "rollback":
            count = options.max_rollbacks
            advice = f"gave up after {count} rollback{'' if count == 1 else 's'}"
        else:
            advice = "config.train.on_nonfinite=rollback would skip such batches"
        raise UserError(
            f"{error}; {kept}; {advice}; a lower config.train.learning_rate may help",
            exit_code=1,
        )

    def _train_from(self, position: _Position, workdir: Workdir, stop: StopRequest) -> bool:
        """Moves `position` to the last step; returns whether a stop came before it."""
        if position.step >= self.config.train.steps:
            log(f"the run has already made its {self.config.train.steps} steps")
            return False
        if self._is_due("evaluate", position.step) and not workdir.is_evaluated(
            position.step
        ):  # skipped when the previous run was preempted
            self._evaluate_and_save(position, workdir, {"evaluate"})
        metrics = StepMetrics(self.config.data.batch_size)
        first_step = position.step
        try:
            return self._train_steps(position, workdir, stop, metrics)
        except (NonFiniteError, KeyboardInterrupt):
            raise
        except BaseException:
            if position.step > first_step:
                self._save_on_error(position, workdir, metrics)
            raise

    def _train_steps(
        self,
        position: _Position,
        workdir: Workdir,
        stop: StopRequest,
        step_metrics: StepMetrics,
    ) -> bool:
        config, first_step = self.config, position.step
        bad_before, bad_here = position.bad_records, 0
        is_alone = jax.process_count() == 1
        profiler = Profiler(config.train.profile, self.folder)
        with (
            input_pipeline.train_batches(
                config,
                self.dataset,
                first_batch=position.step + position.skipped_batches,
                bad_records=position.bad_records,
            ) as batches,
            profiler,
        ):
            upcoming = input_pipeline.load_batch(batches)
            for step in range(first_step + 1, config.train.steps + 1):
                arrays, bad_records = upcoming
                bad_here += len(bad_records)
                profiler.before_step(step)
                position.state, values = self.train_step(position.state, arrays)
                position.step = step
                step_metrics.add(step, values)
                if step < config.train.steps:  # copied to the devices while they compute
                    with step_metrics.waiting_for_input():
                        upcoming = input_pipeline.load_batch(batches)
                if step == first_step + 1:
                    memory.keep_memory()
                must_stop = stop.is_due(step)
                actions = self._due_actions(step, must_stop)
                # Several processes save only where all of them synchronize anyway.
                if (actions or is_alone) and workdir.needs_saving():
                    actions.add("save")
                if not actions:
                    continue
                step_metrics.wait()
                step_metrics.check_parameters(step, position.state.params)
                position.bad_records = bad_before + total(bad_here)
                if "log" in actions:
                    workdir.write_metrics(step, self._summary(step_metrics, position))
                with step_metrics.paused():
                    self._evaluate_and_save(position, workdir, actions)
                if must_stop and step < config.train.steps:
                    return True
        return False

    def _save_on_error(
        self, position: _Position, workdir: Workdir, metrics: StepMetrics
    ) -> None:
        """Saves the last finished step before an error ends the run."""
        try:
            metrics.wait()
            metrics.check_parameters(position.step, position.state.params)
        except (NonFiniteError, RuntimeError):  # diverged, or a device failed
            return
        workdir.save_now(position.state, self._provenance(position))

    def _due_actions(self, step: int, must_stop: bool) -> set[str]:
        """Returns what follows a step: some of log, evaluate, save."""
        actions = {name for name in ("log", "evaluate", "save") if self._is_due(name, step)}
        if must_stop and step < self.config.train.steps:
            # A preempted run has little time: it saves now and evaluates when it resumes.
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

    def _summary(self, metrics: StepMetrics, position: _Position) -> dict[str, float]:
        used = position.step * self.config.data.batch_size
        return {
            **metrics.summarize(),
            "train/bad_records": position.bad_records,
            "train/rollbacks": position.rollbacks,
            "train/skipped_batches": position.skipped_batches,
            "train/epoch": used / len(self.dataset.train),
        }

    def _evaluate_and_save(
        self, position: _Position, workdir: Workdir, actions: set[str]
    ) -> None:
        results = None
        if "evaluate" in actions:
            state = position.state
            weights = {RAW: (state.params, state.net_state), **state.ema}
            results = as_metrics(self.evaluate(weights))
            workdir.write_metrics(position.step, results)
        if "save" in actions:
            workdir.save(position.state, self._provenance(position), results)
