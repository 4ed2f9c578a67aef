"""A full disk: the run warns, continues, retries, and completes everything it writes."""

import contextlib
import os
import resource
import subprocess

import pytest

from tests.training.micro import assert_same_arrays, assert_same_end, stored_arrays
from tests.training.processes import DISTURBED, wait_for_checkpoint

# Bytes, less than the metrics and the checkpoints of a run.
LIMIT = 2000


def limit_files(run, size):
    """Limits the files of a running process to `size` bytes; None: no limit."""
    size = resource.RLIM_INFINITY if size is None else size
    resource.prlimit(run.popen.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextlib.contextmanager
def paused_run(place, workdir, disturb, *steps):
    """A run that stops at steps, which are reached one after the other."""
    pauses = ",".join(map(str, steps))
    with place.train(workdir, script=DISTURBED, DISTURB=disturb, PAUSE=pauses) as run:
        run.wait_for(f"^paused at {steps[0]}$")
        wait_for_checkpoint(workdir, steps[0] // 5 * 5)
        yield run


def assert_continued(run):
    assert run.end() == 0, str(run)
    # Threads of Orbax may report that their event loop was closed.
    assert not any(line.startswith("error: ") for line in run.errors), str(run)
    run.find(r"WARNING   cannot write metrics \(json\): .*; trying again later")
    run.find(r"metrics   are written again \(json\); none is missing")
    run.find(
        r"could not write checkpoint \d+: .*; the newest checkpoint is that of step 10"
    )


def test_files_that_cannot_grow_for_a_while(place, undisturbed, tmp_path):
    """Once in the middle of the run, and once when it is about to end."""
    with paused_run(place, tmp_path, "hurry:100", 12, 27, 38) as run:
        good = stored_arrays(tmp_path)
        assert int(good["step"]) == 10
        limit_files(run, LIMIT)
        run.release()
        run.wait_for("^paused at 27$")
        assert_same_arrays(stored_arrays(tmp_path), good)
        limit_files(run, None)
        run.release()
        run.wait_for("^paused at 38$")
        limit_files(run, LIMIT)
        run.release()
        run.wait_for("could not write checkpoint 40: .*; trying again in 0.1 s")
        limit_files(run, None)
        assert_continued(run)
    assert_same_end(tmp_path, undisturbed)
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("this user must not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path):
    """Writes zeros until there is no room for one more."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(2**16)):
            pass
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"0"):
            pass


@pytest.mark.survival
def test_a_disk_that_is_full_for_a_while(place, undisturbed, small_disk):
    workdir, filler = small_disk / "run", small_disk / "filler"
    with paused_run(place, workdir, "hurry:50", 12, 27) as run:
        fill(filler)
        assert os.statvfs(small_disk).f_bavail == 0
        run.release()
        run.wait_for("^paused at 27$")
        assert int(stored_arrays(workdir)["step"]) == 10
        assert "could not write checkpoint" in run.output
        assert "the disk has 0 MB left, of about" in run.output
        assert run.errors == []
        filler.unlink()
        run.release()
        assert_continued(run)
    assert_same_end(workdir, undisturbed)


@pytest.mark.survival
def test_a_disk_that_stays_full(place, undisturbed, small_disk):
    workdir = small_disk / "run"
    with paused_run(place, workdir, "hurry:3", 38) as run:
        fill(small_disk / "filler")
        run.release()
        assert run.end() == 1, str(run)
    (line,) = run.errors
    assert line.startswith("error: could not write checkpoint 40: the disk has 0 MB left")
    assert "the newest checkpoint is that of step 35: free some space and rerun" in line
    assert_same_arrays(stored_arrays(workdir), stored_arrays(undisturbed, 35))
