"""Runs that are asked to stop, killed, started twice: nothing is lost, nothing doubled."""

import json
import random
import shutil
import signal
import time

import pytest

from nfnets.training.step_cache import FOLDER
from tests.training.processes import (
    DISTURBED,
    TIMEOUT,
    assert_same_end,
    logged,
    losses,
    stored_arrays,
)


def stop_at(place, workdir, step, number, *arguments, meanwhile=lambda run: None):
    """Sends a signal to a run at a step; returns the process, which has ended."""
    run = place.train(workdir, *arguments, script=DISTURBED, DISTURB=f"pause_at:{step}")
    with run:
        run.wait_for(f"paused at {step}$")
        meanwhile(run)
        run.kill(number)
        run.release()
        run.code = run.end()
    assert not run.errors, str(run)
    return run


def test_stops_that_were_asked_for_lose_nothing(place, undisturbed, tmp_path):
    """And a second run in the same workdir is refused, which does not touch the first."""

    def start_another(run):
        with place.train(tmp_path) as second:
            assert second.end() == 2
        (line,) = second.errors
        holder = f"in use by another train.py (process {run.popen.pid} on "
        assert holder in line

    # No checkpoint is due after the first two; after step 20 an evaluation is, too, which
    # a run that has to stop leaves to the next one.
    for step, number, code in (
        (7, signal.SIGTERM, 0),
        (13, signal.SIGUSR1, 0),
        (19, signal.SIGINT, 130),
    ):
        run = stop_at(
            place,
            tmp_path,
            step,
            number,
            meanwhile=start_another if step == 7 else lambda run: None,
        )
        assert run.code == code, str(run)
        # The signal comes between the step's report and the next step.
        run.find(f"stopped after step {step + 1}, which is saved")
        assert int(stored_arrays(tmp_path)["step"]) == step + 1
    assert not any("eval/top1" in entry for _, entry in logged(tmp_path))
    place.train_to_end(tmp_path).find("resumed at step 20")
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.long
def test_a_stop_with_accumulation_loses_nothing(place, tmp_path):
    options = ("--config.train.microbatch=16", "--config.train.steps=12")
    place.train_to_end(tmp_path / "whole", *options)
    assert stop_at(place, tmp_path / "cut", 7, signal.SIGTERM, *options).code == 0
    place.train_to_end(tmp_path / "cut", *options)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


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
            time.sleep(rng.random() * 0.04)  # the moment, not a wait for anything
            run.kill()
            assert run.end() == -signal.SIGKILL, str(run)
        assert not run.errors, str(run)
        first = first or run
    # A lock file that a killed process has left holds nobody up.
    holder = json.loads((workdir / "train.lock").read_text())
    assert holder["pid"] == run.popen.pid
    place.train_to_end(workdir, *arguments, timeout=timeout)
    assert_same_end(workdir, whole)
    losses(workdir)
    return first


def test_three_kills_lose_nothing(place, undisturbed, tmp_path):
    """The first in the middle of a write, the others at random moments."""
    with place.train(tmp_path, script=DISTURBED, DISTURB="halt_in_write:10") as run:
        run.wait_for("^writing 10$")
        run.kill()
        run.end()
    folder = tmp_path / "checkpoints"
    assert any("tmp" in p.name for p in folder.glob("10*"))
    assert not (folder / "10").exists()
    kill_and_resume(place, undisturbed, tmp_path, 2).find("resumed at step 5\n")
    assert not [p.name for p in folder.iterdir() if not p.name.isdigit()]


@pytest.mark.long
def test_twenty_kills_lose_nothing(place, tmp_path):
    steps = "--config.train.steps=200"
    patience = 4 * TIMEOUT  # a checkpoint each of 200 steps
    place.train_to_end(tmp_path / "whole", steps, timeout=patience)
    kill_and_resume(
        place, tmp_path / "whole", tmp_path / "killed", 20, steps, timeout=patience
    )


@pytest.mark.long
def test_the_same_seed_gives_the_same_bits(place, undisturbed, tmp_path):
    place.train_to_end(tmp_path)
    assert_same_end(tmp_path, undisturbed)


def test_another_seed_gives_others_and_its_second_start_takes_the_step(
    place, undisturbed, tmp_path
):
    def kept():
        return {p: p.stat().st_mtime_ns for p in (place.cache / FOLDER).glob("*.bin")}

    first, second = tmp_path / "first", tmp_path / "second"
    settings = ("--config.seed=1", "--config.train.steps=2")
    before = kept()
    place.train_to_end(first, *settings)
    expected = losses(undisturbed)[:2]
    assert all(a != b for a, b in zip(losses(first), expected, strict=True))

    added = {path: time for path, time in kept().items() if path not in before}
    place.train_to_end(second, *settings)
    now = kept()
    assert any(now.get(path, 0) > time for path, time in added.items())  # as used last
    assert_same_end(second, first)


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


@pytest.mark.parametrize("harm", [damage, pytest.param(cut, marks=pytest.mark.long)])
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
    with place.train(tmp_path) as run:
        assert run.end() == 2, str(run)
    (line,) = run.errors
    assert "can be read; choose another --workdir" in line
    files = {p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert damaged <= files
    assert logged(tmp_path) == logged(undisturbed)
