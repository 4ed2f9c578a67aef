"""Evaluation of a run or of a weights file: what `eval.py` does."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib

import ml_collections

from nfnets.data import Dataset
from nfnets.errors import UserError
from nfnets.models import Params, State
from nfnets.training import setup
from nfnets.training.checkpoints import RAW, Checkpoints, Provenance
from nfnets.training.config import resolve_evaluation, unflatten
from nfnets.training.evaluation import Result, evaluate_dataset
from nfnets.training.state import build_model
from nfnets.training.step import make_eval_step, map_eval_step, replicate
from nfnets.weights import initial_weights, read_weights_info

RESULT_FILE = "eval.json"

Weights = Mapping[str, tuple[Params, State]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A checkpoint read back.

    Attributes:
      step: of the checkpoint.
      weights: "raw" or an average's name -> (params, net_state), on every device.
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
    found = checkpoints.all_steps()
    step = checkpoints.latest_step() if step is None else step
    if step not in found:
        raise UserError(
            f"{workdir} has no checkpoint{'' if step is None else f' of step {step}'}; it "
            f"has {', '.join(map(str, found)) or 'none'}"
        )
    provenance = checkpoints.read_provenance(step)
    weights = checkpoints.restore_weights(step)
    checkpoints.close()
    return StoredRun(step=step, weights=weights, provenance=provenance)


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
    setup.enable_compilation_cache()
    run = read_run(workdir, step=step)
    trained = unflatten(run.provenance.config).model
    config = config.copy_and_resolve_references()
    if config.model.name != trained.name:
        print(f"model     {trained.name}, as the checkpoint was trained")
    with config.model.unlocked():
        # Not as a whole: a field that is newer than the checkpoint keeps its default.
        config.model.update(trained)
    folder = pathlib.Path(workdir)
    dataset = setup.open_config_dataset(config, folder, splits="eval")
    _check_classes(run.provenance, dataset, workdir)
    results = _evaluate(config, dataset, run.weights)
    _print_table(f"{workdir} at step {run.step}", dataset, results)
    (folder / RESULT_FILE).write_text(json.dumps(as_json(results), indent=2) + "\n")
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
    print(f"{title}, {examples} images of {dataset.name}")
    if dataset.is_fake:
        print("WARNING: the data is fake (synthetic): accuracies mean nothing")
    print(f"{'weights':<10} {'top1':>8} {'top5':>8} {'loss':>8}")
    for name, result in results.items():
        print(
            f"{name:<10} {result['top1']:>8.2%} {result['top5']:>8.2%} "
            f"{result['loss']:>8.4f}"
        )
