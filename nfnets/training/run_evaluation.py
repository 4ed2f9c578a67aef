"""Evaluation of a run's checkpoint or of a weights file, with a table and eval.json."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib

import ml_collections

from nfnets.data import Dataset
from nfnets.data.sources.class_names import are_same
from nfnets.errors import UserError
from nfnets.files import write_text_atomically
from nfnets.training.config import Config, resolve, unflatten
from nfnets.training.distributed import (
    broadcast_arrays,
    broadcast_object,
    is_primary,
    log,
    prepare_process,
)
from nfnets.training.evaluation import Evaluator, Result, as_json
from nfnets.training.input_pipeline import open_config_dataset
from nfnets.training.state import (
    RAW,
    adopt_model,
    build_model,
    initial_shapes,
)
from nfnets.training.step import replicate
from nfnets.training.workdir import StoredRun, read_run
from nfnets.weights import find_weights, initial_weights, read_weights_info

RESULT_FILE = "eval.json"


def evaluate_workdir(
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    step: int | str | None = None,
    report: str | None = None,
) -> dict[str, Result]:
    """Evaluates a checkpoint and its averages; prints a table and writes eval.json.

    The model, the images that are held out and the treatment of EXIF orientations are the
    run's; the rest of data and preprocessing is the config's.

    Args:
      config: as loaded and overridden.
      workdir: of a run.
      step: of the checkpoint; "best": by eval/top1; None: the newest.
      report: "raw" or the average's name whose predictions are reported in detail in the
        folder `report` of the workdir; None: no report.

    Returns:
      "raw" or the average's name -> examples and metrics.

    Raises:
      UserError: the checkpoint or average does not exist, or the data does not fit it.
    """
    prepare_process()
    run = _read_run_everywhere(workdir, step)
    config = config.copy_and_resolve_references()
    if config.model.name != run.config.model.name:
        log(f"model     {run.config.model.name}, as the checkpoint was trained")
    with config.unlocked(), config.ignore_type():
        config.model = dataclasses.asdict(run.config.model)
    folder = pathlib.Path(workdir)
    _hold_out_as_in(run.config, config)
    _set_apply_exif(config, run.config.data.apply_exif, workdir)
    dataset = open_config_dataset(config, splits="eval")
    if not are_same(dataset.class_names, run.class_names):
        raise UserError(
            f"{dataset.name} has {dataset.num_classes} classes "
            f"({', '.join(dataset.class_names[:3])}, ...), but {workdir} was trained on "
            f"{len(run.class_names)} ({', '.join(run.class_names[:3])}, ...); set "
            "--config.data.source to the dataset it was trained on"
        )
    if report is not None and report not in run.weights:
        raise UserError(f"--report={report}: the run has {', '.join(run.weights)}")
    evaluator = _evaluator(config, dataset)
    results = evaluator(run.weights)
    _print_table(f"{workdir} at step {run.step}", dataset, results)
    if report is not None:
        # Imported only now: scikit-learn and matplotlib take a second.
        from nfnets.training.report import FOLDER, predict_split, write_report

        predictions = predict_split(
            evaluator.config, evaluator.model, dataset, run.weights[report]
        )
        for line in write_report(predictions, dataset, folder / FOLDER):
            log(line)
    if is_primary():
        text = json.dumps(as_json(results), indent=2) + "\n"
        write_text_atomically(folder / RESULT_FILE, text)
    return results


def evaluate_weights(config: ml_collections.ConfigDict, path: str) -> dict[str, Result]:
    """Evaluates a weights file; prints a table.

    Args:
      config: as loaded and overridden; the model's name, the number of classes, the
        treatment of EXIF orientations, and the preprocessing where the config leaves it
        open are the file's, if it has them.
      path: of a weights file, or another reference as in `nfnets.weights.hub`.

    Returns:
      {"raw": examples and metrics}.

    Raises:
      UserError: the file does not exist, or it fits neither the model nor the data.
    """
    prepare_process()
    file = find_weights(path)
    info = read_weights_info(file)
    config = adopt_model(config, info, path)
    config.model.num_classes = info.num_classes or config.model.num_classes
    if info.apply_exif is not None:
        _set_apply_exif(config, info.apply_exif, path)
    with config.ignore_type():
        for name in ("image_size", "preprocessing", "crop_fraction"):
            if config.eval[name] is None:
                config.eval[name] = getattr(info, name)
    dataset = open_config_dataset(config, splits="eval")
    model = build_model(resolve(config, num_classes=dataset.num_classes))
    weights = {RAW: replicate(initial_weights(file, model, seed=0))}
    results = _evaluator(config, dataset)(weights)
    _print_table(path, dataset, results)
    return results


def _hold_out_as_in(run: Config, config: ml_collections.ConfigDict) -> None:
    """Makes a config hold out the images that a run has not been trained on."""
    fraction = run.data.eval_fraction
    if not config.data.source.startswith("folder:"):
        return
    if fraction and config.seed != run.seed:
        log(f"data      seed={run.seed}, as in the run, for the images that are held out")
    if config.data.eval_fraction != fraction:
        log(f"data      eval_fraction={fraction:g}, as in the run")
    config.seed, config.data.eval_fraction = run.seed, fraction


def _set_apply_exif(config: ml_collections.ConfigDict, apply_exif: bool, path: str) -> None:
    """Treats EXIF orientations as in the training of a run or weights file."""
    if config.data.apply_exif != apply_exif:
        log(f"data      apply_exif={apply_exif}, as {path} was trained")
        config.data.apply_exif = apply_exif


def _read_run_everywhere(workdir: str, step: int | str | None) -> StoredRun:
    """`read_run` by process 0, sent to all processes and copied to their devices."""
    run = read_run(workdir, step=step) if is_primary() else None
    found = broadcast_object(run and [run.step, run.flat_config, run.class_names])
    if run is None:
        config = unflatten(found[1])
        shapes = initial_shapes(config, build_model(config))
        names = (RAW, *config.train.ema_decays)
        run = StoredRun(found[0], found[1], tuple(found[2]), dict.fromkeys(names, shapes))
    arrays = replicate(broadcast_arrays(run.weights))
    # In the order of the names, which jax has sorted.
    return dataclasses.replace(run, weights={name: arrays[name] for name in run.weights})


def _evaluator(config: ml_collections.ConfigDict, dataset: Dataset) -> Evaluator:
    resolved = resolve(config, num_classes=dataset.num_classes)
    return Evaluator(resolved, build_model(resolved), dataset)


def _print_table(title: str, dataset: Dataset, results: Mapping[str, Result]) -> None:
    log(f"{title}, {results[RAW]['examples']} images of {dataset.name}")
    if dataset.is_fake:
        log("WARNING: the data is synthetic: accuracies mean nothing")
    names = [name for name in results[RAW] if name != "examples"]
    log(f"{'weights':<10} " + " ".join(f"{name:>8}" for name in names))
    for label, result in results.items():
        cells = [
            f"{result[n]:>8.2%}" if n.startswith("top") else f"{result[n]:>8.4f}"
            for n in names
        ]
        log(f"{label:<10} " + " ".join(cells))
