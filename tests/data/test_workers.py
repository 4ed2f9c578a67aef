"""Worker processes: the same batches, and no hanging or remaining processes."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from nfnets import data
from nfnets.data import workers
from nfnets.errors import UserError
from tests.data.helpers import ROOT, DeadlySource, NumberedSource, SlowSource

CROP = data.CropOptions(image_size=80)  # large enough for shared memory

# Reads endless batches of 4 s each; prints the ids of the processes that read.
ENDLESS = """
import os, sys, time
from nfnets import data
from tests.data.helpers import SlowSource

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
    """Returns the names of the shared memory blocks of Python processes."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}


def test_workers_do_not_change_the_batches_and_clean_up():
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
    # Tests that run at the same time have blocks of their own, but not for long.
    left, deadline = shared_memory() - before, time.monotonic() + 5
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= shared_memory()
    assert not left


def evaluate(source):
    options = {"batch_size": 4, "image_size": 8, "workers": 1, "threads": 0}
    with data.eval_batches(source, **options) as batches:
        return list(batches)


def test_errors_in_workers_name_the_record():
    with pytest.raises(UserError, match="cannot read record 4: not an image"):
        evaluate(NumberedSource(21, undecodable=(4,)))


class PeculiarError(Exception):
    def __init__(self, name, reason):
        super().__init__(reason)  # one argument, so that it cannot be unpickled


class PeculiarSource(NumberedSource):
    def __getitem__(self, index):
        raise PeculiarError(f"record {index}", "peculiar")


def test_errors_that_cannot_be_pickled_are_passed_on():
    with pytest.raises(RuntimeError, match="PeculiarError: peculiar") as caught:
        evaluate(PeculiarSource(21))
    assert "in a data worker process" in caught.value.__notes__[0]


def test_death_of_a_worker_is_an_error():
    with pytest.raises(UserError, match=r"exit code -9 .killed, most likely out of memory"):
        evaluate(DeadlySource(20, deadly=13))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("exit_code", "message"),
    [
        (-9, "exit code -9 (killed, most likely out of memory: lower data.workers or"),
        (
            -7,
            "exit code -7 (memory for batches is full: lower data.prefetch or set",
        ),
        (-15, "exit code -15 (signal SIGTERM: set data.workers=0 to find the cause"),
        (1, "exit code 1 (see its output above, or set data.workers=0 to find the cause"),
    ],
)
def test_exit_codes_are_explained(exit_code, message):
    error = workers.death(exit_code)
    assert str(error).startswith(f"a data worker process died with {message}")


def test_closing_does_not_wait_for_the_current_batch(tmp_path):
    source = SlowSource(10, marks=str(tmp_path))
    options = {"seed": 0, "batch_size": 400, "crop": CROP, "threads": 2}  # 4 s per batch
    batches = data.train_batches(source, **options)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 2


def test_closing_does_not_wait_for_workers_that_read(tmp_path):
    source = SlowSource(10, marks=str(tmp_path))
    options = {"seed": 0, "batch_size": 400, "crop": CROP, "threads": 2, "workers": 1}
    batches = data.train_batches(source, **options)
    while not os.listdir(tmp_path):
        time.sleep(0.1)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [0, 2])
def test_memory_is_used_again_only_when_nothing_refers_to_it(count):
    options = {"seed": 0, "batch_size": 4, "crop": CROP, "threads": 2, "workers": count}
    with data.train_batches(NumberedSource(21), **options) as batches:
        kept = [next(batches).images[0, 1:3, 4] for _ in range(4)]
        copies = [np.copy(one) for one in kept]
        places = {next(batches).images.ctypes.data for _ in range(20)}
        np.testing.assert_array_equal(kept, copies)
        assert len(places) <= 5  # three ahead, one in use, one on its way
    np.testing.assert_array_equal(kept, copies)


@contextlib.contextmanager
def endless(workers, folder):
    """Runs ENDLESS; yields its process and the ids of the processes that read for it."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder), str(workers)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, to be signaled
        # Shells make background processes ignore Ctrl-C.
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
def test_interrupt_ends_the_run(workers, tmp_path):
    with endless(workers, tmp_path) as (process, readers):
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal does
        # The batches are endless, so whatever does not stop runs into this timeout.
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


def test_arrays_on_devices_outlive_their_batches():
    """JAX's CPU backend does not copy aligned arrays."""
    options = {"seed": 0, "batch_size": 64, "crop": CROP, "threads": 2}
    with data.train_batches(NumberedSource(21), **options) as batches:
        kept = [jax.device_put(next(batches).images) for _ in range(3)]
        copies = [np.array(one) for one in kept]
        for _ in range(10):
            next(batches)
        np.testing.assert_array_equal(kept, copies)
