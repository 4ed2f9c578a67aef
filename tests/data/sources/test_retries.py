"""Transient read errors, slow sources, and the errors that name their records."""

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
from nfnets.data.sources import folder_files, retries
from nfnets.errors import UserError
from tests.data.helpers import FlakySource, NumberedSource, write_folder
from tests.data.sources.tfds_files import write_dataset

CROP = data.CropOptions(image_size=4)
QUICK = data.Retries(first_wait=0.001, patience=30)
IMPATIENT = data.Retries(first_wait=0.001, patience=0.01)
# Reading in one thread, in threads, in a worker process.
WAYS = [{"threads": 0, "prefetch": 0}, {"threads": 3}, {"threads": 2, "workers": 1}]
# A file that can be opened, but every read fails with this message.
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


class FakeEvent(list):
    """An event that records waits instead of waiting, and is set after `limit` of them."""

    limit = None

    def wait(self, seconds):
        self.append(seconds)
        assert len(self) < 100
        return len(self) == self.limit

    def is_set(self):
        return False


@pytest.fixture
def waits(monkeypatch):
    """The waits so far; time passes only while waiting."""
    waits = FakeEvent()
    monkeypatch.setattr(retries.time, "monotonic", lambda: sum(waits))
    return waits


def retrying(source, waits, **options):
    return retries.RetryingSource(source, data.Retries(**options), waits)


def test_waits_double_up_to_five_seconds_until_patience_ends(waits, tmp_path):
    source = retrying(FlakySource(3, -1, flaky=(1,), marks=str(tmp_path)), waits)
    with pytest.raises(UserError) as caught:
        _ = source[1]
    np.testing.assert_allclose(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2] + 10 * [5])
    assert str(caught.value) == (
        "cannot read record 1: Input/output error (17 attempts in 56.3 s); "
        "check the disk or the network file system, then rerun the command"
    )
    assert source[2].label == 2 and len(source) == 3
    assert len(waits) == 16


def test_first_wait_is_bounded(waits, tmp_path):
    source = FlakySource(3, failures=2, flaky=(1,), marks=str(tmp_path))
    assert retrying(source, waits, first_wait=1000)[1].label == 1
    assert waits == [5, 5]


def test_retries_end_when_cancelled(waits, tmp_path):
    source = FlakySource(3, failures=-1, flaky=(1,), marks=str(tmp_path))
    waits.limit = 2
    with pytest.raises(retries.CancelledError, match="reading record 1 was cancelled"):
        retrying(source, waits)[1]
    assert len(waits) == 2


def test_cancel_event_stays_in_its_process():
    event = retries.CancelEvent()
    event.set()
    assert event.is_set() and not pickle.loads(pickle.dumps(event)).is_set()


def test_duration_of_the_attempts_counts(waits):
    def read():
        waits.append(50.0)  # a read that times out
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with pytest.raises(UserError, match=r"cannot read x: .*timed out \(3 attempts in 100"):
        retries.retry(read, "x", cancel=waits)


