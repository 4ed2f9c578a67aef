"""Losses and parameters that are not finite: the run stops there, or skips the batches."""

import contextlib
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.training import input_pipeline, loop
from nfnets.training.metrics import NonFiniteError, StepMetrics
from nfnets.training.step import replicate
from tests.training import survival_config
from tests.training.micro import (
    assert_same_arrays,
    assert_same_end,
    change,
    logged,
    stored_arrays,
)

# The poisoned batch is met between the checkpoints of the steps 10 and 15.
BATCH = 13
COUNTS = ("train/rollbacks", "train/skipped_batches")


def run_config(**changes):
    changes = {"train__on_nonfinite": "rollback", **changes}
    loss = "tests.training.hooks:poisoned_loss"
    return change(survival_config.get_config(), train__loss=loss, **changes)


def change_batches(monkeypatch, edit):
    """Passes every training batch, numbered from 1, through `edit`; None drops it."""
    original = input_pipeline.train_batches

    @contextlib.contextmanager
    def changed(*arguments, first_batch, **options):
        with original(*arguments, first_batch=first_batch, **options) as batches:

            def iterate():
                for number, batch in enumerate(batches, start=first_batch + 1):
                    batch = edit(number, batch)
                    if batch is not None:
                        yield batch

            yield iterate()

    monkeypatch.setattr(input_pipeline, "train_batches", changed)


def poison(*numbers):
    """An edit whose batches `numbers` have negative labels, which make the loss NaN."""

    def edit(number, batch):
        return batch._replace(labels=batch.labels - 100) if number in numbers else batch

    return edit


def test_parameters_are_checked():
    metrics = StepMetrics(batch_size=1)
    values = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.5}
    metrics.add(3, {name: jnp.asarray(value) for name, value in values.items()})
    params = {"net": {"w": jnp.ones(3), "b": jnp.array([1.0, 2.0])}}
    metrics.check_parameters(3, replicate(params))
    params["net"]["b"] = jnp.array([1.0, jnp.inf])
    message = r"^a parameter is not finite at step 3 \(learning rate 0.5\)$"
    with pytest.raises(NonFiniteError, match=message):
        metrics.check_parameters(3, replicate(params))


def test_metrics_between_reports():
    """Means, but the last learning rate and the largest ratio; the pause does not count."""
    metrics = StepMetrics(batch_size=10)
    for step in (1, 2, 3):
        values = {
            "loss": float(step),
            "gradient_norm": 1.0,
            "learning_rate": step / 10,
            "agc_max_ratio": [5.0, 9.0, 7.0][step - 1],
        }
        metrics.add(step, {name: jnp.asarray(v) for name, v in values.items()})
    start = metrics._start
    with metrics.paused():
        time.sleep(0.01)
    assert metrics._start >= start + 0.01
    with metrics.waiting_for_input():
        time.sleep(0.01)
    waited = metrics._waited
    assert waited >= 0.01
    summary = metrics.summarize()
    assert summary["train/loss"] == 2
    assert summary["train/learning_rate"] == pytest.approx(0.3)
    assert summary["train/agc_max_ratio"] == 9
    assert summary["train/images_per_sec"] > 0
    assert 0 < summary["train/data_wait"] <= 1
    assert metrics._waited == 0
    metrics.add(4, {name: jnp.asarray(v) for name, v in values.items()})
    assert metrics.summarize()["train/loss"] == 3


def test_slow_input_is_said_once(monkeypatch, capsys):
    metrics = StepMetrics(batch_size=10)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    values = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.1}
    values = {name: jnp.asarray(value) for name, value in values.items()}
    shares, rates = [], []
    metrics.add(1, values)  # time counts from the first step
    # Little; too short to be judged; slow; slow again.
    for seconds, waited in ((20, 0.8), (9, 3), (20, 6), (20, 6)):
        with metrics.waiting_for_input():
            clock[0] += waited
        clock[0] += seconds - waited
        metrics.add(2, values)
        summary = metrics.summarize()
        shares.append(summary["train/data_wait"])
        rates.append(summary["train/images_per_sec"])
    np.testing.assert_allclose(shares, [0.04, 1 / 3, 0.3, 0.3])
    np.testing.assert_allclose(rates, [10 / 20, 10 / 9, 10 / 20, 10 / 20])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("WARNING   training waits for input 30% of the time")


