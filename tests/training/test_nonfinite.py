"""Losses and parameters that are not finite: the run stops there, or goes around them."""

import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.training.meter import Meter, NonFiniteError
from nfnets.training.step import replicate
from tests.training.processes import (
    DISTURBED,
    assert_same_arrays,
    assert_same_end,
    logged,
    stored_arrays,
    wait_for_checkpoint,
)

ROLLBACK = "--config.train.on_nonfinite=rollback"
# The poisoned batch is met between the checkpoints of the steps 10 and 15.
BATCH = 13
COUNTS = ("train/rollbacks", "train/skipped_batches")


def test_parameters_are_looked_at():
    meter = Meter(batch_size=1)
    metrics = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 0.5}
    meter.add(3, {name: jnp.asarray(value) for name, value in metrics.items()})
    params = {"net": {"w": jnp.ones(3), "b": jnp.array([1.0, 2.0])}}
    meter.check_parameters(3, replicate(params))
    params["net"]["b"] = jnp.array([1.0, jnp.inf])
    message = r"^a parameter is not finite at step 3 \(learning rate 0.5\)$"
    with pytest.raises(NonFiniteError, match=message):
        meter.check_parameters(3, replicate(params))


@pytest.mark.long
@pytest.mark.parametrize(
    ("rate", "every", "message"),
    [
        # Losses of the order of the parameters' powers soon overflow ...
        ("1e30", 5, "loss is (nan|inf) at step 3[67] "),
        # ... and here it is the parameters that do, while the loss is still in order.
        ("1e40", 1, "a parameter is not finite at step 36 "),
    ],
)
def test_a_run_that_diverges_stops(place, undisturbed, tmp_path, rate, every, message):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    run = place.train(
        tmp_path,
        f"--config.train.learning_rate={rate}",
        f"--config.checkpoint.every={every}",
    )
    with run:
        assert run.end() == 1, str(run)
    line = run.errors[-1]
    assert "Traceback" not in "".join(run.errors), str(run)
    run.find(r"changed   train.learning_rate: 0.1 -> ")
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert "step 35 is saved" in line
    assert_same_arrays(stored_arrays(tmp_path), stored_arrays(undisturbed, 35))


@pytest.fixture(scope="module")
def rolled_back(place, tmp_path_factory):
    """The workdir of a run that went back once, and what it said."""
    workdir = tmp_path_factory.mktemp("rolled_back")
    run = place.train_to_end(workdir, ROLLBACK, script=DISTURBED, DISTURB=f"poison:{BATCH}")
    return workdir, run


def test_a_rollback_is_the_run_without_those_batches(place, rolled_back, tmp_path):
    workdir, run = rolled_back
    run.find(
        r"WARNING   loss is nan at step 13 \(learning rate .*\): back to step 10, going on "
        r"with batch 14 \(rollback 1 of 3\)"
    )
    place.train_to_end(tmp_path, script=DISTURBED, DISTURB="leave_out:11:13")
    assert_same_arrays(stored_arrays(workdir), stored_arrays(tmp_path))
    got, want = logged(workdir), logged(tmp_path)
    for (step, entry), (other_step, other) in zip(got, want, strict=True):
        assert step == other_step
        if "train/loss" in entry:
            counts = [entry.pop(name) for name in COUNTS]
            assert counts == ([0, 0] if step <= 10 else [1, 3])
            assert [other.pop(name) for name in COUNTS] == [0, 0]
        assert entry == other
    assert all(np.isfinite(array).all() for array in stored_arrays(workdir).values())


@pytest.mark.long
def test_kills_after_a_rollback_lose_nothing(place, rolled_back, tmp_path):
    """Once before the next checkpoint, once after it."""
    disturb = f"poison:{BATCH},pause_at:12,pause_at:17"
    for steps in ((12, 12), (12, 12, 17)):
        run = place.train(tmp_path, ROLLBACK, script=DISTURBED, DISTURB=disturb)
        with run:
            for number, step in enumerate(steps):
                if number:
                    run.release()
                run.wait_for(f"^paused at {step}$")
            run.find("rollback 1 of 3")
            wait_for_checkpoint(tmp_path, steps[-1] // 5 * 5)
            run.kill()
            run.end()
    run = place.train_to_end(
        tmp_path, ROLLBACK, script=DISTURBED, DISTURB=f"poison:{BATCH}"
    )
    run.find("resumed at step 15")
    assert "rollback 1" not in run.output
    assert_same_end(tmp_path, rolled_back[0])


def test_too_many_rollbacks_end_the_run(place, tmp_path):
    run = place.train(
        tmp_path,
        ROLLBACK,
        "--config.train.max_rollbacks=1",
        script=DISTURBED,
        DISTURB=f"poison:{BATCH},poison:16",
    )
    with run:
        assert run.end() == 1, str(run)
    (line,) = run.errors
    assert line.startswith("error: loss is nan at step 13 (learning rate ")
    assert "step 10 is saved; gave up after 1 rollback;" in line
    run.find("rollback 1 of 1")
    assert int(stored_arrays(tmp_path)["step"]) == 10
