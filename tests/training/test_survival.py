"""Runs that are stopped, killed or started twice: nothing is lost, nothing doubled."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from nfnets.errors import UserError
from nfnets.training import evaluation, input_pipeline, loop, run_evaluation
from tests.training import hooks, survival_config
from tests.training.micro import assert_same_end, change, logged, losses, stored_arrays
from tests.training.processes import DISTURBED, TIMEOUT


def train(workdir, **changes):
    return loop.train(change(survival_config.get_config(), **changes), str(workdir))


def stop_at(monkeypatch, workdir, step, number, **changes):
    """Trains until a signal arrives at a step; returns the exit code."""
    with monkeypatch.context() as patch:
        patch.setitem(hooks.AT_STEP, step, lambda: os.kill(os.getpid(), number))
        return train(workdir, **changes)


def test_requested_stops_lose_nothing(undisturbed, tmp_path, monkeypatch, capsys):
    # No checkpoint is due after the first two. After step 20 an evaluation is, too, which
    # a stopped run leaves to the next one.
    for step, number, code in (
        (7, signal.SIGTERM, 0),
        (13, signal.SIGUSR1, 0),
        (19, signal.SIGINT, 130),
    ):
        assert stop_at(monkeypatch, tmp_path, step, number) == code
        # The signal comes between the report of the step and the next step.
        message = f"stopped at step {step + 1} (checkpoint saved); rerun the same command"
        assert message in capsys.readouterr().out
        assert int(stored_arrays(tmp_path)["step"]) == step + 1
    assert not any("eval/top1" in entry for _, entry in logged(tmp_path))
    assert train(tmp_path) == 0
    assert "resumed at step 20" in capsys.readouterr().out
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.survival
def test_a_stop_with_accumulation_loses_nothing(tmp_path, monkeypatch):
    changes = {"train__microbatch": 4, "train__steps": 12}
    train(tmp_path / "whole", **changes)
    assert stop_at(monkeypatch, tmp_path / "cut", 7, signal.SIGTERM, **changes) == 0
    train(tmp_path / "cut", **changes)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_a_second_run_in_the_workdir_is_refused(place, tmp_path, monkeypatch):
    with place.train(tmp_path, PAUSE="2") as first:
        first.wait_for("paused at 2$")
        with pytest.raises(UserError) as error:
            train(tmp_path)
        holder = f"in use by another run (process {first.popen.pid} on "
        assert holder in str(error.value)
        first.kill()
        first.end()
    # The lock file that the killed process leaves behind does not block later runs.
    assert json.loads((tmp_path / "train.lock").read_text())["pid"] == first.popen.pid
    assert stop_at(monkeypatch, tmp_path, 3, signal.SIGTERM) == 0


@pytest.mark.parametrize(
    "error",
    [
        UserError("the input failed"),
        pytest.param(MemoryError("full"), marks=pytest.mark.survival),
    ],
)
def test_an_error_saves_the_last_finished_step(undisturbed, tmp_path, monkeypatch, error):
    """In the middle of the input, or in the evaluation after step 20."""

    def fail():
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(input_pipeline, "load_batch", lambda batches: fail())
        train(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())  # no step was made
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setitem(hooks.AT_STEP, 7, fail)
        train(tmp_path)
    assert int(stored_arrays(tmp_path)["step"]) == 7
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(evaluation.Evaluator, "__call__", lambda *arguments: fail())
        train(tmp_path)
    assert int(stored_arrays(tmp_path)["step"]) == 20
    train(tmp_path)
    assert_same_end(tmp_path, undisturbed)


def kill_and_resume(place, whole, workdir, kills, *arguments, timeout=TIMEOUT):
    """Kills a run at random moments, then lets it end; returns the first process."""
    rng, first = random.Random(kills), None
    arguments = ("--config.checkpoint.every=1", *arguments)
    for number in range(kills):
        with place.train(workdir, *arguments) as run:
            if number % 7 == 6:  # while it starts
                run.wait_for("^model ")
            else:
                run.wait_for("^step ")
                for _ in range(rng.randrange(3)):
                    run.wait_for("^step ")
            time.sleep(rng.random() * 0.04)  # a random moment within a step
            run.kill()
            assert run.end() == -signal.SIGKILL, str(run)
        assert not run.errors, str(run)
        first = first or run
    place.train_to_end(workdir, *arguments, timeout=timeout)
    assert_same_end(workdir, whole)
    losses(workdir)
    return first


def test_a_kill_in_the_middle_of_a_write_loses_nothing(place, undisturbed, tmp_path):
    with place.train(tmp_path, script=DISTURBED, DISTURB="halt_in_write:10") as run:
        run.wait_for("^writing 10$")
        run.kill()
        run.end()
    folder = tmp_path / "checkpoints"
    assert any("tmp" in p.name for p in folder.glob("10*"))
    assert not (folder / "10").exists()
    assert train(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)
    assert not [p.name for p in folder.iterdir() if not p.name.isdigit()]


@pytest.mark.survival
def test_kills_at_random_moments_lose_nothing(place, undisturbed, tmp_path):
    kill_and_resume(place, undisturbed, tmp_path, 3)


@pytest.mark.long
def test_twenty_kills_lose_nothing(place, tmp_path):
    steps = "--config.train.steps=200"
    patience = 4 * TIMEOUT  # 200 steps, each with a checkpoint
    place.train_to_end(tmp_path / "whole", steps, timeout=patience)
    kill_and_resume(
        place, tmp_path / "whole", tmp_path / "killed", 20, steps, timeout=patience
    )


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(undisturbed, tmp_path):
    expected = losses(undisturbed)[:2]
    train(tmp_path / "same", train__steps=40, checkpoint__every=None)
    assert_same_end(tmp_path / "same", undisturbed)
    config = change(survival_config.get_config(), train__steps=2)
    config.seed = 1
    loop.train(config, str(tmp_path / "other"))
    other = losses(tmp_path / "other")
    assert all(a != b for a, b in zip(other, expected, strict=True))


def flip(workdir, step):
    """Changes a byte in the middle of the largest file of a checkpoint."""
    files = [p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def cut(workdir, step):
    """Halves the largest file of a checkpoint."""
    path = flip(workdir, step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, cut])
def test_the_checkpoint_before_a_damaged_one_is_used(undisturbed, tmp_path, capfd, harm):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    harm(tmp_path, 40)
    run_evaluation.evaluate_workdir(survival_config.get_config(), str(tmp_path))
    output = capfd.readouterr()
    assert "checkpoints/40 is damaged" in output.err
    assert "at step 35" in output.out
    assert (tmp_path / "checkpoints" / "40").is_dir()  # evaluation moves nothing
    train(tmp_path)
    output = capfd.readouterr().out
    assert "checkpoints/40 is damaged" in output
    assert "resumed at step 35" in output
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    assert_same_end(tmp_path, undisturbed)


def test_nothing_is_deleted_when_all_checkpoints_are_damaged(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    damaged = {flip(tmp_path, step).read_bytes() for step in steps}
    with pytest.raises(UserError, match="none of the checkpoints of .* can be read"):
        run_evaluation.evaluate_workdir(survival_config.get_config(), str(tmp_path))
    with pytest.raises(UserError, match="can be read; choose another --workdir"):
        train(tmp_path)
    files = {p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert damaged <= files
    assert logged(tmp_path) == logged(undisturbed)