TRANSIENT = ["EIO", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ENOTCONN", "EAGAIN", "EMFILE"]
PERMANENT = ["ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG"]


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_errors_are_retried(waits, tmp_path, name):
    code = getattr(errno, name)
    source = FlakySource(3, failures=4, flaky=(1,), marks=str(tmp_path), code=code)
    assert retrying(source, waits)[1].label == 1
    assert len(waits) == 4


@pytest.mark.parametrize("name", PERMANENT)
def test_permanent_errors_are_not_retried(waits, tmp_path, name):
    code = getattr(errno, name)
    source = FlakySource(3, failures=1, flaky=(1,), marks=str(tmp_path), code=code)
    with pytest.raises(data.UnreadableRecordError) as caught:
        retrying(source, waits)[1]
    assert str(caught.value) == f"record 1: {os.strerror(code)}"
    assert not waits


def test_errors_without_a_name_or_number(waits):
    class Bare(NumberedSource):
        def __getitem__(self, index):
            raise FileNotFoundError if index else ConnectionResetError("reset\nby peer")

    source = retrying(Bare(2), waits)
    with pytest.raises(UserError, match=r"cannot read record 0: reset \(17 attempts"):
        _ = source[0]
    with pytest.raises(data.UnreadableRecordError, match="record 1: FileNotFoundError"):
        _ = source[1]


@pytest.mark.parametrize("way", WAYS)
def test_retries_do_not_change_the_batches(way, tmp_path):
    # Grain polls its workers every second; three pauses take longer.
    seconds = 0.4 if "workers" in way else 0
    source = FlakySource(11, 3, (4, 7), str(tmp_path), undecodable=(4,), seconds=seconds)
    expected = train(NumberedSource(11, undecodable=(4,)))
    assert_same(train(source, **way), expected)
    assert [name for batch in expected for name in batch.bad_records] == ["record 4"]
    # In several threads, a record of two epochs may be read at the same time.
    assert all((tmp_path / number).stat().st_size >= 3 for number in "47")


@pytest.mark.parametrize("way", WAYS[:2])
def test_retries_do_not_change_the_evaluation(way, tmp_path):
    source = FlakySource(11, failures=3, flaky=(0, 2, 3, 7), marks=str(tmp_path))
    assert_same(evaluate(source, **way), evaluate(NumberedSource(11)))
    assert all(path.stat().st_size == 3 for path in tmp_path.iterdir())


def test_undecodable_record_is_read_once():
    reads = []

    class CountedSource(NumberedSource):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    with pytest.raises(UserError, match="cannot read record 4: not an image"):
        evaluate(CountedSource(11, undecodable=(4,)), **WAYS[0])
    assert reads[:5] == [0, 1, 2, 3, 4] and reads.count(4) == 1


@pytest.mark.parametrize("read", [train, evaluate])
@pytest.mark.parametrize("way", WAYS[:2])
def test_permanently_failing_record_is_named(way, read, tmp_path):
    source = FlakySource(11, failures=-1, flaky=(7,), marks=str(tmp_path))
    with pytest.raises(UserError, match=r"^cannot read record 7: Input/output error \("):
        read(source, retries=IMPATIENT, **way)


@pytest.mark.parametrize("way", WAYS[1:])
def test_closing_does_not_wait_for_a_failing_source(way, tmp_path):
    source = FlakySource(11, failures=-1, flaky=tuple(range(11)), marks=str(tmp_path))
    patient = data.Retries(first_wait=5, patience=12)
    batches = data.eval_batches(source, batch_size=6, image_size=4, retries=patient, **way)
    deadline = time.monotonic() + 30
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 2


def test_one_warning_covers_many_records(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(absl_logging, "_log_timer_per_token", {})
    everything = tuple(range(20))
    source = FlakySource(20, failures=2, flaky=everything, marks=str(tmp_path))
    with caplog.at_level("WARNING", logger="absl"):
        train(source, threads=0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Cannot read record ") and "\n" not in message
    assert ": Input/output error; retrying for up to 30 s" in message


def test_warnings_and_errors_of_workers_reach_the_user(tmp_path, capfd):
    source = FlakySource(9, failures=-1, flaky=(3,), marks=str(tmp_path))
    brief = data.Retries(first_wait=0.01, patience=0.1)
    with pytest.raises(UserError, match=r"^cannot read record 3: Input/output error \("):
        evaluate(source, workers=1, retries=brief)
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if "Cannot read record 3: Input" in line]) == 1
    assert not any("Traceback" in line for line in lines)


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
        train(source, retries=IMPATIENT, **way)
    timer = threading.Timer(0.3, whole.replace, [path])
    timer.start()
    assert_same(train(source, **way), expected)
    timer.join()


def test_missing_file_is_a_bad_record_at_once(pictures):
    source = data.open_dataset(f"folder:{pictures}").train
    os.unlink(source.path(2))
    started = time.monotonic()
    (batch,) = train(source, steps=1, retries=data.Retries(first_wait=5, patience=5000))
    assert batch.bad_records == (source.path(2),)
    assert time.monotonic() - started < 4


def test_folder_is_scanned_again_after_a_failure(pictures, monkeypatch):
    scan, failed = folder_files.scan, []

    def flaky_scan(root):
        if not failed:
            failed.append(root)
            raise OSError(errno.ESTALE, "Stale file handle", str(root))
        return scan(root)

    monkeypatch.setattr(folder_files, "scan", flaky_scan)
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
def test_array_record_that_fails_is_reopened(tmp_path):
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


def test_missing_array_record_is_a_bad_record_until_it_is_back(tmp_path):
    path = write_dataset(tmp_path) / "tiny-train.array_record-00001-of-00002"
    source = data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train
    away = path.rename(tmp_path / "away")
    with pytest.raises(data.UnreadableRecordError) as caught:
        _ = source[7]
    assert str(caught.value) == "tfds:tiny:train[7]: No such file or directory"
    away.rename(path)
    assert source[7].label == 1


def test_truncated_array_record_is_a_bad_record(tmp_path):
    path = write_dataset(tmp_path) / "tiny-train.array_record-00001-of-00002"
    os.truncate(path, 2**16)
    source = data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train
    with pytest.raises(data.UnreadableRecordError, match="the record is empty"):
        _ = source[7]
