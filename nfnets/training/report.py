"""Report on an evaluation: accuracy by class, confusions, calibration, worst mistakes.

Axis letters: N examples of the evaluation split, K classes.
"""

import csv
import dataclasses
import pathlib
from typing import TextIO

import jax
from matplotlib.figure import Figure
import numpy as np
from sklearn import metrics

from nfnets.data import Dataset
from nfnets.errors import UserError
from nfnets.models import Params, State, normalize_images
from nfnets.training.config import Config
from nfnets.training.input_pipeline import eval_batches
from nfnets.training.state import AXIS, Network
from nfnets.training.step import put_batch

FOLDER = "report"
_CALIBRATION_BINS = 15
_MISTAKES = 100
_MAX_LABELED_CLASSES = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for a whole evaluation split, in the order of its records.

    Attributes:
      probabilities: float32 [N, K].
      labels: int32 [N].
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each example, [N]."""
        return self.probabilities.argmax(axis=-1)

    @property
    def confidence(self) -> np.ndarray:
        """Its probability, [N]."""
        return self.probabilities.max(axis=-1)


def predict_split(
    config: Config, model: Network, dataset: Dataset, weights: tuple[Params, State]
) -> Predictions:
    """Computes the class probabilities of every evaluation example.

    Args:
      config: resolved.
      model: from `build_model`.
      dataset: its evaluation split is used.
      weights: (params, net_state), replicated.

    Raises:
      UserError: the run has several processes.
    """
    if jax.process_count() > 1:
        raise UserError("--report needs a single process")

    def step(params: Params, state: State, images: jax.Array) -> jax.Array:
        images = normalize_images(images, config.data.mean_rgb, config.data.stddev_rgb)
        outputs, _ = model.apply(params, state, None, images, False)
        return jax.nn.softmax(outputs["logits"])

    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, None, 0))
    probabilities, labels = [], []
    with eval_batches(config, dataset) as batches:
        for batch in batches:
            images = put_batch({"images": batch.images})["images"]
            rows = np.asarray(mapped(*weights, images))
            is_real = batch.mask.reshape(-1) > 0
            probabilities.append(rows.reshape(-1, rows.shape[-1])[is_real])
            labels.append(batch.labels.reshape(-1)[is_real])
    return Predictions(
        probabilities=np.concatenate(probabilities), labels=np.concatenate(labels)
    )


def calibration_error(predictions: Predictions) -> float:
    """Returns the expected calibration error, in [0, 1].

    The mean of |accuracy - confidence| over bins of equal width of the confidence, weighted
    by their examples: "On Calibration of Modern Neural Networks" (2017), equation 3.
    """
    confidence = predictions.confidence
    is_right = predictions.predicted == predictions.labels
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        gap = abs(is_right[inside].mean() - confidence[inside].mean())
        error += inside.mean() * gap
    return float(error)


def write_report(
    predictions: Predictions, dataset: Dataset, folder: pathlib.Path
) -> list[str]:
    """Writes per_class.csv, confusion.csv, confusion.png and mistakes.csv.

    Args:
      predictions: from `predict_split`.
      dataset: of the same records.
      folder: created if missing.

    Returns:
      Lines that summarize the report.

    Raises:
      UserError: a file cannot be written.
    """
    names, labels = dataset.class_names, predictions.labels
    confusion = metrics.confusion_matrix(
        labels, predictions.predicted, labels=np.arange(len(names))
    )
    counts = confusion.sum(axis=1)
    accuracies = confusion.diagonal() / np.maximum(counts, 1)
    wrong = np.flatnonzero(predictions.predicted != labels)
    worst = wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:_MISTAKES]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _open(folder / "per_class.csv") as file:
            rows = zip(names, counts, accuracies, strict=True)
            csv.writer(file).writerows([("class", "examples", "top1"), *rows])
        with _open(folder / "confusion.csv") as file:
            table = ((name, *row) for name, row in zip(names, confusion, strict=True))
            csv.writer(file).writerows([("true \\ predicted", *names), *table])
        with _open(folder / "mistakes.csv") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "label", "prediction", "probability"))
            for index in worst:
                writer.writerow(
                    (
                        dataset.evaluation[int(index)].name,
                        names[labels[index]],
                        names[predictions.predicted[index]],
                        f"{predictions.confidence[index]:.6f}",
                    )
                )
        _draw_confusion(confusion, names, folder / "confusion.png")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    order = np.argsort(accuracies, kind="stable")
    hardest = [index for index in order if counts[index]][:3]
    shown = ", ".join(f"{names[i]} {accuracies[i]:.1%}" for i in hardest)
    return [
        f"calibration error {calibration_error(predictions):.4f}",
        f"lowest accuracies: {shown}",
        f"report: {folder} (per_class.csv, confusion.csv, confusion.png, mistakes.csv)",
    ]


def _open(path: pathlib.Path) -> TextIO:
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _draw_confusion(
    confusion: np.ndarray, names: tuple[str, ...], path: pathlib.Path
) -> None:
    is_labeled = len(names) <= _MAX_LABELED_CLASSES
    size = min(16.0, 4 + 0.35 * len(names)) if is_labeled else 12.0
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if is_labeled:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=color, size=7
                )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.savefig(path, dpi=120)
