"""Sources that fail or are slow for a while, and the errors that name their records."""

import errno
import os
import pathlib
import pickle
import threading
import time

from absl import logging as absl_logging
import numpy as np
import pytest

from nfnets import data
from nfnets.data import folder, retries
from nfnets.data.closing import BatchesClosedError, Closing
from nfnets.errors import UserError
from tests.data_tests.helpers import (
    FlakySource,
    NumberedSource,
    SlowSource,
    run_python,
    write_folder,
)
from tests.data_tests.test_tfds import write_dataset

CROP = data.CropOptions(image_size=4)
QUICK = data.Retries(first_wait=0.001, patience=30)
HASTY = data.Retries(first_wait=0.001, patience=0.01)
# Ways to read: in the caller's thread, in threads, in a worker process.
WAYS = [{"threads": 0, "prefetch": 0}, {"threads": 3}, {"threads": 2, "workers": 1}]
# A file that opens, and then fails with this.
FAILING_FILE, FAILURE = "/proc/self/mem", "Input/output error"


def train(source, steps=4, **options):
    options = {"seed": 0, "batch_size": 6, "crop": CROP, "retries": QUICK} | options
    with data.train_batches(source, **options) as batches:
        return [next(batches) for _ in range(steps)]


def evaluate(source, **options):
    options = {"batch_size": 6, "image_size": 4, "retries": QUICK} | options
    with data.eval_batches(source, **options) as batches:
        return list(batches)


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, its)


@pytest.fixture
def naps(monkeypatch):
    """The waits so far; time passes by waiting only."""
    naps = []
    monkeypatch.setattr(retries.time, "monotonic", lambda: sum(naps))
    return naps


def test_waits_double_until_patience_ends(naps, tmp_path):
    source = FlakySource(3, failures=-1, flaky=(1,), marks=str(tmp_path))
    with pytest.raises(UserError) as caught:
        retries.read_record(source, 1, sleep=naps.append)
    np.testing.assert_allclose(naps, 0.1 * 2.0 ** np.arange(9))
    assert str(caught.value) == (
        "cannot read record 1: Input/output error (10 attempts in 51.1 s); "
        "check the disk or the network file system and start again"
    )
    assert retries.read_record(source, 2, sleep=naps.append).label == 2
    assert len(naps) == 9


def test_reading_goes_on_as_soon_as_it_can(naps, tmp_path):
    source = FlakySource(3, failures=4, flaky=(1,), marks=str(tmp_path))
    assert retries.read_record(source, 1, sleep=naps.append).label == 1
    assert len(naps) == 4


def test_time_that_the_attempts_take_counts(naps):
    def read():
        naps.append(50.0)  # fails by a time-out of its own
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with pytest.raises(UserError, match=r"cannot read x: .*timed out \(3 attempts in 100"):
        retries.retry(read, "x", sleep=naps.append)


