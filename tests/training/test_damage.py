"""Every file of a checkpoint, damaged in several ways: exact, or reported."""

import shutil

import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.training.checkpoints import Checkpoints, DamagedCheckpointError
from tests.training.micro import PROVENANCE, small_state


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    if data:
        data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)


def flipped_first(path):
    flip(path, 0)


def flipped_middle(path):
    flip(path, path.stat().st_size // 2, bit=3)


HARMS = (halved, emptied, lambda path: path.unlink(), flipped_first, flipped_middle)
HARM_NAMES = ("halved", "emptied", "deleted", "flipped_first", "flipped_middle")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir with checkpoints of the steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("whole")
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (1, 2):
        checkpoints.save(small_state(step, size=300), PROVENANCE, {"eval/top1": 0.5})
    checkpoints.close()
    return workdir


def files_of(workdir, step):
    folder = workdir / "checkpoints" / str(step)
    return sorted(p.relative_to(workdir) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("harm", HARMS, ids=HARM_NAMES)
def test_every_file_of_the_newest_checkpoint(whole, tmp_path, capfd, harm):
    names = files_of(whole, 2)
    assert len(names) > 8
    fallen_back = []
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(whole, workdir)
        harm(workdir / name)
        lines = []
        checkpoints = Checkpoints(workdir)
        state, provenance = checkpoints.restore_newest(
            small_state(0, size=300), log=lines.append
        )
        checkpoints.close()
        step = int(state.step)
        assert provenance == PROVENANCE
        want = np.arange(300.0, dtype=np.float32) * step
        np.testing.assert_array_equal(state.params["net"]["w"], want)
        np.testing.assert_array_equal(state.opt_state[0], [step, step])
        if step == 2:
            assert not lines
        else:
            assert step == 1
            (line,) = lines
            assert "checkpoints/2 is damaged: " in line
            assert "moved to " in line
            assert (workdir / "damaged").is_dir()
            fallen_back.append(name)
    # Files that hold what is needed were among them.
    assert any("/state/" in f"/{name}" for name in fallen_back)
    if harm in (halved, emptied):  # a flipped bit may be in a field that is not used
        assert any("provenance" in str(name) for name in fallen_back)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("harm", [halved, flipped_middle])
def test_weights_for_evaluation_are_exact_or_refused(whole, tmp_path, harm):
    for number, name in enumerate(files_of(whole, 2)):
        workdir = tmp_path / str(number)
        shutil.copytree(whole, workdir)
        harm(workdir / name)
        checkpoints = Checkpoints(workdir)
        try:
            params, _ = checkpoints.restore_weights(2)["raw"]
        except DamagedCheckpointError as error:
            assert "checkpoints/2 is damaged: " in str(error)
        else:
            np.testing.assert_array_equal(params["net"]["w"], np.arange(300.0) * 2)
        finally:
            checkpoints.close()


def test_all_of_them_damaged(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for step in (1, 2):
        for name in files_of(whole, step):
            flip(tmp_path / name, 1)
    before = {p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    lines = []
    with pytest.raises(UserError, match="can be read; choose another --workdir"):
        Checkpoints(tmp_path).restore_newest(small_state(0, 300), log=lines.append)
    assert len(lines) == 2
    assert before == {p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    # Starting again does not mistake the workdir for a new one.
    with pytest.raises(UserError, match="can be read; choose another --workdir"):
        Checkpoints(tmp_path).restore_newest(small_state(0, 300), log=lines.append)
