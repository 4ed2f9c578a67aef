"""Convolutions for CPU and their gradients, against XLA's own operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.cpu.convolution import conv2d


def plain_conv2d(inputs, weight, stride, groups):
    return jax.lax.conv_general_dilated(
        inputs,
        weight,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )


@pytest.mark.parametrize(
    ("size", "dtype"),
    [((6, 8), jnp.float32), ((5, 7), jnp.float32), ((5, 7), jnp.bfloat16)],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("groups", "width"), [(1, 6), (2, 64), (3, 32), (43, 8)])
def test_convolutions_are_xlas_own_forward_and_backward(
    groups, width, kernel, stride, size, dtype
):
    keys = jax.random.split(jax.random.key(groups * width + kernel), 3)
    units = groups * (width + 2)
    inputs = jax.random.normal(keys[0], (2, *size, groups * width)).astype(dtype)
    weight = jax.random.normal(keys[1], (kernel, kernel, width, units)).astype(dtype)

    def outputs_and_gradients(conv, dtype):
        outputs, pullback = jax.vjp(
            lambda x, w: conv(x, w, stride, groups),
            inputs.astype(dtype),
            weight.astype(dtype),
        )
        given = jax.random.normal(keys[2], outputs.shape).astype(inputs.dtype)
        return outputs, *pullback(given.astype(dtype))

    got = jax.jit(lambda: outputs_and_gradients(conv2d, dtype))()
    want = jax.jit(lambda: outputs_and_gradients(plain_conv2d, jnp.float32))()
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for found, expected in zip(got, want, strict=True):
        assert found.dtype == dtype
        assert found.shape == expected.shape
        error = np.abs(found.astype(jnp.float32) - expected).max()
        assert error <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 2, (6, 7)), (7, 2, (8, 5))])
def test_symmetric_padding_forward_and_backward(kernel, stride, size):
    keys = jax.random.split(jax.random.key(kernel), 3)
    inputs = jax.random.normal(keys[0], (2, *size, 6))
    weight = jax.random.normal(keys[1], (kernel, kernel, 3, 8))
    half = kernel // 2

    def plain(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(half, half)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    @jax.jit
    def outputs_and_gradients():
        results = []
        for conv in (lambda x, w: conv2d(x, w, stride, 2, "symmetric"), plain):
            outputs, pullback = jax.vjp(conv, inputs, weight)
            given = jax.random.normal(keys[2], outputs.shape)
            results.append((outputs, *pullback(given)))
        return results

    for found, expected in zip(*outputs_and_gradients(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
