"""Learning-rate schedules by hand-computed values."""

import json

import jax
import numpy as np
import pytest

import nfnets
from nfnets.optim import create_schedule, warmup_cosine
from tests import reference

PEAK, TOTAL, WARMUP = 2.0, 90, 10


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_cosine_is_the_published_one():
    data = json.loads((reference.DATA / "schedule.json").read_text())
    arguments = data["max_val"], data["num_steps"], data["warmup_steps"]
    for schedule in (warmup_cosine(*arguments), create_schedule("cosine", *arguments)):
        for step, value in data["values"].items():
            np.testing.assert_allclose(schedule(int(step)), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),  # step -> value
    [
        ("cosine", {}, {10: 2.0, 30: 1 + np.sqrt(0.5), 50: 1.0, 90: 0.0, 99: 0.0}),
        ("linear", {}, {10: 2.0, 30: 1.5, 50: 1.0, 70: 0.5, 90: 0.0, 99: 0.0}),
        ("constant", {}, {10: 2.0, 50: 2.0, 99: 2.0}),
        ("rsqrt", {}, {10: 2.0, 30_010: 1.0}),  # timescale 10,000
        ("rsqrt", {"timescale": 5}, {10: 2.0, 25: 1.0, 50: 2 / 3, 90: 2 / np.sqrt(17)}),
        # Steps 30, 60 and 80 of 90.
        ("step", {}, {29: 2.0, 30: 0.2, 59: 0.2, 60: 0.02, 79: 0.02, 80: 0.002, 99: 0.002}),
        ("step", {"boundaries": [0.5], "factor": 0.25}, {44: 2.0, 45: 0.5, 90: 0.5}),
        ("step", {"boundaries": []}, {10: 2.0, 90: 2.0}),
    ],
)
def test_values_by_hand(name, kwargs, expected):
    schedule = create_schedule(name, PEAK, TOTAL, WARMUP, **kwargs)
    got = values(schedule, (0, 1, 5, 9))
    np.testing.assert_allclose(got, [0.0, 0.2, 1.0, 1.8], rtol=1e-5)
    got = values(schedule, expected)
    np.testing.assert_allclose(got, list(expected.values()), rtol=1e-5, atol=1e-7)
    traced = [float(x) for x in jax.jit(jax.vmap(schedule))(np.array(list(expected)))]
    np.testing.assert_allclose(traced, got, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "rsqrt", "step"])
def test_without_a_warm_up_and_with_nothing_else(name):
    assert create_schedule(name, PEAK, TOTAL, 0)(0) == PEAK
    np.testing.assert_allclose(create_schedule(name, PEAK, 10, 10)(5), PEAK / 2)


def test_a_schedule_of_ones_own():
    schedule = create_schedule(
        "tests.optim.helpers:doubled_schedule", PEAK, TOTAL, WARMUP, offset=1.0
    )
    assert schedule(0) == 5.0


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cosin", {}, "unknown schedule 'cosin'; did you mean cosine"),
        ("triangle", {}, "did you mean cosine or linear or constant or rsqrt or step"),
        ("cosine", {"decay": 1}, "schedule 'cosine': got an unexpected .* 'decay'"),
        ("rsqrt", {"timescale": 0}, r"timescale must be a number in \(0, inf\), not 0"),
        ("step", {"boundaries": (0.5, 30)}, r"boundaries must .* \(0, 1\), not 30"),
    ],
)
def test_mistakes_are_named(name, kwargs, message):
    with pytest.raises(nfnets.UserError, match=message):
        create_schedule(name, PEAK, TOTAL, WARMUP, **kwargs)


@pytest.mark.parametrize("warmup", [-1, 11])
def test_a_warm_up_fits_into_the_run(warmup):
    with pytest.raises(nfnets.UserError, match=f"warm-up of {warmup} steps .* 10 steps"):
        warmup_cosine(2.0, 10, warmup)
