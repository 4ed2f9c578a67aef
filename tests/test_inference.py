"""Classifiers made of weights files."""

import jax
import numpy as np

import nfnets
from nfnets.inference import load_classifier


def test_probabilities_use_the_normalization_of_the_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = nfnets.create_model("nfnet_tiny", 3)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    params, state = model.init(jax.random.key(0), pixels)
    mean, stddev = (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)
    info = nfnets.WeightsInfo(
        model="nfnet_tiny", num_classes=3, mean_rgb=mean, stddev_rgb=stddev
    )
    nfnets.save_weights(path, params, state, info=info)

    images = (pixels - np.float32(mean)) / np.float32(stddev)
    outputs, _ = jax.jit(model.apply)(params, state, None, images)
    probabilities = load_classifier(path).compile()(pixels)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(outputs["logits"]), rtol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
