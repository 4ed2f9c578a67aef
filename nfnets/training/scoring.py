"""Evaluation of a run or of a weights file: what `eval.py` does."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import sys

import ml_collections

from nfnets.data import Dataset
from nfnets.errors import UserError
from nfnets.models import Params, State
from nfnets.training import cpu, distributed, setup
from nfnets.training.checkpoints import RAW, Checkpoints, DamagedCheckpointError
from nfnets.training.config import resolve_evaluation, unflatten
from nfnets.training.evaluation import Result, evaluate_dataset
from nfnets.training.files import write_whole
from nfnets.training.provenance import Provenance
from nfnets.training.state import build_model, ema_decays
from nfnets.training.step import make_eval_step, map_eval_step, replicate
from nfnets.weights import initial_weights, read_weights_info

RESULT_FILE = "eval.json"

Weights = Mapping[str, tuple[Params, State]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A checkpoint read back.

    Attributes:
      step: of the checkpoint.
      weights: "raw" or an average's name -> (params, net_state), numpy arrays.
      provenance: what the checkpoint belongs to.
    """

    step: int
    weights: Weights
    provenance: Provenance


def read_run(workdir: str | pathlib.Path, *, step: int | None = None) -> StoredRun:
    """Reads the weights and averages of a run's checkpoint.

    Args:
      workdir: of a run of train.py.
      step: of the checkpoint; None: the newest.

    Raises:
      UserError: no run there, or no checkpoint of that step.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{workdir} holds no run: there is no folder {folder}/checkpoints")
    checkpoints = Checkpoints(folder)
    try:
        found = checkpoints.all_steps()
        if not found or (step is not None and step not in found):
            raise UserError(
                f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}; "
                f"it has {', '.join(map(str, found)) or 'none'}"
            )
        for candidate in reversed(found) if step is None else [step]:
            try:
                return StoredRun(
                    step=candidate,
                    provenance=checkpoints.read_provenance(candidate),
                    weights=checkpoints.restore_weights(candidate),
                )
            except DamagedCheckpointError as error:
                print(f"WARNING: {error}", file=sys.stderr)
        raise UserError(f"{workdir}: none of its checkpoints can be read")
    finally:
        checkpoints.close()


def _read_run_everywhere(workdir: str, step: int | None) -> StoredRun:
    """`read_run` by process 0, handed to all processes and put on their devices."""
    run = read_run(workdir, step=step) if distributed.is_primary() else None
    found = distributed.broadcast_object(run and [run.step, run.provenance.as_json()])
    provenance = Provenance.from_json(found[1])
    weights = _expected_weights(provenance) if run is None else run.weights
    arrays = replicate(distributed.broadcast_arrays(weights))
    return StoredRun(
        step=found[0],
        provenance=provenance,
        weights={name: arrays[name] for name in weights},  # jax has sorted them
    )


def _expected_weights(provenance: Provenance) -> Weights:
    """Shapes and dtypes of what `read_run` returns."""
    config = unflatten(provenance.config)
    shapes = build_model(config).shapes()
    return dict.fromkeys((RAW, *ema_decays(config)), shapes)


def evaluate_workdir(
    config: ml_collections.ConfigDict, workdir: str, *, step: int | None = None
) -> dict[str, Result]:
    """Evaluates a checkpoint and its averages; prints a table and writes eval.json.

    The model is the checkpoint's; data and preprocessing are the config's.

    Args:
      config: as loaded and overridden.
      workdir: of a run.
      step: of the checkpoint; None: the newest.

    Returns:
      "raw" or the average's name -> examples, top1, top5, loss.

    Raises:
      UserError: no such checkpoint, or the data does not fit it.
    """
    cpu.run_in_main_thread()
    setup.enable_compilation_cache()
    run = _read_run_everywhere(workdir, step)
    trained = unflatten(run.provenance.config).model
    config = config.copy_and_resolve_references()
    if config.model.name != trained.name:
        distributed.say(f"model     {trained.name}, as the checkpoint was trained")
    with config.model.unlocked():
        # Not as a whole: a field that is newer than the checkpoint keeps its default.
        config.model.update(trained)
    folder = pathlib.Path(workdir)
    dataset = setup.open_config_dataset(config, folder, splits="eval")
    _check_classes(run.provenance, dataset, workdir)
    results = _evaluate(config, dataset, run.weights)
    _print_table(f"{workdir} at step {run.step}", dataset, results)
    if distributed.is_primary():
        write_whole(folder / RESULT_FILE, json.dumps(as_json(results), indent=2) + "\n")
    return results


def evaluate_weights(config: ml_collections.ConfigDict, path: str) -> dict[str, Result]:
    """Evaluates a weights file; prints a table.

    Args:
      config: as loaded and overridden; the file's own model name and number of classes
        come first.
      path: of a .safetensors file.

    Returns:
      {"raw": examples, top1, top5, loss}.

    Raises:
      UserError: no such file, or it fits neither the model nor the data.
    """
    cpu.run_in_main_thread()
    setup.enable_compilation_cache()
    info = read_weights_info(path)
    config = setup.adopt_model(config, info, path)
    config.model.num_classes = info.num_classes or config.model.num_classes
    dataset = setup.open_config_dataset(config, None, splits="eval")
    resolved = resolve_evaluation(config, num_classes=dataset.num_classes)
    model = setup.as_user_error(lambda: build_model(resolved))
    weights = {RAW: replicate(initial_weights(path, model, seed=0))}
    results = _evaluate(config, dataset, weights)
    _print_table(path, dataset, results)
    return results


def _check_classes(stored: Provenance, dataset: Dataset, workdir: str) -> None:
    if dataset.class_names != stored.class_names:
        raise UserError(
            f"{dataset.name} has {dataset.num_classes} classes "
            f"({', '.join(dataset.class_names[:3])}, ...), but {workdir} was trained on "
            f"{len(stored.class_names)} ({', '.join(stored.class_names[:3])}, ...): give "
            "the --config.data.source that it was trained on"
        )


def _evaluate(
    config: ml_collections.ConfigDict, dataset: Dataset, weights: Weights
) -> dict[str, Result]:
    resolved = resolve_evaluation(config, num_classes=dataset.num_classes)
    model = setup.as_user_error(lambda: build_model(resolved))
    eval_step = map_eval_step(make_eval_step(model))
    return evaluate_dataset(resolved, dataset, eval_step, weights)


def as_json(results: Mapping[str, Result]) -> dict[str, object]:
    """The weights' own figures at the top, each average's under its name."""
    averages = {name: result for name, result in results.items() if name != RAW}
    return {**results[RAW], **averages}


def _print_table(title: str, dataset: Dataset, results: Mapping[str, Result]) -> None:
    examples = results[RAW]["examples"]
    distributed.say(f"{title}, {examples} images of {dataset.name}")
    if dataset.is_fake:
        distributed.say("WARNING: the data is fake (synthetic): accuracies mean nothing")
    distributed.say(f"{'weights':<10} {'top1':>8} {'top5':>8} {'loss':>8}")
    for name, result in results.items():
        distributed.say(
            f"{name:<10} {result['top1']:>8.2%} {result['top5']:>8.2%} "
            f"{result['loss']:>8.4f}"
        )
