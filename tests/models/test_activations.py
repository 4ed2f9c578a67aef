"""Activations and their variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.models import activations
from nfnets.platform import compile_for


@pytest.mark.parametrize("name", activations.names())
def test_gamma_gives_unit_normal_inputs_unit_variance(name):
    # One sample from each of 2^16 equally likely intervals: no random error.
    count = 2**16
    samples = jax.scipy.special.ndtri((jnp.arange(count) + 0.5) / count)
    outputs = np.asarray(activations.get(name)(samples), np.float64)
    np.testing.assert_allclose(outputs.var(), 1, atol=2e-3)


def test_scaled_is_gamma_times_plain():
    values = jnp.array([-2.0, -0.5, 0.0, 0.5, 3.0])
    for name in activations.names():
        plain = activations.get(name, scaled=False)(values)
        np.testing.assert_allclose(
            activations.get(name)(values), plain * activations.gamma(name), rtol=1e-6
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", [-1.0, 2.0]),
        ("relu", [0.0, 2.0]),
        ("silu", [-0.26894142, 1.7615942]),
        ("gelu", [-0.158808, 1.954598]),  # the tanh approximation
        ("gelu_exact", [-0.15865525, 1.9544997]),
        ("tanh", [-0.7615942, 0.9640276]),
        ("soft_sign", [-0.5, 2 / 3]),
        ("leaky_relu", [-0.01, 2.0]),
    ],
)
def test_plain_functions_by_hand(name, expected):
    got = activations.get(name, scaled=False)(jnp.array([-1.0, 2.0]))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def gelu_by_hand(x):
    """The tanh form, its first and its second derivative, in double precision."""
    c, a = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(c * (x + a * x**3))
    slope, bend = c * (1 + 3 * a * x**2), 6 * c * a * x
    tail = 1 - t**2
    first = (1 + t + x * tail * slope) / 2
    second = tail * slope + x * tail * (bend - 2 * t * slope**2) / 2
    return x * (1 + t) / 2, first, second


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("scaled", [True, False])
def test_gelu_and_its_derivatives_are_those_of_the_tanh_form(scaled, platform):
    scale = activations.gamma("gelu") if scaled else 1.0
    gelu = activations.get("gelu", scaled)
    values = np.concatenate([np.linspace(-6.0, 6.0, 401), [-40.0, 0.0, 40.0]])
    values = values.astype(np.float32)
    value, first, second = (
        scale * array for array in gelu_by_hand(values.astype(np.float64))
    )
    # XLA's tanh is less exact than its exponential, as the tests compile it.
    atol = {"cpu": 5e-5, "tpu": 2e-4}[platform]
    with compile_for(platform):
        forward_mode = jax.jvp(gelu, (values,), (np.full_like(values, 2.0),))[1] / 2
        for got, want in (
            (jax.jit(gelu)(values), value),
            (jax.jit(jax.vmap(jax.grad(gelu)))(values), first),
            (forward_mode, first),
            (jax.jit(jax.vmap(jax.grad(jax.grad(gelu))))(values), second),
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("name", ["gelu", "gelu_exact", "silu", "softplus", "selu"])
def test_the_gradient_stores_no_more_than_the_input(name, platform):
    values = jnp.linspace(-3, 3, 64)
    with compile_for(platform):
        _, gradient = jax.vjp(activations.get(name), values)
    assert sum(array.nbytes for array in jax.tree.leaves(gradient)) <= values.nbytes


def test_dtype_is_kept_and_unknown_names_are_named():
    assert activations.get("gelu")(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(UserError, match="unknown activation 'swich'; choose one of iden"):
        activations.get("swich")
