"""Fixtures of the tests of whole runs."""

import fcntl
import pathlib

import pytest

from nfnets.training import loop
from tests.training import survival_config
from tests.training.processes import Place


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> pathlib.Path:
    """A folder that all of pytest's processes see."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def place() -> Place:
    """Starts runs as programs."""
    return Place()


@pytest.fixture(scope="session")
def undisturbed(shared_folder) -> pathlib.Path:
    """The workdir of a whole run, to be copied or compared with, not changed."""
    workdir = shared_folder / "undisturbed"
    with (shared_folder / "undisturbed.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (workdir / "finished").exists():
            loop.train(survival_config.get_config(), str(workdir))
            (workdir / "finished").touch()
    return workdir
