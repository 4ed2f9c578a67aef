"""Which checkpoints are kept, and what they hold."""

import dataclasses
import shutil
import time
import types

import numpy as np
import orbax.checkpoint as ocp
import pytest

from nfnets.errors import UserError
from nfnets.training.checkpoints import Checkpoints
from nfnets.training.provenance import Provenance, check_same_run
from nfnets.training.workdir import Workdir
from tests.training.micro import PROVENANCE, make_config, small_state


def test_newest_and_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=1)
    for step, top1 in ((1, 0.1), (2, 0.9), (3, 0.5), (4, 0.6), (5, None)):
        metrics = None if top1 is None else {"eval/top1": top1}
        checkpoints.save(small_state(step), PROVENANCE, metrics)
    checkpoints.close()
    assert Checkpoints(tmp_path).all_steps() == [2, 4, 5]


def test_metrics_without_the_best_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=1)
    for step in (1, 2):
        checkpoints.save(small_state(step), PROVENANCE, {"eval/loss": 0.5})
    checkpoints.close()
    assert Checkpoints(tmp_path).all_steps() == [2]


def test_a_saved_state_is_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    state = small_state(7)
    checkpoints.save(state, PROVENANCE)
    checkpoints.save(state, PROVENANCE)  # the same step again changes nothing
    checkpoints.wait()
    got = checkpoints.restore(7, state)
    assert int(got.step) == 7
    np.testing.assert_array_equal(got.params["net"]["w"], [0, 7, 14, 21])
    np.testing.assert_array_equal(got.opt_state[0], [7, 7])
    assert isinstance(got.params["net"]["w"], np.ndarray)
    assert checkpoints.read_provenance(7) == PROVENANCE


def test_what_is_being_saved_is_copied(tmp_path, monkeypatch):
    """The next step overwrites the state's memory."""
    checkpoints = Checkpoints(tmp_path)
    state, saved = small_state(1), []
    monkeypatch.setattr(
        checkpoints._manager, "save", lambda step, args, metrics: saved.append(args)
    )
    checkpoints.save(state, PROVENANCE)
    arrays = saved[0]["state"].item
    weight = np.asarray(state.params["net"]["w"])  # a view on CPU
    np.testing.assert_array_equal(arrays["params|net|w"], weight)
    assert not np.shares_memory(arrays["params|net|w"], weight)


def test_a_failed_save_is_retried_once(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Workdir(make_config(), tmp_path) as workdir:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
            workdir.save(small_state(1), PROVENANCE)
        assert not workdir.needs_saving()
        now[0] += 31
        assert workdir.needs_saving()
        workdir.save(small_state(2), PROVENANCE)
        now[0] += 31
        assert not workdir.needs_saving()
    assert "the disk has 0 MB left" in capsys.readouterr().out


def test_other_arrays_are_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_state(1), PROVENANCE)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"params\|net\|w is \[4\] there and \[5\] here"):
        checkpoints.restore(1, small_state(1, size=5))


def test_differences_between_two_runs(tmp_path):
    def current(**changes):
        return Provenance(
            config={**PROVENANCE.config, **changes}, class_names=("x", "y"), bad_records=0
        )

    assert check_same_run(PROVENANCE, current(), tmp_path) == []
    assert check_same_run(PROVENANCE, current(seed=1), tmp_path) == ["seed: 0 -> 1"]
    clipped = dataclasses.replace(PROVENANCE, config={"optimizer.clipping": 0.01})
    more = current(**{"optimizer.clipping": 0.02})
    changes = check_same_run(clipped, more, tmp_path)
    assert changes == ["optimizer.clipping: 0.01 -> 0.02"]
    other_runs = (
        {"model.name": "b"},
        {"optimizer.clipping": 0.1},
        {"model.activation": "relu"},
        {"model.overrides.alpha": 0.3},
        {"data.batch_size": 32},
    )
    stored = dict.fromkeys(("model.activation", "model.overrides.alpha", "data.batch_size"))
    full = dataclasses.replace(PROVENANCE, config={**PROVENANCE.config, **stored})
    for changes in other_runs:
        with pytest.raises(UserError, match="checkpoint of another run"):
            check_same_run(full, current(**changes), tmp_path)
    other = Provenance(config=PROVENANCE.config, class_names=("x", "z"), bad_records=0)
    with pytest.raises(UserError, match="class names differ \\('y' there, 'z' here\\)"):
        check_same_run(PROVENANCE, other, tmp_path)


def test_what_is_held_out_may_not_change(tmp_path):
    def provenance(**changes):
        config = {"seed": 0, "data.eval_fraction": 0.1, "data.apply_exif": True}
        names = changes.pop("class_names", ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "y"))
        return Provenance(config={**config, **changes}, class_names=names, num_train=10)

    stored = provenance()
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        check_same_run(stored, provenance(seed=1), tmp_path)
    other = provenance(**{"data.eval_fraction": 0.2})
    with pytest.raises(UserError, match="data.eval_fraction is 0.1 there and 0.2 here"):
        check_same_run(stored, other, tmp_path)
    # The same name on a file system that decomposes accents.
    same = provenance(class_names=("cafe\N{COMBINING ACUTE ACCENT}", "y"))
    assert check_same_run(stored, same, tmp_path) == []
    more = dataclasses.replace(stored, num_train=1234)
    assert check_same_run(stored, more, tmp_path) == ["training images: 10 -> 1,234"]


def test_fields_that_older_runs_lack_have_their_former_values(tmp_path):
    old = Provenance(config={"seed": 0}, class_names=("x", "y"))
    current = {"data.apply_exif": False, "data.eval_fraction": 0.0, "seed": 0}
    new = Provenance(config=current, class_names=("x", "y"), num_train=10)
    assert check_same_run(old, new, tmp_path) == []
    turned = dataclasses.replace(new, config={**current, "data.apply_exif": True})
    changes = check_same_run(old, turned, tmp_path)
    assert changes == ["data.apply_exif: False -> True"]
    fraction = dataclasses.replace(new, config={**current, "data.eval_fraction": 0.1})
    with pytest.raises(UserError, match="data.eval_fraction is 0.0 there and 0.1 here"):
        check_same_run(old, fraction, tmp_path)


def test_files_of_a_failed_save_are_removed_after_the_next_one(tmp_path, monkeypatch):
    """Its threads may keep writing after the cleanup."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_state(1), PROVENANCE)
    checkpoints.wait()

    def fail(*arguments, **options):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(OSError, match="checkpoint 2: no space"):
            checkpoints.save(small_state(2), PROVENANCE)
    late = tmp_path / "checkpoints" / f"2{ocp.utils.TMP_DIR_SUFFIX}1"
    late.mkdir()
    checkpoints.save(small_state(2), PROVENANCE)
    checkpoints.wait()
    assert checkpoints.all_steps() == [2]
    assert not late.exists()
