"""`Model.init`, checks of `Model.apply` and of `create_model`."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models.network import ResidualNet


def test_only_the_first_initialization_traces(monkeypatch):
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
    chex.assert_trees_all_equal(params, again, from_fresh)
    weight = lambda params: params["NFNet/~/linear"]["w"]  # noqa: E731
    assert not np.allclose(weight(params), weight(other))


@pytest.mark.parametrize("name", ["nfnet_tiny", "resnet50"])
def test_shapes_are_those_of_what_is_drawn(name):
    model = nfnets.create_model(name, 7)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    drawn = model.init(jax.random.key(0), images)
    chex.assert_trees_all_equal_shapes_and_dtypes(model.shapes(), drawn)


def test_images_of_another_shape_are_refused_every_time():
    model = nfnets.create_model("nfnet_tiny", 10)
    model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    for shape in ((1, 3, 64, 64), (64, 64, 3)):
        with pytest.raises(UserError, match=r"takes images \[N, H, W, 3\], not \["):
            model.init(jax.random.key(0), jnp.zeros(shape))


def test_the_default_device_is_used_and_compiled_draws_are_the_same():
    model = nfnets.create_model("nfnet_tiny", 10)
    images = jnp.zeros((1, 64, 64, 3))
    drawn = model.init(jax.random.key(0), images)
    traced = jax.jit(lambda key: model.init(key, images))(jax.random.key(0))
    other = jax.devices()[1]
    with jax.default_device(other):
        elsewhere = model.init(jax.random.key(0), images)
    chex.assert_trees_all_equal(drawn, elsewhere)
    chex.assert_trees_all_close(drawn, traced, rtol=1e-5, atol=1e-7)
    assert all(array.devices() == {other} for array in jax.tree.leaves(elsewhere))


def test_images_that_are_not_normalized_floats_are_refused():
    model = nfnets.create_model("nfnet_tiny", 10)
    pixels = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    params, state = model.init(jax.random.key(0), pixels)  # only the shape matters here
    message = "takes normalized float images, not uint8; use nfnets.models.normalize_images"
    with pytest.raises(UserError, match=message):
        model.apply(params, state, None, pixels)
    with pytest.raises(UserError, match=r"takes images \[N, H, W, 3\], not \[1, 3, 32, 32"):
        model.apply(params, state, None, jnp.zeros((1, 3, 32, 32)))


def test_an_unknown_dtype_is_named():
    with pytest.raises(UserError, match="compute_dtype must be .* not 'bfloat61'"):
        nfnets.create_model("nfnet_tiny", compute_dtype="bfloat61")


def test_names_and_descriptions_are_importable_without_jax():
    script = (
        "import sys, nfnets\n"
        "from nfnets.models import REMAT, get_spec, names\n"
        "get_spec('nfnet_f0'), nfnets.list_models(), names.HEAD, REMAT\n"
        "print({'jax', 'haiku', 'numpy'} & set(sys.modules))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"compute_dtype": "int32"}, "compute_dtype must be a dtype such as bfloat16"),
        ({"activation": "gelo"}, "unknown activation 'gelo'; choose one of"),
    ],
)
def test_mistakes_are_found_when_a_model_is_created(overrides, message):
    with pytest.raises(UserError, match=message):
        nfnets.create_model("nfnet_tiny", **overrides)
