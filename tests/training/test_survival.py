"""Runs that are asked to stop, killed, started twice: nothing is lost, nothing doubled."""

import json
import random
import shutil
import signal
import time

import pytest

from tests.training.processes import (
    DISTURBED,
    assert_same_end,
    logged,
    losses,
    stored_arrays,
)


def stop_at(place, workdir, step, number, *arguments):
    """Sends a signal to a run at a step; returns the process, which has ended."""
    run = place.train(workdir, *arguments, script=DISTURBED, DISTURB=f"pause_at:{step}")
    with run:
        run.wait_for(f"paused at {step}$")
        run.kill(number)
        run.release()
        run.code = run.end()
    assert not run.errors, str(run)
    return run


def test_stops_that_were_asked_for_lose_nothing(place, undisturbed, tmp_path):
    """Neither step is one after which a checkpoint is due."""
    for step, number, code in (
        (7, signal.SIGTERM, 0),
        (13, signal.SIGUSR1, 0),
        (23, signal.SIGINT, 130),
    ):
        run = stop_at(place, tmp_path, step, number)
        assert run.code == code, str(run)
        # The signal arrives after the step's report: that of the next one says so.
        stopped = int(run.find(r"stopped after step (\d+), which is saved")[1])
        assert stopped in (step, step + 1)
        assert int(stored_arrays(tmp_path)["step"]) == stopped
    run = place.train_to_end(tmp_path)
    assert f"resumed at step {stopped}" in run.output
    assert_same_end(tmp_path, undisturbed)


def test_a_stop_with_accumulation_loses_nothing(place, tmp_path):
    options = ("--config.train.microbatch=16", "--config.train.steps=12")
    place.train_to_end(tmp_path / "whole", *options)
    assert stop_at(place, tmp_path / "cut", 7, signal.SIGTERM, *options).code == 0
    place.train_to_end(tmp_path / "cut", *options)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(place, undisturbed, tmp_path):
    """Step 20 is due for one: a stop there saves at once and evaluates later."""
    assert stop_at(place, tmp_path, 19, signal.SIGTERM).code == 0
    assert [step for step, entry in logged(tmp_path) if "eval/top1" in entry] == []
    place.train_to_end(tmp_path)
    assert_same_end(tmp_path, undisturbed)


def kill_and_resume(place, whole, workdir, kills, *arguments):
    """Kills a run at random moments, then lets it end and compares it."""
    rng = random.Random(kills)
    arguments = ("--config.checkpoint.every=1", *arguments)
    for number in range(kills):
        with place.train(workdir, *arguments) as run:
            if number % 7 == 6:  # while it starts
                run.wait_for("^model ")
            else:
                run.wait_for("^step ")
                for _ in range(rng.randrange(3)):
                    run.wait_for("^step ")
            time.sleep(rng.random() * 0.04)  # the moment, not a wait for anything
            run.kill()
            assert run.end() == -signal.SIGKILL, str(run)
        assert not run.errors, str(run)
    # A lock file that a killed process has left holds nobody up.
    holder = json.loads((workdir / "train.lock").read_text())
    assert holder["pid"] == run.popen.pid
    place.train_to_end(workdir, *arguments)
    assert_same_end(workdir, whole)
    losses(workdir)


def test_three_kills_lose_nothing(place, undisturbed, tmp_path):
    kill_and_resume(place, undisturbed, tmp_path, 3)


@pytest.mark.long
def test_twenty_kills_lose_nothing(place, tmp_path):
    steps = "--config.train.steps=200"
    place.train_to_end(tmp_path / "whole", steps)
    kill_and_resume(place, tmp_path / "whole", tmp_path / "killed", 20, steps)


def test_a_kill_inside_a_write_loses_nothing(place, undisturbed, tmp_path):
    with place.train(tmp_path, script=DISTURBED, DISTURB="halt_in_write:10") as run:
        run.wait_for("^writing 10$")
        run.kill()
        run.end()
    assert [p.name for p in (tmp_path / "checkpoints").glob("10*")] != ["10"]
    run = place.train_to_end(tmp_path)
    assert "resumed at step 5" in run.output
    assert_same_end(tmp_path, undisturbed)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == sorted(p.name for p in (undisturbed / "checkpoints").iterdir())


def test_a_second_run_in_the_same_workdir_is_refused(place, undisturbed, tmp_path):
    first = place.train(tmp_path, script=DISTURBED, DISTURB="pause_at:7")
    with first:
        first.wait_for("paused at 7$")
        with place.train(tmp_path) as second:
            assert second.end() == 2
        assert len(second.errors) == 1, str(second)
        holder = f"in use by another train.py (process {first.popen.pid} on "
        assert holder in second.errors[0]
        first.release()
        assert first.end() == 0, str(first)
    assert not first.errors, str(first)
    assert_same_end(tmp_path, undisturbed)


def test_the_seed_decides(place, undisturbed, tmp_path):
    """The same one gives the same bits, another one gives others."""
    place.train_to_end(tmp_path / "same")
    assert_same_end(tmp_path / "same", undisturbed)
    place.train_to_end(tmp_path / "other", "--config.seed=1", "--config.train.steps=2")
    first = losses(undisturbed)[:2]
    assert all(a != b for a, b in zip(losses(tmp_path / "other"), first, strict=True))


def damage(workdir, step):
    """Changes a byte in the middle of the largest file of a checkpoint."""
    files = [p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def cut(workdir, step):
    files = [p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [damage, cut])
def test_a_damaged_checkpoint_is_said_and_the_one_before_serves(
    place, undisturbed, tmp_path, harm
):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    harm(tmp_path, 40)
    with place.evaluate(tmp_path) as run:
        assert run.end() == 0, str(run)
    (line,) = run.errors
    assert "checkpoints/40 is damaged" in line
    assert "at step 35" in run.output
    assert (tmp_path / "checkpoints" / "40").is_dir()  # eval.py moves nothing
    run = place.train_to_end(tmp_path)
    assert "checkpoints/40 is damaged" in run.output
    assert "resumed at step 35" in run.output
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    assert_same_end(tmp_path, undisturbed)


def test_nothing_is_deleted_when_all_checkpoints_are_damaged(place, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    damaged = {damage(tmp_path, step).read_bytes() for step in steps}
    with place.evaluate(tmp_path) as run:
        assert run.end() == 2, str(run)
    assert "none of its checkpoints can be read" in run.errors[-1]
    for _ in range(2):
        with place.train(tmp_path) as run:
            assert run.end() == 2, str(run)
        assert len(run.errors) == 1, str(run)
        assert "can be read; choose another --workdir" in run.errors[0]
    files = {p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert damaged <= files
    assert logged(tmp_path) == logged(undisturbed)
