"""What the tests of survival share: compiled programs, and the run that nobody disturbs."""

import fcntl
import pathlib

import pytest

from tests.training.processes import Place


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> pathlib.Path:
    """A folder that all of pytest's processes see."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def place(shared_folder) -> Place:
    """Starts runs that share what they compile."""
    return Place(shared_folder / "xla")


@pytest.fixture(scope="session")
def undisturbed(place, shared_folder) -> pathlib.Path:
    """The workdir of a whole run, to be copied or compared with, not changed."""
    workdir = shared_folder / "undisturbed"
    with (shared_folder / "undisturbed.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (workdir / "curves.png").exists():
            place.train_to_end(workdir)
    return workdir
