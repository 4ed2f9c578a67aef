"""Which checkpoints stay, and what they say."""

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nfnets.errors import UserError
from nfnets.training.checkpoints import Checkpoints
from nfnets.training.provenance import Provenance, check_same_run
from nfnets.training.state import TrainState
from nfnets.training.step import replicate

PROVENANCE = Provenance(
    config={"model.name": "a", "seed": 0, "optimizer.clipping": None},
    class_names=("x", "y"),
    bad_records=3,
)


def make_state(step, size=4):
    return replicate(
        TrainState(
            step=jnp.asarray(step, jnp.int32),
            params={"net": {"w": jnp.arange(float(size)) * step}},
            net_state={},
            opt_state=(jnp.ones(2) * step, ()),
            ema={"ema": ({"net": {"w": jnp.ones(size)}}, {})},
        )
    )


def test_newest_and_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_best=1)
    for step, top1 in ((1, 0.1), (2, 0.9), (3, 0.5), (4, 0.6), (5, None)):
        metrics = None if top1 is None else {"eval/top1": top1}
        checkpoints.save(make_state(step), PROVENANCE, metrics)
    checkpoints.close()
    assert Checkpoints(tmp_path).all_steps() == [2, 4, 5]


def test_what_was_saved_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    state = make_state(7)
    checkpoints.save(state, PROVENANCE)
    checkpoints.save(state, PROVENANCE)  # the same step again changes nothing
    checkpoints.wait()
    got = checkpoints.restore(7, state)
    assert int(got.step) == 7
    np.testing.assert_array_equal(got.params["net"]["w"], [0, 7, 14, 21])
    np.testing.assert_array_equal(got.opt_state[0], [7, 7])
    assert isinstance(got.params["net"]["w"], np.ndarray)
    assert checkpoints.read_provenance(7) == PROVENANCE


def test_other_arrays_are_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(1), PROVENANCE)
    checkpoints.wait()
    with pytest.raises(UserError, match=r"params\|net\|w is \[4\] there and \[5\] here"):
        checkpoints.restore(1, make_state(1, size=5))


def test_what_differs_between_two_runs(tmp_path):
    def current(**changes):
        return Provenance(
            config={**PROVENANCE.config, **changes}, class_names=("x", "y"), bad_records=0
        )

    assert check_same_run(PROVENANCE, current(), tmp_path) == []
    assert check_same_run(PROVENANCE, current(seed=1), tmp_path) == ["seed: 0 -> 1"]
    for changes in ({"model.name": "b"}, {"optimizer.clipping": 0.1}):
        with pytest.raises(UserError, match="checkpoint of another run"):
            check_same_run(PROVENANCE, current(**changes), tmp_path)
    other = Provenance(config=PROVENANCE.config, class_names=("x", "z"), bad_records=0)
    with pytest.raises(UserError, match="class names differ \\('y' there, 'z' here\\)"):
        check_same_run(PROVENANCE, other, tmp_path)


def test_what_a_failed_attempt_leaves_goes_with_the_next_success(tmp_path, monkeypatch):
    """Its threads may write on after the room has been made."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(1), PROVENANCE)
    checkpoints.wait()

    def fail(*arguments, **options):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(OSError, match="checkpoint 2: no space"):
            checkpoints.save(make_state(2), PROVENANCE)
    late = tmp_path / "checkpoints" / f"2{ocp.utils.TMP_DIR_SUFFIX}1"
    late.mkdir()
    checkpoints.save(make_state(2), PROVENANCE)
    checkpoints.wait()
    assert checkpoints.all_steps() == [2]
    assert not late.exists()
