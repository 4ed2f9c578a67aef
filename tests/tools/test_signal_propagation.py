"""Signal propagation plots."""

import jax
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models.spec import StemConv
from nfnets.tools import signal_propagation
from nfnets.tools.signal_propagation import DEFAULT_MODELS, measure, parse_model, plot

SMALL = {
    "stem": (StemConv(name="initial_conv", channels=16, kernel_size=3),),
    "stem_pool": False,
    "widths": (64, 64),
    "depths": (3, 2),
    "strides": (1, 2),
    "stochdepth_rate": 0.0,
}


def small(text):
    name, overrides = parse_model(text)
    return nfnets.create_model(name, num_classes=2, **SMALL | overrides)


def test_statistics_are_those_of_the_end_points():
    model = small("nf_resnet50")
    got = measure(model, image_size=16, batch_size=4, seed=3, skip_gain=0.5)
    weights_key, images_key = jax.random.split(jax.random.key(3))
    images = jax.random.normal(images_key, (4, 16, 16, 3))
    params, state = model.init(weights_key, images)
    for arrays in params.values():
        if "skip_gain" in arrays:
            arrays["skip_gain"] = np.float32(0.5)
    outputs, _ = jax.jit(lambda: model.apply(params, state, None, images))()
    for position, name in ((0, "stem"), (3, "stage_1"), (5, "stage_2")):
        values = np.asarray(outputs[name])
        squared_mean = np.mean(values.mean((0, 1, 2)) ** 2)
        variance = np.mean(values.var((0, 1, 2)))
        np.testing.assert_allclose(got.squared_mean[position], squared_mean, rtol=1e-4)
        np.testing.assert_allclose(got.variance[position], variance, rtol=1e-4)
    given = measure(model, seed=3, skip_gain=0.5, images=images)
    np.testing.assert_array_equal(given.variance, got.variance)
    doubled = measure(model, seed=3, skip_gain=0.5, images=2 * images)
    np.testing.assert_allclose(doubled.variance[0], 4 * got.variance[0], rtol=1e-5)
    assert got.variance.shape == got.squared_mean.shape == (6,)
    assert got.branch_variance.shape == (5,)
    # From 1, each block adds 0.2 squared; a transition block starts again from 1.
    np.testing.assert_allclose(got.predicted_variance, [1, 1.04, 1.08, 1.12, 1.04])


def test_the_papers_comparison_and_its_picture(tmp_path):
    results = {text: measure(small(text), image_size=32) for text in DEFAULT_MODELS}
    batch_norm, scaled, plain = results.values()
    # Batch normalization: growth within a stage, reset at the transition.
    assert batch_norm.variance[1] < batch_norm.variance[2] < batch_norm.variance[3]
    assert batch_norm.variance[4] < 0.7 * batch_norm.variance[3]
    assert batch_norm.predicted_variance is None
    # He initialization: the branch's second moment is one, 1/pi of it the mean's.
    np.testing.assert_allclose(batch_norm.branch_variance, 1 - 1 / np.pi, rtol=0.15)
    within_stages = scaled.variance[1:5]
    np.testing.assert_allclose(within_stages, scaled.predicted_variance[1:], rtol=0.1)
    assert scaled.squared_mean[1:].max() < 0.1 < plain.squared_mean[1:].min()
    plot(results, tmp_path / "spp.png")
    assert (tmp_path / "spp.png").read_bytes().startswith(b"\x89PNG")


def test_parse_model():
    assert parse_model("nfnet_f0") == ("nfnet_f0", {})
    assert parse_model("a:alpha=0.1,conv_init=he,se_ratio=None,skip_gain=False") == (
        "a",
        {"alpha": 0.1, "conv_init": "he", "se_ratio": None, "skip_gain": False},
    )
    with pytest.raises(UserError, match="a:x: expected FIELD=VALUE, not 'x'"):
        parse_model("a:x")


def test_mistakes_are_named(tmp_path):
    for argument, message in (("nf_resnet51", "unknown model"), ("a:b", "FIELD=VALUE")):
        with pytest.raises(UserError, match=message):
            signal_propagation.main([argument])
    with pytest.raises(UserError, match="cannot write --out="):
        signal_propagation.main(
            ["nfnet_tiny", "--image_size=16", "--batch=1", f"--out={tmp_path}/none/spp.png"]
        )
