"""`Model.init` traces a network once and from then on only draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.models.network import ResidualNet


def test_only_the_first_initialisation_traces(monkeypatch):
    model = nfnets.create_model("nfnet_tiny", 10)
    fresh = nfnets.create_model("nfnet_tiny", 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    traces = []
    call = ResidualNet.__call__
    monkeypatch.setattr(
        ResidualNet, "__call__", lambda *args: traces.append(args) or call(*args)
    )
    again, _ = model.init(jax.random.key(0), jnp.zeros((2, 96, 96, 3)))
    other, _ = model.init(jax.random.key(1), jnp.zeros((1, 64, 64, 3)), is_training=False)
    assert not traces
    from_fresh, _ = fresh.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, params, again)
    jax.tree.map(np.testing.assert_array_equal, params, from_fresh)
    weight = lambda params: params["NFNet/~/linear"]["w"]  # noqa: E731
    assert not np.allclose(weight(params), weight(other))


@pytest.mark.parametrize("name", ["nfnet_tiny", "resnet50"])
def test_shapes_are_those_of_what_is_drawn(name):
    model = nfnets.create_model(name, 7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    drawn = model.init(jax.random.key(0), images)
    assert jax.tree.structure(model.shapes()) == jax.tree.structure(drawn)
    for expected, array in zip(
        jax.tree.leaves(model.shapes()), jax.tree.leaves(drawn), strict=True
    ):
        assert (expected.shape, expected.dtype) == (array.shape, array.dtype)


def test_images_of_another_shape_are_refused_every_time():
    model = nfnets.create_model("nfnet_tiny", 10)
    model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    for shape in ((1, 3, 64, 64), (64, 64, 3)):
        with pytest.raises(ValueError, match=r"takes images \[N, H, W, 3\], not \["):
            model.init(jax.random.key(0), jnp.zeros(shape))


def test_a_default_device_is_heeded_and_compiled_draws_are_the_same():
    model = nfnets.create_model("nfnet_tiny", 10)
    images = jnp.zeros((1, 64, 64, 3))
    drawn = model.init(jax.random.key(0), images)
    traced = jax.jit(lambda key: model.init(key, images))(jax.random.key(0))
    other = jax.devices()[1]
    with jax.default_device(other):
        elsewhere = model.init(jax.random.key(0), images)
    for a, b, c in zip(*map(jax.tree.leaves, (drawn, elsewhere, traced)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-7)
        assert b.devices() == {other}
