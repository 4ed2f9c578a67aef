"""`Model.init` traces a network once and then only draws."""

import jax
import jax.numpy as jnp
import numpy as np

import nfnets


def test_images_of_another_size_or_a_key_of_another_seed_trace_nothing_anew(monkeypatch):
    model = nfnets.create_model("nfnet_tiny", 10)
    params, _ = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    fresh = nfnets.create_model("nfnet_tiny", 10)
    calls = []
    trace = nfnets.models.Model._recipes
    monkeypatch.setattr(
        nfnets.models.Model, "_recipes", lambda *args: calls.append(1) or trace(*args)
    )
    again, _ = model.init(jax.random.key(0), jnp.zeros((2, 96, 96, 3)))
    other, _ = model.init(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))
    assert not calls
    from_fresh, _ = fresh.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert len(calls) == 1
    jax.tree.map(np.testing.assert_array_equal, params, again)
    jax.tree.map(np.testing.assert_array_equal, params, from_fresh)
    weight = lambda params: params["NFNet/~/linear"]["w"]  # noqa: E731
    assert not np.allclose(weight(params), weight(other))


def test_the_number_of_input_channels_is_told_apart():
    model = nfnets.create_model("nfnet_tiny", 10)
    for channels in (3, 1):
        images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
        params, _ = model.init(jax.random.key(0), images)
        assert params["NFNet/~/stem_conv0"]["w"].shape[2] == channels
