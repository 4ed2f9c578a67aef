"""Changes that a researcher makes without touching the package, by names in the config."""

import json

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.models import normalize_images
from nfnets.training import loop
from nfnets.training.metric_writers import read_metrics
from nfnets.training.state import build_optimizer, build_schedule
from nfnets.training.step import make_train_step
from tests.training import hooks, micro
from tests.training.micro import NOTHING_RANDOM, build, make_batch, make_config, on_devices

HOOKS = "tests.training.hooks"
SMALL = {"model__overrides": micro.ONE_BLOCK}


def small_net(num_classes, width=8):
    """A model of one's own, with batch norm's kind of state."""

    def forward(images, is_training):
        hidden = hk.Conv2D(width, 3, stride=2, name="conv")(images)
        count = hk.get_state("calls", (), jnp.int32, init=jnp.zeros)
        hk.set_state("calls", count + 1)
        if is_training:
            hidden = hk.dropout(hk.next_rng_key(), 0.1, hidden)
        hidden = jnp.mean(jax.nn.relu(hidden), axis=(1, 2))
        return hk.Linear(num_classes, name="head")(hidden)

    return hk.transform_with_state(forward)


def small_net_labels(params):
    """No weight decay on biases, no clipping of the classifier."""
    return {
        module: {
            name: "gain_or_bias"
            if name == "b"
            else ("classifier_weight" if module == "head" else "weight")
            for name in arrays
        }
        for module, arrays in params.items()
    }


SMALL_NET = {
    "model__name": f"{__name__}:small_net",
    "model__overrides": {"width": 4},
    "optimizer__label_fn": f"{__name__}:small_net_labels",
}


def one_step(config):
    model, optimizer, state = build(config)
    step = on_devices(make_train_step(config, model, optimizer), 1)
    return (state, *step(state, make_batch(0, config)))


def test_a_loss_of_ones_own():
    config = make_config(train__loss=f"{HOOKS}:squared_error", train__microbatch=8, **SMALL)
    _, _, metrics = one_step(config)
    assert "logit_mean" in metrics  # a metric that only this loss has
    # Logits start near zero: the mean square of a smoothed, mixed one-hot vector.
    assert 0.05 < float(metrics["loss"]) < 0.1


def test_sigmoid_cross_entropy_by_hand():
    config = make_config(train__loss="sigmoid_cross_entropy", **SMALL, **NOTHING_RANDOM)
    _, _, metrics = one_step(config)
    assert float(metrics["loss"]) == pytest.approx(10 * np.log(2), rel=0.02)


def test_an_optimizer_of_optax():
    """Others are tested in tests/optim."""
    config = make_config(
        optimizer__name="lion",
        optimizer__kwargs={"b1": 0.8},
        optimizer__frozen=("stem",),
        train__microbatch=8,
        **SMALL,
    )
    state, new, metrics = one_step(config)
    assert 0 <= float(metrics["agc_clipped_fraction"]) <= 1
    for module, arrays in state.params.items():
        same = np.array_equal(arrays.get("w", 0), new.params[module].get("w", 0))
        assert same == ("stem" in module or "w" not in arrays), module


def test_any_schedule():
    steps = jnp.arange(20)
    config = make_config(train__schedule="constant", train__warmup_steps=2)
    rates = np.array([build_schedule(config)(s) for s in steps])
    np.testing.assert_allclose(rates[2:], 0.1 * 16 / 256, rtol=1e-6)
    np.testing.assert_allclose(rates[:2], [0, 0.05 * 16 / 256], rtol=1e-6)
    config = make_config(train__schedule=f"{__name__}:saw", train__schedule_kwargs={"n": 5})
    assert [float(build_schedule(config)(s)) for s in (0, 4, 5)] == [0, 4, 0]


