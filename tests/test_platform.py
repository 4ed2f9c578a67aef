"""Models compiled for another platform than that of the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.models.layers import conv2d
from nfnets.platform import compile_for, target_platform
from tests import reference


@pytest.fixture(scope="module")
def small():
    """A function from parameters and images to a loss, and its arguments."""
    wide = {"widths": (256,), "depths": (2,), "strides": (2,), "group_width": 64}
    model = nfnets.create_model("nfnet_tiny", 5, **wide)
    params = reference.formula_params(model.shapes()[0])

    def loss(params, images):
        return jnp.sum(model.apply(params, {}, None, images)[0]["logits"] ** 2)

    return loss, params, reference.formula_images(2, 32)


def test_the_default_is_the_platform_of_the_devices():
    assert target_platform() == "cpu"
    with compile_for("tpu"):
        assert target_platform() == "tpu"
        with compile_for("gpu"):
            assert target_platform() == "gpu"
        assert target_platform() == "tpu"
    assert target_platform() == "cpu"


def test_other_platforms_get_grouped_convolutions_and_no_form_for_cpu(small):
    loss, params, images = small
    function = jax.jit(jax.value_and_grad(loss))  # one function: its caches must not mix
    first = function.lower(params, images).as_text()
    with compile_for("tpu"):
        for_tpu = function.trace(params, images).lower(lowering_platforms=("tpu",))
    again = function.lower(params, images).as_text()
    tpu = for_tpu.as_text()
    assert first == again
    # The groups of the four 3x3 convolutions, and those of their gradients.
    assert "feature_group_count = 2" not in first
    assert tpu.count("feature_group_count = 2") >= 4
    assert "stablehlo.while" in first
    assert "stablehlo.while" not in tpu
    # Convolutions of [N, H, W, C] without 1x1 kernels as products, GELUs with tanh.
    assert "stablehlo.tanh" in tpu
    assert "stablehlo.tanh" not in first
    assert first.count("dim_numbers") < tpu.count("dim_numbers")


def test_the_forms_for_cpu_change_speed_and_no_result(small):
    loss, params, images = small
    found = {}
    for platform in ("cpu", "gpu"):
        with compile_for(platform):
            found[platform] = jax.jit(jax.value_and_grad(loss))(params, images)
    for got, want in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_equals_the_sum_over_its_window(stride, groups, platform):
    inputs = np.random.default_rng(0).normal(size=(2, 5, 6, 8)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(3, 3, 8 // groups, 4)).astype(np.float32)
    height, width = -(-5 // stride), -(-6 // stride)
    # SAME padding: the smaller half comes first.
    pads = [
        max(0, (out - 1) * stride + 3 - size) for out, size in ((height, 5), (width, 6))
    ]
    padded = np.pad(inputs, [(0, 0), *[(pad // 2, pad - pad // 2) for pad in pads], (0, 0)])
    expected = np.zeros((2, height, width, 4), np.float32)
    for y, x, unit in np.ndindex(height, width, 4):
        group = unit * groups // 4
        channels = slice(group * 8 // groups, (group + 1) * 8 // groups)
        window = padded[
            :, y * stride : y * stride + 3, x * stride : x * stride + 3, channels
        ]
        expected[:, y, x, unit] = np.sum(window * weight[None, ..., unit], axis=(1, 2, 3))
    with compile_for(platform):
        got = conv2d(jnp.asarray(inputs), jnp.asarray(weight), stride, groups)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
