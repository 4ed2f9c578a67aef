"""Worker processes: the same batches, and no hang whatever happens to them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nfnets import data
from nfnets.errors import UserError
from tests.data_tests.helpers import ROOT, DeadlySource, NumberedSource

CROP = data.CropOptions(image_size=80)  # large enough to travel in shared memory

# Trains forever, on batches that take 4 s; tells which processes read for it.
ENDLESS = """
import os, sys, time
from nfnets import data
from tests.data_tests.helpers import SlowSource

if __name__ == "__main__":
    crop = data.CropOptions(image_size=8)
    source = SlowSource(10, marks=sys.argv[1])
    workers = int(sys.argv[2])
    options = {"batch_size": 400 * max(1, workers), "threads": 2, "workers": workers}
    with data.train_batches(source, seed=0, crop=crop, **options) as batches:
        while len(os.listdir(sys.argv[1])) < max(1, workers):
            time.sleep(0.1)
        print(*os.listdir(sys.argv[1]), flush=True)
        next(batches)
"""


def shared_memory():
    """Names of the shared memory that Python made."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def test_workers_change_nothing_and_leave_nothing():
    source = NumberedSource(21, undecodable=(4,))
    options = {"seed": 0, "batch_size": 12, "crop": CROP, "start_step": 2, "threads": 2}
    before = shared_memory()
    with data.train_batches(source, **options) as batches:
        expected = [next(batches) for _ in range(5)]
    with data.train_batches(source, workers=2, **options) as batches:
        results = [next(batches) for _ in range(5)]
    for one, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.example_index, other.example_index)
        assert one.bad_records == other.bad_records
    assert not multiprocessing.active_children()
    # Other tests that run at the same time have some, too, but not for long.
    left, deadline = shared_memory() - before, time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= shared_memory()
    assert not left

    with (
        data.eval_batches(
            source, batch_size=4, image_size=8, workers=1, threads=0
        ) as batches,
        pytest.raises(UserError, match="cannot read record 4: not an image"),
    ):
        list(batches)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "exit code -9 .killed, most likely out of memory: lower data.wor"),
        (signal.SIGBUS, "exit code -7 .shared memory is full: enlarge /dev/shm"),
        (signal.SIGTERM, "exit code -15 .signal SIGTERM: set data.workers=0"),
    ],
)
def test_death_of_a_worker_is_an_error(number, message):
    source = DeadlySource(20, deadly=13, signal=number)
    started = time.monotonic()
    with (
        data.eval_batches(
            source, batch_size=4, image_size=8, workers=1, threads=1
        ) as batches,
        pytest.raises(UserError, match=message),
    ):
        list(batches)
    assert time.monotonic() - started < 20
    assert not multiprocessing.active_children()


@contextlib.contextmanager
def endless(workers, folder):
    """The endless run in a process of its own, and the processes that read for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder), str(workers)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a signal to its group reaches all of it only
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            readers = [int(pid) for pid in process.stdout.readline().split()]
            assert len(readers) == max(1, workers)
            yield process, readers
        finally:
            if process.poll() is None:  # the test failed
                os.killpg(process.pid, signal.SIGKILL)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupt_ends_the_run_at_once(workers, tmp_path):
    with endless(workers, tmp_path) as (process, readers):
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        # The pipeline has endless work: what does not stop for the signal runs into this.
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("Traceback") == 1 and errors.strip().endswith("KeyboardInterrupt")
    assert not any(map(is_running, readers))


def test_workers_end_with_their_parent(tmp_path):
    with endless(2, tmp_path) as (process, readers):
        assert all(map(is_running, readers))
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while any(map(is_running, readers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(is_running, readers))