def saw(peak, total_steps, warmup_steps, n):
    del peak, total_steps, warmup_steps
    return lambda step: step % n


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__loss": "softmax"}, "unknown config.train.loss 'softmax'"),
        ({"train__loss": "nowhere.to:go"}, "config.train.loss 'nowhere.to:go'"),
        ({"train__loss": f"{HOOKS}:gone"}, "config.train.loss"),
        ({"optimizer__name": "sgdd"}, "sgd"),
        ({"train__schedule": "cosin"}, "cosine"),
        ({"eval__metrics": ("top3",)}, "config.eval.metrics"),
        ({"train__writers": ("jason",)}, "config.train.writers"),
        ({"optimizer__kwargs": {"nu": 1}}, "kwargs"),
    ],
)
def test_unknown_names_are_reported(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(micro.run_config(**SMALL_NET, **changes), str(tmp_path))


def test_a_model_metric_and_writer_of_ones_own(tmp_path):
    """A whole run: trained, evaluated, resumed."""
    hooks.ListWriter.written.clear()
    config = micro.run_config(
        **SMALL_NET,
        optimizer__weight_decay=0.1,
        eval__metrics=("top1", f"{HOOKS}:top2", "loss"),
        train__writers=("json", f"{HOOKS}:ListWriter"),
        train__profile=(2, 3),
    )
    loop.train(config, str(tmp_path))
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert 0 <= last["eval/top1"] <= last["eval/top2"] <= 1
    assert {"eval/ema_top2", "eval/loss"} <= last.keys()
    written = hooks.ListWriter.written
    assert [step for step, _ in written] == ["open", 2, 4, 4, 6, 6, "close"]
    assert written[-2][1]["eval/top2"] == last["eval/top2"]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    arrays = micro.stored_arrays(tmp_path)
    assert arrays["params|conv|w"].shape == (3, 3, 3, 4)
    assert arrays["net_state|~|calls"] == 6
    loop.train(config, str(tmp_path))
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model"]["name"] == f"{__name__}:small_net"


def test_decay_and_clipping_follow_the_labels():
    config = make_config(
        model__name=f"{__name__}:small_net",
        model__overrides={},
        optimizer__label_fn=f"{__name__}:small_net_labels",
        optimizer__weight_decay=0.5,
        optimizer__clipping=1e-9,
        optimizer__momentum=0.0,
        optimizer__nesterov=False,
    )
    optimizer = build_optimizer(config)
    params = {
        "conv": {"w": jnp.ones((1, 1, 1, 2)), "b": jnp.ones(2)},
        "head": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
    }
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    rate = 0.1 * 16 / 256
    # Clipped to almost nothing but decayed; clipped; decayed and not clipped.
    np.testing.assert_allclose(updates["conv"]["w"], -rate * 0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["b"], 0, atol=1e-9)
    np.testing.assert_allclose(updates["head"]["w"], -rate * 1.5, rtol=1e-5)


def mean_net(num_classes):
    """A model whose state is the mean of its images."""

    def forward(images, is_training):
        hk.set_state("mean", jnp.mean(images))
        weight = hk.get_parameter("w", (num_classes,), init=jnp.ones)
        return jnp.mean(images, axis=(1, 2, 3))[:, None] * weight

    return hk.transform_with_state(forward)


def mean_net_labels(params):
    return jax.tree.map(lambda _: "weight", params)


def test_statistics_are_averaged_over_devices():
    config = make_config(
        model__name=f"{__name__}:mean_net",
        model__overrides={},
        optimizer__label_fn=f"{__name__}:mean_net_labels",
        **NOTHING_RANDOM,
    )
    model, optimizer, state = build(config)
    batch = make_batch(0, config)
    batch["images"][8:] //= 4  # the second device's images are darker
    _, whole = model.apply(
        state.params, state.net_state, None, normalize_images(batch["images"]), True
    )
    step = on_devices(make_train_step(config, model, optimizer), 2)
    new, _ = step(state, batch)
    np.testing.assert_allclose(new.net_state["~"]["mean"], whole["~"]["mean"], rtol=1e-5)
