"""Statistics, running averages and synchronization of batch normalization."""

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.models.batch_norm import BatchNorm
from nfnets.models.spec import StemConv
from nfnets.training.step import AXIS, _average_statistics

SMALL = {
    "stem": (StemConv(name="initial_conv", channels=4, stride=2),),
    "widths": (8, 16),
    "depths": (1, 2),
    "strides": (1, 2),
}
MEAN, VARIANCE = "bn0/~/mean_ema", "bn0/~/var_ema"


def transformed(axis_name=None):
    return hk.without_apply_rng(
        hk.transform_with_state(lambda x, train: BatchNorm(axis_name, "bn0")(x, train))
    )


def inputs(count=6):
    return 2 + 3 * jax.random.normal(jax.random.key(0), (count, 4, 5, 3))


def test_training_normalizes_by_the_batch_and_evaluation_by_the_averages():
    net, x = transformed(), inputs()
    params, _ = net.init(None, x, True)
    state = {
        MEAN: {"counter": jnp.array(3), "hidden": jnp.full((1, 1, 1, 3), 0.5)},
        VARIANCE: {"counter": jnp.array(3), "hidden": jnp.full((1, 1, 1, 3), 0.25)},
    }
    for arrays in state.values():
        arrays["average"] = arrays["hidden"] + 1
    params["bn0"]["scale"] = jnp.full((1, 1, 1, 3), 2.0)
    params["bn0"]["offset"] = jnp.full((1, 1, 1, 3), -1.0)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))

    trained, after = net.apply(params, state, x, True)
    np.testing.assert_allclose(
        trained, 2 * (x - mean) / np.sqrt(variance + 1e-5) - 1, atol=2e-5
    )
    for module, start, value in ((MEAN, 0.5, mean), (VARIANCE, 0.25, variance)):
        hidden = 0.9 * start + 0.1 * value
        assert after[module]["counter"] == 4
        np.testing.assert_allclose(after[module]["hidden"][0, 0, 0], hidden, rtol=1e-5)
        np.testing.assert_allclose(
            after[module]["average"][0, 0, 0], hidden / (1 - 0.9**4), rtol=1e-5
        )

    tested, same = net.apply(params, state, x, False)
    np.testing.assert_allclose(tested, 2 * (x - 1.5) / np.sqrt(1.25001) - 1, rtol=1e-4)
    chex.assert_trees_all_equal(same, state)


def test_it_equals_haikus():
    ours, x = transformed(), inputs()
    haikus = hk.without_apply_rng(
        hk.transform_with_state(
            lambda x, train: hk.BatchNorm(True, True, 0.9, name="bn0")(x, train)
        )
    )
    params, state = ours.init(None, x, True)
    for _ in range(3):
        got, state_got = ours.apply(params, state, x, True)
        want, state_want = haikus.apply(params, state, x, True)
        np.testing.assert_allclose(got, want, atol=1e-6)
        chex.assert_trees_all_equal(state_got, state_want)
        state, x = state_got, x * 1.5
    np.testing.assert_allclose(
        ours.apply(params, state, x, False)[0],
        haikus.apply(params, state, x, False)[0],
        atol=1e-6,
    )


def test_half_precision_is_normalized_in_float32():
    net, x = transformed(), (inputs() + 100).astype(jnp.bfloat16)
    params, state = net.init(None, x, True)
    assert params["bn0"]["scale"].dtype == jnp.float32
    outputs, state = net.apply(params, state, x, True)
    assert outputs.dtype == jnp.bfloat16
    assert state[VARIANCE]["average"].dtype == jnp.float32
    want, _ = net.apply(params, state, x.astype(jnp.float32), True)
    np.testing.assert_array_equal(outputs, want.astype(jnp.bfloat16))


def test_rounding_does_not_make_the_variance_negative():
    net, x = transformed(), jnp.broadcast_to(jnp.linspace(9e3, 1e4, 64), (2, 5, 7, 64))
    params, state = net.init(None, x, True)
    outputs, after = net.apply(params, state, x, True)
    assert np.isfinite(outputs).all()
    assert (after[VARIANCE]["average"] >= 0).all()


@pytest.mark.parametrize("axis_name", [AXIS, None])
def test_synchronized_statistics_are_those_of_the_whole_batch(axis_name):
    net, x = transformed(axis_name), inputs(8)
    params, state = net.init(None, x, True)
    whole, state_whole = transformed().apply(params, state, x, True)

    def on_device(x):
        outputs, after = net.apply(params, state, x, True)
        return outputs, _average_statistics(after)

    parts, after = jax.vmap(on_device, axis_name=AXIS)(x.reshape(4, 2, *x.shape[1:]))
    error = np.abs(parts.reshape(whole.shape) - whole).max()
    assert error < 1e-5 if axis_name else error > 0.01
    # The mean is the same either way, the devices agree, the counter stays an integer.
    assert after[MEAN]["counter"].dtype == jnp.int32
    np.testing.assert_allclose(
        after[MEAN]["average"], [state_whole[MEAN]["average"]] * 4, rtol=1e-5
    )


def test_a_network_starts_and_trains_with_statistics_that_are_numbers():
    model = nfnets.create_model("resnet50", num_classes=5, sync_batch_norm=AXIS, **SMALL)
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    params, state = model.init(jax.random.key(0), images)
    for module, arrays in state.items():
        assert arrays["counter"] == 0
        assert (arrays["hidden"] == 0).all()
        assert (arrays["average"] == ("var_ema" in module)).all(), module

    @jax.jit
    def run(params, state):
        before, _ = model.apply(params, state, None, images, is_training=False)
        train = jax.vmap(
            lambda x: model.apply(params, state, None, x, is_training=True),
            axis_name=AXIS,
        )
        return before, *train(images[:, None])

    before, outputs, after = run(params, state)
    assert np.isfinite(before["pool"]).all()
    assert np.isfinite(outputs["pool"]).all()
    assert after.keys() == state.keys()
    for module, arrays in after.items():
        assert (arrays["counter"] == 1).all(), module
        np.testing.assert_array_equal(arrays["hidden"][0], arrays["hidden"][3])
