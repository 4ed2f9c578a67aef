"""Classifies a dataset by the features of a network, without training the network.

    nfnets probe --model=eca_nfnet_l0 --source=folder:photos --eval_fraction=0.2

computes the pooled features of every image once, and prints the accuracy on the evaluation
split of two classifiers of them: logistic regression, and the nearest neighbors. It takes
minutes where fine-tuning takes hours, and tells what fine-tuning has to beat.

Axis letters: N examples, C channels.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from nfnets import cli
from nfnets.errors import UserError

if TYPE_CHECKING:
    from nfnets.data import RecordSource
    from nfnets.inference import Classifier

Features = tuple[np.ndarray, np.ndarray]  # float32 [N, C], int32 [N]

# Inverse strengths of the regression's L2 penalty, for features of variance 1.
_PENALTIES = (0.001, 0.01, 0.1, 1.0)
_NEIGHBORS = (1, 5, 20)
# Part of the training split that decides between these.
_HELD_OUT = 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the accuracies that the command line asks for."""
    parser = cli.Parser("probe", "Classify a dataset by the features of a network.")
    cli.add_weights_option(parser, required=True)
    parser.add_argument(
        "--source", required=True, help="digits, folder:PATH or tfds:NAME, as data.source"
    )
    parser.add_argument("--data_dir", help="folder of the TFDS datasets")
    parser.add_argument("--train_split", default="train", help="as data.train_split")
    parser.add_argument("--eval_split", default="validation", help="as data.eval_split")
    parser.add_argument(
        "--eval_fraction",
        type=float,
        default=0.0,
        help="share of a folder's training images held out where it has no other split",
    )
    parser.add_argument("--batch_size", type=cli.positive_int, default=32)
    parser.add_argument("--seed", type=int, default=0, help="of the held-out images")
    options = parser.parse_args(arguments)
    # Imported only now: mistakes in the command line are reported at once.
    from nfnets.data import open_dataset
    from nfnets.inference import load_classifier

    dataset = open_dataset(
        options.source,
        data_dir=options.data_dir,
        train_split=options.train_split,
        eval_split=options.eval_split,
        eval_fraction=options.eval_fraction,
        seed=options.seed,
        log=print,
    )
    classifier = load_classifier(options.weights)
    train = extract_features(classifier, dataset.train, options.batch_size)
    evaluation = extract_features(classifier, dataset.evaluation, options.batch_size)
    print(
        f"{options.weights}: {train[0].shape[1]} features of {len(train[1])} training and "
        f"{len(evaluation[1])} evaluation images, {dataset.num_classes} classes"
    )
    for title, accuracy in probe(train, evaluation, seed=options.seed).items():
        print(f"  {title:<44}{accuracy:7.2%}")


def extract_features(
    classifier: "Classifier", records: "RecordSource", batch_size: int
) -> Features:
    """Returns the pooled features and the labels of all records.

    Args:
      classifier: from `nfnets.inference.load_classifier`.
      records: a split of a `Dataset`.
      batch_size: images that are processed at a time.
    """
    from nfnets import data
    from nfnets.models import Params, State, normalize_images

    model, info = classifier.model, classifier.info
    assert info.image_size is not None and info.preprocessing is not None

    @jax.jit
    def pool(params: Params, state: State, images: jax.Array) -> jax.Array:
        images = normalize_images(images, info.mean_rgb, info.stddev_rgb)
        return model.apply(params, state, None, images)[0]["pool"]

    features, labels = [], []
    with data.eval_batches(
        records,
        batch_size=batch_size,
        image_size=info.image_size,
        preprocessing=info.preprocessing,
        crop_fraction=info.crop_fraction,
        apply_exif=info.apply_exif is not False,
    ) as batches:
        for batch in batches:
            is_real = batch.mask.reshape(-1) > 0
            images = batch.images.reshape(-1, *batch.images.shape[2:])
            rows = np.asarray(pool(classifier.params, classifier.state, images))
            features.append(rows[is_real])
            labels.append(batch.labels.reshape(-1)[is_real])
    return np.concatenate(features), np.concatenate(labels)


def probe(train: Features, evaluation: Features, *, seed: int = 0) -> dict[str, float]:
    """Fits the classifiers and returns their accuracies, in [0, 1].

    Strength of the penalty and number of neighbors are those with the best accuracy on a
    part of the training examples.

    Args:
      train: features and labels to fit.
      evaluation: features and labels to classify.
      seed: of the choice of that part.

    Returns:
      What was fitted -> accuracy on `evaluation`.

    Raises:
      UserError: the training examples are of a single class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = train
    if len(np.unique(labels)) < 2:
        raise UserError("the training images are of a single class")
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out, kept = np.split(order, [max(1, int(_HELD_OUT * len(labels)))])

    def regression(penalty: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))

    def neighbors(count: float) -> Any:
        return KNeighborsClassifier(min(int(count), len(kept)), metric="cosine")

    def accuracy(
        build: Callable[[float], Any], value: float, fit: np.ndarray, data: Features
    ) -> float:
        model = build(value).fit(features[fit], labels[fit])
        return float(np.mean(model.predict(data[0]) == data[1]))

    validation = (features[held_out], labels[held_out])
    everything = np.arange(len(labels))
    results = {}
    for title, build, values in (
        ("logistic regression, inverse penalty", regression, _PENALTIES),
        ("nearest neighbors (cosine), number", neighbors, _NEIGHBORS),
    ):
        best = max(values, key=lambda v: accuracy(build, v, kept, validation))
        results[f"{title} {best:g}"] = accuracy(build, best, everything, evaluation)
    return results
