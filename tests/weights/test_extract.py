"""From a run's checkpoint to a weights file that says everything."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import digits
import nfnets
from nfnets import inference
from nfnets.errors import UserError
from nfnets.training import scoring
from nfnets.training.checkpoints import Checkpoints, Provenance
from nfnets.training.config import flatten, resolve
from nfnets.training.state import build_model, build_optimizer, create_state
from nfnets.training.step import replicate
from nfnets.weights import extract
from tests.weights.helpers import MICRO, assert_same_trees

NAMES = tuple("abcdefghij")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of step 0 whose averages differ from its weights."""
    workdir = tmp_path_factory.mktemp("run")
    config = digits.get_config()
    config.model.overrides.update(MICRO)
    config.model.activation = "silu"
    config.eval.image_size = 20
    config = resolve(config, num_train=1437, num_classes=10)
    state = create_state(config, build_model(config), build_optimizer(config))
    params, net_state = state.ema["ema"]
    ema = {"ema": (jax.tree.map(lambda x: x + 1, params), net_state)}
    checkpoints = Checkpoints(workdir)
    provenance = Provenance(config=flatten(config), class_names=NAMES, bad_records=0)
    checkpoints.save(replicate(state._replace(ema=ema)), provenance)
    checkpoints.close()
    return workdir, jax.device_get(params)


def test_the_file_says_what_the_run_was(run, tmp_path, capsys):
    workdir, params = run
    out = tmp_path / "w.safetensors"
    extract.main([f"--workdir={workdir}", f"--out={out}"])
    assert_same_trees(nfnets.load_weights(out)[0], params)
    info = nfnets.read_weights_info(out)
    assert info.class_names == NAMES
    assert info.overrides == {**MICRO, "activation": "silu"}
    assert (info.model, info.num_classes, info.image_size) == ("nfnet_tiny", 10, 20)
    assert info.preprocessing == "resize"
    assert info.source == f"run {workdir}, step 0, raw weights, data digits"
    assert info.source in capsys.readouterr().out
    classifier = inference.load_classifier(str(out))
    assert classifier.model.spec.activation == "silu"

    extract.main([f"--workdir={workdir}", f"--out={out}", "--average=ema", "--step=0"])
    averaged, _ = nfnets.load_weights(out)
    assert_same_trees(averaged, jax.tree.map(lambda x: np.asarray(x + 1), params))


def test_what_there_is_not(run, tmp_path):
    workdir, _ = run
    for arguments, message in (
        ([f"--workdir={tmp_path}"], "holds no run"),
        ([f"--workdir={workdir}", "--average=swa"], "no average 'swa'; it has raw, ema"),
        ([f"--workdir={workdir}", "--step=7"], "no checkpoint of step 7; it has 0"),
        ([], "the following arguments are required: --workdir"),
    ):
        with pytest.raises(UserError, match=message):
            extract.main([*arguments, f"--out={tmp_path}/w"])


def test_evaluation_builds_the_model_that_the_file_says(run, tmp_path, capsys):
    workdir, _ = run
    out = tmp_path / "w.safetensors"
    extract.main([f"--workdir={workdir}", f"--out={out}"])
    config = digits.get_config()
    config.eval.image_size = 20
    (result,) = scoring.evaluate_weights(config, str(out)).values()
    params, state, info = extract.extract(str(workdir))
    gelu = dataclasses.replace(info, overrides=MICRO)
    nfnets.save_weights(out, params, state, gelu)
    (other,) = scoring.evaluate_weights(config, str(out)).values()
    assert result["examples"] == other["examples"] == 360
    assert result["loss"] != other["loss"]
