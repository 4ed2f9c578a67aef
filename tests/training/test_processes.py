"""Several processes as one run: one trajectory, one writer, one end."""

import contextlib
import json
import signal
import time

import numpy as np
import pytest

from tests.training.micro import assert_same_end, losses, stored_arrays
from tests.training.processes import DISTURBED

# Seconds that the others may take to notice that one is lost.
PATIENCE = 60.0


@contextlib.contextmanager
def both(place, workdir, *arguments, **options):
    """Two processes of two devices each, neither of which outlives the context."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(run)
            for run in place.several(workdir, *arguments, **options)
        ]


def both_to_end(place, workdir, **options):
    with both(place, workdir, **options) as runs:
        for run in runs:
            assert run.end() == 0, str(run)
            assert not run.errors, str(run)
    return runs


@pytest.fixture(scope="module")
def two(place, tmp_path_factory):
    """The workdir of an undisturbed run of two processes, and the processes."""
    workdir = tmp_path_factory.mktemp("two")
    runs = both_to_end(
        place, workdir, script=DISTURBED, DISTURB="say_reports,say_compilations"
    )
    return workdir, runs


def assert_close(workdir, other):
    got, want = losses(workdir)[:20], losses(other)[:20]
    assert len(got) == len(want) == 20
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_two_processes_train_as_one_process_does(two, undisturbed):
    assert_close(two[0], undisturbed)


@pytest.mark.long
def test_one_device_trains_as_four_do(place, undisturbed, tmp_path):
    place.train_to_end(tmp_path, "--config.eval.every=None", devices=1)
    assert_close(tmp_path, undisturbed)


@pytest.mark.long
def test_four_passes_train_as_one_pass_does(place, undisturbed, tmp_path):
    place.train_to_end(tmp_path, "--config.train.microbatch=4", "--config.eval.every=None")
    assert_close(tmp_path, undisturbed)


def test_one_process_prints_and_writes(two):
    workdir, (first, second) = two
    assert sum(line.startswith("step ") for line in first.lines) == 40
    others = [line for line in second.lines if not line.startswith(("report", "compiled"))]
    assert not others
    assert len(list(workdir.glob("events.*"))) == 1


def test_nothing_is_compiled_after_the_first_steps(two):
    """Up to the first checkpoint, that is, and the evaluation after step 20 apart."""
    for run in two[1]:
        first, last = run.lines.index("report 6"), run.lines.index("report 20")
        assert sum(line.startswith("compiled") for line in run.lines[:first]) > 1
        later = run.lines[first:last]
        assert [line for line in later if line.startswith("compiled")] == []


def test_evaluation_counts_each_example_once(place, two):
    workdir, _ = two
    results = []
    for start in (lambda w: [place.evaluate(w)], place.several_evaluations):
        runs = start(workdir)
        for run in runs:
            with run:
                assert run.end() == 0, str(run)
                assert not run.errors, str(run)
        assert all(not run.lines for run in runs[1:])
        results.append(json.loads((workdir / "eval.json").read_text()))
    one, many = results
    for key in ("examples", "top1", "top5"):
        assert one[key] == many[key]
        assert one["ema"][key] == many["ema"][key]
    assert one["examples"] == 360
    np.testing.assert_allclose(one["loss"], many["loss"], rtol=1e-6)


@pytest.mark.survival
def test_a_stop_of_one_stops_both(place, two, tmp_path):
    with both(place, tmp_path, PAUSE="7") as (first, second):
        first.wait_for("^paused at 7$")
        second.kill(signal.SIGTERM)
        first.release()
        assert (first.end(), second.end()) == (0, 0), f"{first}{second}"
    assert not first.errors + second.errors + second.lines, f"{first}{second}"
    stopped = int(first.find(r"stopped at step (\d+) \(checkpoint saved\)")[1])
    assert 7 <= stopped < 40  # the notice takes up to a second
    assert int(stored_arrays(tmp_path)["step"]) == stopped
    both_to_end(place, tmp_path)[0].find(f"resumed at step {stopped}")
    assert_same_end(tmp_path, two[0])


def kill_one(place, workdir, number):
    """Kills a process of two at step 12; returns the other, which has ended."""
    with both(place, workdir, PAUSE="12") as runs:
        runs[0].wait_for("^paused at 12$")
        runs[number].kill()
        begin = time.monotonic()
        if number != 0:
            runs[0].release()
        survivor = runs[1 - number]
        code = survivor.end(timeout=PATIENCE)
        print(f"process {1 - number} ended {time.monotonic() - begin:.1f} s later: {code}")
        assert code != 0, str(survivor)
    return survivor


@pytest.mark.survival
def test_the_second_is_killed_and_both_resume(place, two, tmp_path):
    kill_one(place, tmp_path, 1)
    both_to_end(place, tmp_path)[0].find("resumed at step 10")
    assert_same_end(tmp_path, two[0])


@pytest.mark.survival
def test_the_first_is_killed_and_one_continues_alone(place, undisturbed, tmp_path):
    kill_one(place, tmp_path, 0)
    place.train_to_end(tmp_path).find("resumed at step 10")
    np.testing.assert_allclose(losses(tmp_path), losses(undisturbed), rtol=1e-4)
