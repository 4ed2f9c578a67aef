"""From a run's checkpoint to a weights file with all its metadata."""

import dataclasses
import json

import chex
import cv2
import jax
import numpy as np
import pytest

from configs import digits
import nfnets
from nfnets import inference
from nfnets.errors import UserError
from nfnets.tools import extract, predict
from nfnets.training.checkpoints import Checkpoints
from nfnets.training.config import flatten, resolve
from nfnets.training.provenance import Provenance
from nfnets.training.run_evaluation import evaluate_weights
from nfnets.training.state import build_model, build_optimizer, create_state
from nfnets.training.step import replicate
from nfnets.training.workdir import read_run
from tests.training.micro import PROVENANCE, small_state
from tests.weights.helpers import MICRO

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


def test_weights_and_metadata_of_a_run(run, tmp_path, capsys):
    workdir, params = run
    out = tmp_path / "w.safetensors"
    extract.main([f"--workdir={workdir}", f"--out={out}"])
    chex.assert_trees_all_equal(nfnets.load_weights(out)[0], params)
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
    chex.assert_trees_all_equal(averaged, jax.tree.map(lambda x: np.asarray(x + 1), params))


def test_a_run_classifies_without_a_weights_file(run, tmp_path, capsys):
    workdir, _ = run
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    arguments = [str(tmp_path / "a.png"), "--format=json"]
    assert predict.main([f"--workdir={workdir}", *arguments]) == 0
    by_run = json.loads(capsys.readouterr().out)
    out = tmp_path / "w.safetensors"
    extract.main([f"--workdir={workdir}", f"--out={out}"])
    capsys.readouterr()
    assert predict.main([f"--weights={out}", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == by_run
    assert by_run[0]["predictions"][0]["name"] in NAMES


def test_the_best_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(small_state(step), PROVENANCE)
    checkpoints.close()
    lines = [{"step": s, "eval/top1": top1} for s, top1 in ((1, 0.2), (2, 0.6), (3, 0.4))]
    lines.append({"step": 4, "eval/top1": 0.9})  # has no checkpoint
    with pytest.raises(UserError, match="no checkpoint with eval/top1"):
        read_run(tmp_path, step="best")
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_run(tmp_path, step="best").step == 2
    assert read_run(tmp_path).step == 3


def test_missing_runs_averages_and_steps(run, tmp_path):
    workdir, _ = run
    for arguments, message in (
        ([f"--workdir={tmp_path}"], "holds no run"),
        ([f"--workdir={workdir}", "--average=swa"], "no average 'swa'; it has raw, ema"),
        ([f"--workdir={workdir}", "--step=7"], "no checkpoint of step 7; it has 0"),
        ([], "the following arguments are required: --workdir"),
    ):
        with pytest.raises(UserError, match=message):
            extract.main([*arguments, f"--out={tmp_path}/w"])


def test_evaluation_builds_the_model_of_the_file(run, tmp_path, capsys):
    workdir, _ = run
    out = tmp_path / "w.safetensors"
    extract.main([f"--workdir={workdir}", f"--out={out}"])
    config = digits.get_config()
    config.eval.image_size = 20
    (result,) = evaluate_weights(config, str(out)).values()
    params, state, info = extract.extract(str(workdir))
    gelu = dataclasses.replace(info, overrides=MICRO)
    nfnets.save_weights(out, params, state, gelu)
    (other,) = evaluate_weights(config, str(out)).values()
    assert result["examples"] == other["examples"] == 360
    assert result["loss"] != other["loss"]


def test_metadata_of_a_model_of_ones_own(run):
    config = resolve(digits.get_config(), num_train=1437, num_classes=10)
    own = dataclasses.replace(config.model, name="package.module:function")
    info = extract.describe_config(dataclasses.replace(config, model=own))
    assert (info.model, info.num_classes, info.image_size) == (None, 10, 32)
    assert info.stddev_rgb[0] == 0.229 * 255
