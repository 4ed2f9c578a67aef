"""Configs: derived fields, ranges, and messages about mistakes."""

import dataclasses
import json
import pathlib

import pytest

from configs import digits, nfnet_f0
from nfnets import config_files
from nfnets.errors import UserError
from nfnets.training.config import (
    FORMER_DEFAULTS,
    Config,
    default_config,
    flatten,
    resolve,
    unflatten,
)
from nfnets.training.microbatch import check_division
from nfnets.training.state import build_model, compute_dtype
from tests.training.micro import change

CONFIGS = sorted(pathlib.Path("configs").glob("[!_]*.py"))


def resolved(config, num_train=1000, num_classes=10, **changes):
    config = change(config, **changes)
    return resolve(config, num_train=num_train, num_classes=num_classes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves(path):
    config = resolved(config_files.load_config(str(path)), num_train=1281167)
    assert config.train.steps > 0
    assert config.eval.every > 0
    assert flatten(config).keys() == set(config_files.field_names(default_config())) | {
        "model.overrides",
        "optimizer.kwargs",
        "train.schedule_kwargs",
    }


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
    config = config_files.load_config(f"configs/nfnet_f{number}.py")
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


def test_the_light_config_is_timms_recipe():
    config = config_files.load_config("configs/eca_nfnet_l0.py")
    config = resolved(config, num_train=1281167, num_classes=1000)
    assert (config.data.image_size, config.eval.image_size) == (224, 288)
    assert (config.eval.preprocessing, config.eval.crop_fraction) == ("center", 1.0)
    augment, optimizer = config.augment, config.optimizer
    assert (augment.randaugment_layers, augment.randaugment_magnitude) == (2, 9)
    assert (augment.mixup_fraction, augment.cutmix_fraction) == (1, 0)
    assert (optimizer.name, optimizer.clipping, optimizer.b2) == ("rmsprop", 0.002, 0.9)
    assert (optimizer.weight_decay, optimizer.epsilon) == (1e-5, 1e-3)
    assert (config.model.drop_rate, config.model.stochdepth_rate) == (0.2, 0.1)
    check_division(config, num_devices=1)


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
        ({"model__name": "nfnet_f10"}, "unknown model 'nfnet_f10'"),
        (
            {"train__steps": 0},
            r"config.train.steps must be an integer in \[1, inf\), not 0",
        ),
        ({"train__epochs": None}, "set config.train.steps or config.train.epochs"),
        ({"train__epochs": 0.001}, "less than one step of 64 of the 1000"),
        ({"train__steps": 5, "train__warmup_steps": 6}, "more than the run's 5 steps"),
        ({"optimizer__clipping": -1.0}, r"clipping must be a number in \(0, inf\) or None"),
        ({"optimizer__momentum": None}, "config.optimizer.momentum must be a number"),
        ({"model__num_classes": 9}, "num_classes is 9, but digits has 10 classes"),
        ({"model__compute_dtype": "int8"}, "compute_dtype must be 'float32' or 'bf"),
        ({"train__on_nonfinite": "go"}, "on_nonfinite must be 'stop' or 'rollback'"),
        (
            {"train__microbatch": "most"},
            "microbatch must be an integer .* or 'auto' or None",
        ),
        ({"sam__rho": -0.1}, r"sam.rho must be a number in \(0, inf\) or None, not -0.1"),
        ({"sam__batch_fraction": 0.0}, r"batch_fraction must be a number in \(0, 1\]"),
        (
            {"augment__mixup_fraction": 0.9, "augment__cutmix_fraction": 0.2},
            "mixup_fraction and augment.cutmix_fraction|mixup_fraction and cutmix_fraction",
        ),
        ({"train__label_smoothing": 1.0}, r"label_smoothing must be a number in \[0, 1\)"),
        ({"train__label_smoothing": float("nan")}, "label_smoothing must be"),
        ({"train__ema": {"raw": 0.9}}, "`raw` stands for the weights themselves"),
        ({"train__ema": {"slow": 1.0}}, r"train.ema.slow must be a number in \[0, 1\)"),
        ({"data__batch_size": 8.5}, "config.data.batch_size must be an integer"),
        ({"data__flip": 1}, "config.data.flip must be True or False, not 1"),
        ({"data__mean_rgb": (1.0, 2.0)}, "config.data.mean_rgb must have 3 entries, not 2"),
        ({"train__profile": (5, 5)}, r"profile must be \(start, stop\)"),
        ({"optimizer__frozen": ("stem", 3)}, "frozen must be a string, not 3"),
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
        check_division(config, num_devices=devices)


def test_flatten_and_unflatten():
    config = resolved(digits.get_config())
    assert unflatten(flatten(config)) == config
    assert flatten(config)["train.ema.ema"] == 0.99
    # As JSON, and from a version with other fields.
    stored = json.loads(json.dumps(flatten(config)))
    del stored["train.loss"]
    stored |= {"train.removed": 1, "removed.field": 2}
    assert unflatten(stored) == config


def test_resolved_values_have_the_types_of_the_schema():
    config = resolved(digits.get_config(), train__learning_rate=1, optimizer__frozen="a,b")
    assert type(config.train.learning_rate) is float
    assert config.optimizer.frozen == ("a", "b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(UserError, match=r"unknown field config.train.step; known: steps, "):
        Config.from_dict({"train": {"step": 3}})


def test_auto_is_float32_on_a_cpu():
    config = resolved(digits.get_config(), model__compute_dtype="auto")
    assert compute_dtype(config) == "float32"
    assert build_model(config).policy.compute_dtype == "float32"
    assert compute_dtype(resolved(nfnet_f0.get_config())) == "bfloat16"


def test_evaluation_needs_no_training_data():
    config = resolve(digits.get_config(), num_classes=10)
    assert config.eval.image_size == 32


def test_a_runs_config_json_is_a_config(tmp_path):
    config = resolved(digits.get_config(), train__steps=7)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    assert resolved(config_files.load_config(path)) == config
    path.write_text('{"train": {"stepz": 3}}')
    with pytest.raises(UserError, match=r"unknown field --config.train.stepz"):
        config_files.load_config(path)


def test_fields_newer_than_a_run_have_their_former_values(tmp_path):
    config = resolved(digits.get_config())
    assert config.data.apply_exif
    stored = flatten(config)
    tree = dataclasses.asdict(config)
    for name in FORMER_DEFAULTS:
        del stored[name]
        section, field = name.split(".")
        del tree[section][field]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    for loaded in (unflatten(stored), resolved(config_files.load_config(path))):
        assert not loaded.data.apply_exif
        assert loaded.data.eval_fraction == 0 and loaded.data.sampling == "uniform"
        former = dataclasses.replace(config.data, apply_exif=False)
        assert loaded == dataclasses.replace(config, data=former)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_recipes_ignore_orientations(path):
    config = config_files.load_config(path)
    assert config.data.apply_exif == (config.data.source != "tfds:imagenet2012")
