"""The largest micro-batch that fits, and the description of micro-batches."""

import pathlib

import pytest

from configs import resnet50
from nfnets.data import open_dataset
from nfnets.errors import UserError
from nfnets.training import microbatch
from nfnets.training.config import resolve
from nfnets.training.metric_writers import describe
from nfnets.training.microbatch import with_microbatch
from nfnets.training.state import build_model
from tests.training.micro import make_config


@pytest.fixture(scope="module")
def config():
    """128 images on each of the four devices of the tests."""
    return make_config(data__batch_size=512, train__microbatch="auto")


@pytest.fixture(scope="module")
def model(config):
    return build_model(config)


def linear_plan(config, model):
    """A plan of 100 bytes, and 10 more per image and pass."""
    return 100 + 10 * (config.train.microbatch or 128)


def choose(config, model, monkeypatch, limit):
    lines = []
    monkeypatch.setattr(microbatch, "usable_bytes", lambda: limit)
    monkeypatch.setattr(microbatch, "planned_bytes", linear_plan)
    chosen = microbatch.choose_microbatch(config, model, log=lines.append)
    return chosen.train.microbatch, lines


@pytest.mark.long
def test_more_images_at_a_time_need_more_memory(config, model):
    few, many = (
        microbatch.planned_bytes(with_microbatch(config, size), model) for size in (16, 128)
    )
    # At least the images of 16 x 16 pixels as float32, on one of the four devices.
    assert many - few > 112 * 16 * 16 * 3 * 4


@pytest.mark.parametrize(
    ("limit", "size"),
    [(100 + 10 * 64, 64), (99 + 10 * 64, 32), (100 + 10 * 2, 2), (10**6, None)],
)
def test_the_largest_that_fits_is_chosen(config, model, monkeypatch, limit, size):
    chosen, lines = choose(config, model, monkeypatch, limit)
    assert chosen == size
    assert lines[0].startswith(f"microbatch {size or 128} of 128 images per device: ")


def test_a_proposal_that_does_not_hold_gives_way(config, model, monkeypatch):
    """The line through small sizes may promise too much."""
    monkeypatch.setattr(microbatch, "usable_bytes", lambda: 1000)
    plans = {8: 180, 16: 260, 64: 1001, 32: 999}
    monkeypatch.setattr(
        microbatch, "planned_bytes", lambda config, model: plans[config.train.microbatch]
    )
    chosen = microbatch.choose_microbatch(config, model, log=lambda line: None)
    assert chosen.train.microbatch == 32


def test_nothing_fits(config, model, monkeypatch):
    with pytest.raises(UserError, match=r"2 images per device need .*remat=block"):
        choose(config, model, monkeypatch, 50)


def test_a_warning_about_batch_statistics():
    config = resnet50.get_config()
    config.data.source = "digits"
    config.data.batch_size = 64
    config.train.microbatch = 4
    resolved = resolve(config, num_train=1437, num_classes=10)
    dataset = open_dataset("digits")
    lines = describe(resolved, build_model(resolved), dataset, pathlib.Path("runs"))
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "statistics from 4 images at a time" in warnings[0]
    assert "passes    4 of 4 images per device and step" in lines
    config.model.name = "nfnet_tiny"
    config.augment.randaugment_layers = 2
    resolved = resolve(config, num_train=1437, num_classes=10)
    lines = describe(resolved, build_model(resolved), dataset, pathlib.Path("runs"))
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert "most of a 32 px image" in warning
    config.augment.scale_translation = True
    resolved = resolve(config, num_train=1437, num_classes=10)
    lines = describe(resolved, build_model(resolved), dataset, pathlib.Path("runs"))
    assert not any(line.startswith("WARNING") for line in lines)