TRANSIENT = ["EIO", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ENOTCONN", "EAGAIN", "EMFILE"]
LASTING = ["ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP"]


@pytest.mark.parametrize("name", TRANSIENT)
def test_errors_that_may_pass(naps, tmp_path, name):
    code = getattr(errno, name)
    source = FlakySource(3, failures=1, flaky=(1,), marks=str(tmp_path), code=code)
    assert retries.read_record(source, 1, sleep=naps.append).label == 1
    assert len(naps) == 1


@pytest.mark.parametrize("name", LASTING)
def test_errors_that_last(naps, tmp_path, name):
    code = getattr(errno, name)
    source = FlakySource(3, failures=1, flaky=(1,), marks=str(tmp_path), code=code)
    with pytest.raises(data.UnreadableRecordError) as caught:
        retries.read_record(source, 1, sleep=naps.append)
    assert str(caught.value) == f"record 1: {os.strerror(code)}"
    assert not naps


def test_errors_without_a_name_or_number(naps):
    class Bare(NumberedSource):
        def __getitem__(self, index):
            raise FileNotFoundError if index else ConnectionResetError("gone\nfor good")

    with pytest.raises(UserError, match=r"cannot read record 0: gone \(10 attempts"):
        retries.read_record(Bare(2), 0, sleep=naps.append)
    with pytest.raises(data.UnreadableRecordError, match="record 1: FileNotFoundError"):
        retries.read_record(Bare(2), 1, sleep=naps.append)


@pytest.mark.parametrize("way", WAYS)
def test_batches_are_the_undisturbed_ones(way, tmp_path):
    source = FlakySource(11, failures=3, flaky=(0, 2, 3, 7), marks=str(tmp_path))
    expected = train(NumberedSource(11))
    assert_same(train(source, **way), expected)
    assert all(batch.bad_records == () for batch in expected)
    assert all(path.stat().st_size == 3 for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        path.unlink()
    assert_same(evaluate(source, **way), evaluate(NumberedSource(11)))
    assert all(path.stat().st_size == 3 for path in tmp_path.iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_what_never_succeeds_is_named(way, tmp_path):
    source = FlakySource(11, failures=-1, flaky=(7,), marks=str(tmp_path))
    started = time.monotonic()
    for read in (train, evaluate):
        with pytest.raises(
            UserError, match=r"^cannot read record 7: Input/output error \("
        ):
            read(source, retries=HASTY, **way)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("way", WAYS)
def test_undecodable_records_are_not_read_again(way, tmp_path):
    source = FlakySource(
        11, undecodable=(4,), failures=1, flaky=(4, 5), marks=str(tmp_path)
    )
    batches = train(source, **way)
    assert_same(batches, train(NumberedSource(11, undecodable=(4,))))
    assert [name for batch in batches for name in batch.bad_records] == ["record 4"]
    # Once per epoch at least, but failing one time only.
    assert (tmp_path / "4").stat().st_size == 1


@pytest.mark.parametrize("way", WAYS)
def test_slow_source_is_waited_for(way, tmp_path):
    source = SlowSource(
        2, marks=str(tmp_path), seconds=1.2
    )  # more than Grain waits at a time
    options = {"steps": 1, "batch_size": 2}
    assert_same(train(source, **options, **way), train(NumberedSource(2), **options))


@pytest.mark.parametrize("way", WAYS[1:])
def test_closing_does_not_wait_for_a_failing_source(way, tmp_path):
    source = FlakySource(11, failures=-1, flaky=tuple(range(11)), marks=str(tmp_path))
    patient = data.Retries(first_wait=50, patience=1000)
    batches = data.eval_batches(source, batch_size=6, image_size=4, retries=patient, **way)
    deadline = time.monotonic() + 30
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 10


def test_closing_is_seen_by_threads_and_processes():
    closing = Closing()
    remote = pickle.loads(pickle.dumps(closing))
    for one in (closing, remote):
        assert not one.is_set()
        one.sleep(0.01)
    timer = threading.Timer(0.3, closing.set)
    timer.start()
    for one in (closing, remote):
        with pytest.raises(BatchesClosedError):
            one.sleep(30)
        assert one.is_set()
    timer.join()
    closing.clear()
    closing.clear()
    assert closing.is_set() and not remote.is_set()  # no file is left behind


def test_warnings_are_one_line_for_many_records(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(absl_logging, "_log_timer_per_token", {})
    everything = tuple(range(20))
    source = FlakySource(20, failures=2, flaky=everything, marks=str(tmp_path))
    with caplog.at_level("WARNING", logger="absl"):
        train(source, threads=0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Cannot read record ") and "\n" not in message
    assert ": Input/output error; trying again for 30 s" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_warning_and_error_reach_stderr(workers, tmp_path):
    code = f"""
from nfnets import command, data
from tests.data_tests.helpers import FlakySource

def main():
    source = FlakySource(9, failures=-1, flaky=(3,), marks={str(tmp_path)!r})
    retries = data.Retries(first_wait=0.01, patience=0.1)
    options = dict(batch_size=4, image_size=8, workers={workers}, retries=retries)
    with data.eval_batches(source, **options) as batches:
        list(batches)

if __name__ == "__main__":
    command.run(main)
"""
    result = run_python("-c", code)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len([line for line in lines if "Cannot read record 3: Input" in line]) == 1
    assert lines[-1].startswith("error: cannot read record 3: Input/output error (")
    assert "Traceback" not in result.stderr


@pytest.fixture
def pictures(tmp_path):
    write_folder(tmp_path, {"train": {"a": 4}, "val": {"a": 1}})
    return tmp_path


needs_failing_file = pytest.mark.skipif(
    not os.path.exists(FAILING_FILE), reason="needs Linux's /proc"
)


@needs_failing_file
@pytest.mark.parametrize("way", WAYS[:2])
def test_file_that_fails_for_a_while(pictures, way):
    source = data.open_dataset(f"folder:{pictures}").train
    expected = train(source)
    path = pathlib.Path(source.path(2))
    whole = path.rename(pictures / "whole.jpg")
    path.symlink_to(FAILING_FILE)
    with pytest.raises(OSError, match=FAILURE) as caught:
        _ = source[2]
    assert caught.value.filename == str(path) and caught.value.errno == errno.EIO
    with pytest.raises(UserError, match=rf"cannot read .*/train_a_2\.jpg: {FAILURE} \("):
        train(source, retries=HASTY, **way)
    timer = threading.Timer(1.0, whole.replace, [path])
    timer.start()
    assert_same(train(source, **way), expected)
    timer.join()


def test_missing_file_is_a_bad_record_at_once(pictures):
    source = data.open_dataset(f"folder:{pictures}").train
    os.unlink(source.path(2))
    (batch,) = train(source, steps=1, retries=data.Retries(first_wait=1000, patience=5000))
    assert batch.bad_records == (source.path(2),)


def test_folder_is_scanned_again_after_a_failure(pictures, monkeypatch):
    scan, failed = folder.scan, []

    def flaky_scan(root):
        if not failed:
            failed.append(root)
            raise OSError(errno.ESTALE, "Stale file handle", str(root))
        return scan(root)

    monkeypatch.setattr(folder, "scan", flaky_scan)
    assert len(data.open_dataset(f"folder:{pictures}").train) == 4
    assert failed == [pictures / "train"]


def break_open_files(path):
    """Makes every open file that is `path` fail; returns how many there are."""
    broken, count = os.open(FAILING_FILE, os.O_RDONLY), 0
    for number in map(int, os.listdir("/proc/self/fd")):
        link = f"/proc/self/fd/{number}"
        if os.path.exists(link) and os.path.realpath(link) == str(path):
            os.dup2(broken, number)
            count += 1
    os.close(broken)
    return count


@needs_failing_file
def test_array_record_that_fails_is_opened_anew(tmp_path):
    path = write_dataset(tmp_path) / "tiny-train.array_record-00001-of-00002"
    source = data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train
    expected = [source[i].image for i in range(len(source))]
    assert break_open_files(path) == 1
    with pytest.raises(OSError, match=FAILURE) as caught:
        _ = source[7]
    assert caught.value.filename == "tfds:tiny:train[7]"
    assert caught.value.errno == errno.EIO
    assert [source[i].image for i in range(len(source))] == expected
    assert break_open_files(path) == 1
    (batch,) = train(source, steps=1, batch_size=10)
    assert sorted(batch.labels.ravel()) == sorted(i % 3 for i in range(10))
    assert batch.bad_records == ()


def test_array_record_that_is_missing_is_a_bad_record_until_it_is_back(tmp_path):
    path = write_dataset(tmp_path) / "tiny-train.array_record-00001-of-00002"
    source = data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train
    away = path.rename(tmp_path / "away")
    with pytest.raises(data.UnreadableRecordError) as caught:
        _ = source[7]
    assert str(caught.value) == "tfds:tiny:train[7]: No such file or directory"
    away.rename(path)
    assert source[7].label == 1


def test_array_record_that_is_cut_short_is_a_bad_record(tmp_path):
    path = write_dataset(tmp_path) / "tiny-train.array_record-00001-of-00002"
    os.truncate(path, 2**16)
    source = data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train
    with pytest.raises(data.UnreadableRecordError, match="the record is empty"):
        _ = source[7]
