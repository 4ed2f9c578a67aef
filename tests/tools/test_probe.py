"""Classifiers of a network's features."""

import jax
import numpy as np
import pytest

import nfnets
from nfnets.data import open_dataset, preprocess_eval
from nfnets.errors import UserError
from nfnets.inference import load_classifier
from nfnets.tools import probe

MICRO = {"widths": (16, 32), "depths": (1, 1), "strides": (2, 2)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "w.safetensors"
    model = nfnets.create_model("nfnet_tiny", 10, **MICRO)
    params, state = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    info = nfnets.WeightsInfo(
        model="nfnet_tiny",
        num_classes=10,
        overrides=MICRO,
        image_size=16,
        preprocessing="resize",
    )
    nfnets.save_weights(path, params, state, info)
    return str(path)


def _blobs(count, seed):
    """Features of three classes around corners of a cube, of which two are noisy."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    features = np.eye(3)[labels] + rng.normal(0, 0.1, (count, 3))
    return features.astype(np.float32), labels


def test_separable_features_are_separated():
    results = probe.probe(_blobs(90, 0), _blobs(30, 1))
    names = [name.rsplit(" ", 1)[0] for name in results]
    assert names == [
        "logistic regression, inverse penalty",
        "nearest neighbors (cosine), number",
    ]
    assert list(results.values()) == [1.0, 1.0]


def test_features_are_the_networks_pool(weights):
    dataset = open_dataset("digits")
    classifier = load_classifier(weights)
    features, labels = probe.extract_features(classifier, dataset.evaluation, 64)
    assert len(features) == len(labels) == len(dataset.evaluation)
    records = [dataset.evaluation[index] for index in range(3)]
    assert list(labels[:3]) == [record.label for record in records]
    images = np.stack(
        [preprocess_eval(np.asarray(record.image), 16, "resize") for record in records]
    )
    model, info = classifier.model, classifier.info
    images = (images - np.float32(info.mean_rgb)) / np.float32(info.stddev_rgb)
    outputs, _ = jax.jit(model.apply)(classifier.params, {}, None, images)
    np.testing.assert_allclose(features[:3], outputs["pool"], rtol=1e-3, atol=1e-4)


def test_command_line(weights, capsys):
    probe.main([f"--model={weights}", "--source=digits", "--batch_size=128"])
    title, regression, neighbors = capsys.readouterr().out.splitlines()
    assert "features of 1437 training and 360 evaluation images, 10 classes" in title
    # Random features of 16 px are far above chance.
    assert float(regression.split()[-1].rstrip("%")) > 60
    assert float(neighbors.split()[-1].rstrip("%")) > 40


def test_a_single_class_is_one_line():
    features, labels = _blobs(9, 0)
    with pytest.raises(UserError, match="single class"):
        probe.probe((features, 0 * labels), (features, labels))
