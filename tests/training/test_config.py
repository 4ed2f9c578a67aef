"""Configs: what follows from what, and what is said about mistakes."""

import pathlib

import ml_collections
import pytest

from configs import default, digits, nfnet_f0
from nfnets.errors import UserError
from nfnets.training import cli
from nfnets.training.config import check_split, flatten, resolve, unflatten

CONFIGS = sorted(pathlib.Path("configs").glob("[!_]*.py"))


def resolved(config, num_train=1000, num_classes=10, **changes):
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return resolve(config, num_train=num_train, num_classes=num_classes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves(path):
    config = resolved(cli.load_config(str(path)), num_train=1281167)
    assert config.train.steps > 0
    assert config.eval.every > 0
    # No field beyond those of default.py, which documents them.
    assert flatten(config).keys() == flatten(default.get_config()).keys()


@pytest.mark.parametrize(
    ("number", "train", "test", "drop", "magnitude"),
    [
        (0, 192, 256, 0.2, 5),
        (1, 224, 320, 0.3, 10),
        (2, 256, 352, 0.4, 10),
        (3, 320, 416, 0.4, 15),
        (4, 384, 512, 0.5, 15),
        (5, 416, 544, 0.5, 15),
        (6, 448, 576, 0.5, 15),
        (7, 480, 608, 0.5, 15),
    ],
)
def test_configs_follow_the_papers_table(number, train, test, drop, magnitude):
    config = cli.load_config(f"configs/nfnet_f{number}.py")
    config = resolved(config, num_train=1281167, num_classes=1000)
    assert config.model.name == f"nfnet_f{number}"
    assert (config.data.image_size, config.eval.image_size) == (train, test)
    assert config.model.drop_rate == drop
    assert config.augment.randaugment_layers == 4
    assert config.augment.randaugment_magnitude == magnitude
    assert config.model.stochdepth_rate == 0.25
    assert config.data.batch_size == 4096
    assert config.train.steps == round(360 * 1281167 / 4096)
    assert config.train.warmup_steps == round(5 * 1281167 / 4096)
    assert config.optimizer.clipping == 0.01
    assert config.optimizer.weight_decay == 2e-5
    assert config.model.compute_dtype == "bfloat16"


def test_what_derives_from_the_model_follows_overrides():
    config = resolved(nfnet_f0.get_config(), model__name="nfnet_f3")
    assert config.data.image_size == 320
    assert config.eval.image_size == 416
    assert config.model.drop_rate == 0.4
    assert config.augment.randaugment_magnitude == 15
    config = resolved(nfnet_f0.get_config(), model__name="nfnet_f3", data__image_size=64)
    assert config.data.image_size == 64


def test_durations_in_steps_or_epochs():
    config = resolved(digits.get_config(), data__batch_size=50, train__epochs=3.0)
    assert config.train.steps == 60
    assert config.eval.every == 100  # five epochs of twenty steps
    config = resolved(digits.get_config(), train__steps=7, train__warmup_steps=3)
    assert (config.train.steps, config.train.warmup_steps) == (7, 3)
    # A recipe's long warm-up shrinks with a short run.
    config = resolved(nfnet_f0.get_config(), num_train=10**6, train__steps=100)
    assert config.train.warmup_steps == 10
    config = resolved(digits.get_config(), eval__every_epochs=None)
    assert config.eval.every is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "nfnet_f10"}, "config.model.name: unknown model 'nfnet_f10'"),
        ({"train__steps": 0}, "config.train.steps must be above 0, not 0"),
        ({"train__epochs": None}, "set config.train.steps or config.train.epochs"),
        ({"train__epochs": 0.001}, "less than one step of 64 of the 1000"),
        ({"train__steps": 5, "train__warmup_steps": 6}, "more than the run's 5 steps"),
        ({"optimizer__clipping": -1.0}, "clipping must be above 0 or None, not -1.0"),
        ({"optimizer__momentum": None}, "config.optimizer.momentum cannot be None"),
        ({"model__num_classes": 9}, "num_classes is 9, but digits has 10 classes"),
        ({"model__compute_dtype": "int8"}, "compute_dtype must be one of float32, bf"),
        ({"train__on_nonfinite": "go"}, "on_nonfinite must be one of stop, rollback"),
        ({"train__microbatch": "most"}, "microbatch must be above 0, None or auto"),
        ({"sam__rho": -0.1}, "sam.rho must be above 0 or None, not -0.1"),
        ({"sam__batch_fraction": 0.0}, r"batch_fraction must be in \(0, 1\]"),
        (
            {"augment__mixup_fraction": 0.9, "augment__cutmix_fraction": 0.2},
            "config.augment",
        ),
        ({"train__label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        resolved(digits.get_config(), **changes)


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "message"),
    [
        (63, None, 4, "batch_size=63 does not divide over 4 devices x 2 .*nearest.* is 64"),
        (2, None, 4, "nearest that does is 8"),
        (64, 3, 4, "microbatch=3 does not divide the 16 images .*nearest that does is 2"),
    ],
)
def test_batches_that_do_not_divide(batch, micro, devices, message):
    config = resolved(digits.get_config(), data__batch_size=batch, train__microbatch=micro)
    with pytest.raises(UserError, match=message):
        check_split(config, num_devices=devices)


def test_flatten_and_unflatten():
    config = resolved(digits.get_config())
    again = unflatten(flatten(config))
    assert isinstance(again, ml_collections.ConfigDict)
    assert again.to_dict() == config.to_dict()
    assert flatten(config)["train.ema.ema"] == 0.99