@pytest.mark.survival
@pytest.mark.parametrize(
    ("rate", "every", "message"),
    [
        # The loss grows with powers of the parameters and soon overflows ...
        (1e30, 5, "loss is (nan|inf) at step 3[67] "),
        # ... and here the parameters overflow while the loss is still finite.
        (1e40, 1, "a parameter is not finite at step 36 "),
    ],
)
def test_a_run_that_diverges_stops(undisturbed, tmp_path, capsys, rate, every, message):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    config = change(
        survival_config.get_config(), train__learning_rate=rate, checkpoint__every=every
    )
    with pytest.raises(UserError, match=f"{message}.*step 35 is saved") as error:
        loop.train(config, str(tmp_path))
    assert error.value.exit_code == 1
    assert "changed   train.learning_rate: 0.1 -> " in capsys.readouterr().out
    assert_same_arrays(stored_arrays(tmp_path), stored_arrays(undisturbed, 35))


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """The workdir of a run that rolled back once."""
    workdir = tmp_path_factory.mktemp("rolled_back")
    with pytest.MonkeyPatch.context() as patch:
        change_batches(patch, poison(BATCH))
        assert loop.train(run_config(), str(workdir)) == 0
    return workdir


def test_a_rollback_is_the_run_without_those_batches(rolled_back, tmp_path, monkeypatch):
    change_batches(monkeypatch, lambda n, batch: None if 11 <= n <= 13 else batch)
    loop.train(run_config(), str(tmp_path))
    assert_same_arrays(stored_arrays(rolled_back), stored_arrays(tmp_path))
    got, want = logged(rolled_back), logged(tmp_path)
    for (step, entry), (other_step, other) in zip(got, want, strict=True):
        assert step == other_step
        if "train/loss" in entry:
            counts = [entry.pop(name) for name in COUNTS]
            assert counts == ([0, 0] if step <= 10 else [1, 3])
            assert [other.pop(name) for name in COUNTS] == [0, 0]
        assert entry == other
    assert all(np.isfinite(array).all() for array in stored_arrays(rolled_back).values())


class KillError(BaseException):
    """Stands for a kill: nothing may be saved on the way out."""


@pytest.mark.survival
def test_kills_after_a_rollback_lose_nothing(rolled_back, tmp_path, monkeypatch, capsys):
    """Once before the next checkpoint, once after it."""
    monkeypatch.setattr(loop._Run, "_save_on_error", lambda *arguments: None)
    for last in (12, 17):

        def edit(number, batch, last=last):
            if number > last + 3:
                raise KillError
            return poison(BATCH)(number, batch)

        with monkeypatch.context() as patch, pytest.raises(KillError):
            change_batches(patch, edit)
            loop.train(run_config(), str(tmp_path))
    change_batches(monkeypatch, poison(BATCH))
    capsys.readouterr()
    loop.train(run_config(), str(tmp_path))
    output = capsys.readouterr().out
    assert "resumed at step 15" in output
    assert "rollback 1" not in output
    assert_same_end(tmp_path, rolled_back)


def test_too_many_rollbacks_end_the_run(tmp_path, monkeypatch, capsys):
    change_batches(monkeypatch, poison(BATCH, 16, 18))
    config = run_config(train__max_rollbacks=2)
    with pytest.raises(UserError) as error:
        loop.train(config, str(tmp_path))
    assert error.value.exit_code == 1
    assert str(error.value).startswith("loss is nan at step 12 (learning rate ")
    assert "step 10 is saved; gave up after 2 rollbacks;" in str(error.value)
    output = capsys.readouterr().out
    assert "back to step 10, continuing with batch 14 (rollback 1 of 2)" in output
    assert "back to step 10, continuing with batch 17 (rollback 2 of 2)" in output
    assert int(stored_arrays(tmp_path)["step"]) == 10
