"""The largest micro-batch that fits, and what is said of micro-batches."""

import pytest

from configs import resnet50
from nfnets.data import open_dataset
from nfnets.errors import UserError
from nfnets.training import microbatch, setup
from nfnets.training.config import resolve, with_microbatch
from nfnets.training.state import build_model
from tests.training.test_step import make_config


@pytest.fixture(scope="module")
def config():
    """128 images on each of the four devices of the tests."""
    return make_config(data__batch_size=512, train__microbatch="auto")


@pytest.fixture(scope="module")
def model(config):
    return build_model(config)


@pytest.fixture(scope="module")
def plans(config, model):
    """Bytes that a step needs, by images per pass."""
    return {
        size: microbatch.planned_bytes(with_microbatch(config, size), model)
        for size in (32, 64, None)
    }


def choose(config, model, monkeypatch, limit):
    lines = []
    monkeypatch.setattr(microbatch, "usable_bytes", lambda: limit)
    chosen = microbatch.choose_microbatch(config, model, say=lines.append)
    return chosen.train.microbatch, lines


def test_more_images_at_a_time_need_more_memory(plans):
    assert plans[32] < plans[64] < plans[None]


def test_the_largest_that_fits_is_chosen_and_said(config, model, plans, monkeypatch):
    size, lines = choose(config, model, monkeypatch, plans[64])
    assert size == 64
    assert lines[0].startswith("microbatch 64 of 128 images per device: ")
    size, _ = choose(config, model, monkeypatch, plans[64] - 1)
    assert size == 32


def test_everything_at_once_where_it_fits(config, model, plans, monkeypatch):
    size, lines = choose(config, model, monkeypatch, plans[None])
    assert size is None
    assert lines[0].startswith("microbatch 128 of 128 images per device: ")


def test_nothing_fits(config, model, monkeypatch):
    with pytest.raises(UserError, match=r"2 images per device need .*remat=block"):
        choose(config, model, monkeypatch, 1000)


def test_batch_statistics_are_warned_of():
    config = resnet50.get_config()
    config.data.source = "digits"
    config.data.batch_size = 64
    config.train.microbatch = 4
    resolved = resolve(config, num_train=1437, num_classes=10)
    dataset = open_dataset("digits")
    lines = setup.describe(resolved, build_model(resolved), dataset)
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "statistics from 4 images at a time" in warnings[0]
    assert "passes    4 of 4 images per device and step" in lines
    config.model.name = "nfnet_tiny"
    resolved = resolve(config, num_train=1437, num_classes=10)
    lines = setup.describe(resolved, build_model(resolved), dataset)
    assert not any(line.startswith("WARNING") for line in lines)
