"""Whole runs: trained, stopped, resumed, evaluated, refused."""

import dataclasses
import json
import shutil

import chex
import cv2
import jax
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.tools import extract, train
from nfnets.training import loop, run_evaluation
from nfnets.training.checkpoints import Checkpoints
from nfnets.training.config import resolve
from nfnets.training.metric_writers import read_metrics
from nfnets.training.state import build_model, build_optimizer, create_state, draw_weights
from nfnets.weights import WeightsInfo, load_weights, save_weights
from tests.training.micro import run_config as make_config

STEPS = 6


def read_state(workdir, config, step=None):
    resolved = resolve(config, num_train=1437, num_classes=10)
    template = jax.eval_shape(
        lambda: create_state(resolved, build_model(resolved), build_optimizer(resolved))
    )
    checkpoints = Checkpoints(workdir)
    return checkpoints.restore(step or checkpoints.latest_step(), template)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, to be copied, not changed."""
    workdir = tmp_path_factory.mktemp("finished")
    loop.train(make_config(), str(workdir))
    train._draw_curves(str(workdir))
    return workdir


def test_files_of_a_run(finished):
    entries = read_metrics(finished / "metrics.jsonl")
    assert [e["step"] for e in entries if "train/loss" in e] == [2, 4, 6]
    assert [e["step"] for e in entries if "eval/top1" in e] == [4, 6]
    first = entries[0]
    for key in (
        "top1",
        "learning_rate",
        "images_per_sec",
        "data_wait",
        "agc_clipped_fraction",
    ):
        assert f"train/{key}" in first
    assert first["train/images_per_sec"] > 0
    assert first["train/bad_records"] == 0
    last = entries[-1]
    assert last["eval/examples"] == 360
    assert 0 <= last["eval/top1"] <= last["eval/top5"] <= 1
    assert {"eval/ema_top1", "eval/ema_loss"} <= last.keys()
    config = json.loads((finished / "config.json").read_text())
    assert config["model"]["num_classes"] == 10
    assert config["train"]["steps"] == STEPS
    assert cv2.imread(str(finished / "curves.png")).std() > 1
    assert list(finished.glob("events.*.out.tfevents.*"))
    assert Checkpoints(finished).all_steps() == [3, 6]


def test_evaluation_repeats_the_metrics_of_the_run_exactly(finished, capsys):
    run_evaluation.evaluate_workdir(make_config(), str(finished))
    table = capsys.readouterr().out
    reported = read_metrics(finished / "metrics.jsonl")[-1]
    result = json.loads((finished / "eval.json").read_text())
    for key in ("examples", "top1", "top5", "loss"):
        assert result[key] == reported[f"eval/{key}"]
    for key in ("top1", "top5", "loss"):
        assert result["ema"][key] == reported[f"eval/ema_{key}"]
    assert f"{result['top1']:.2%}" in table
    # Another split of the same examples counts the same ones.
    again = run_evaluation.evaluate_workdir(make_config(eval__batch_size=7), str(finished))
    assert again["raw"]["examples"] == 360
    assert again["raw"]["top1"] == result["top1"]


def test_resuming_is_exact(finished, tmp_path):
    """Stopped after 3 of 6 steps, mid-epoch: the same bits as the run that was not."""
    shutil.copytree(finished / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
    shutil.copy(finished / "metrics.jsonl", tmp_path)
    loop.train(make_config(), str(tmp_path))
    state = read_state(tmp_path, make_config())
    chex.assert_trees_all_equal(state, read_state(finished, make_config()))
    assert int(state.step) == STEPS
    losses = {
        folder: {
            e["step"]: e["train/loss"]
            for e in read_metrics(folder / "metrics.jsonl")
            if "train/loss" in e
        }
        for folder in (finished, tmp_path)
    }
    assert losses[tmp_path].keys() == losses[finished].keys()
    assert losses[tmp_path][6] == losses[finished][6]


def test_a_finished_run_stays_as_it_is(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    loop.train(make_config(), str(finished))
    assert (finished / "metrics.jsonl").read_text() == before
    assert f"has already made its {STEPS} steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__name": "nfnet_f0"},
            "model.name is 'nfnet_tiny' there and 'nfnet_f0'",
        ),
        ({"model__num_classes": 12}, "model.num_classes is 10 there and 12 here"),
        ({"optimizer__clipping": None}, "optimizer.clipping is 0.08 there and None here"),
        ({"data__source": "synthetic:64"}, "classes"),
    ],
)
def test_another_runs_workdir_is_refused(finished, changes, message):
    with pytest.raises(UserError, match="holds a checkpoint of another run: .*" + message):
        loop.train(make_config(**changes), str(finished))


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    loop.train(make_config(), str(workdir), dry_run=True)
    assert not workdir.exists()
    text = capsys.readouterr().out
    assert "parameters" in text
    assert "multiply-adds at 16 px" in text
    assert "one step on fake data: loss 2.3" in text


def test_weights_start_a_run_with_another_head(finished, tmp_path, capsys):
    state = read_state(finished, make_config())
    path = tmp_path / "w.safetensors"
    info = WeightsInfo(model="nfnet_tiny", num_classes=10, class_names=("a", "b"))
    save_weights(path, state.params, state.net_state, info)
    params, net_state = load_weights(path)
    assert net_state == {}
    chex.assert_trees_all_equal(params, dict(state.params))

    results = run_evaluation.evaluate_weights(make_config(), str(path))
    reported = read_metrics(finished / "metrics.jsonl")[-1]
    assert results["raw"]["top1"] == reported["eval/top1"]

    config = make_config(
        model__name="nfnet_f0",  # the file's model takes precedence
        model__num_classes=12,
        train__steps=1,
        train__warmup_steps=0,
    )
    config.init_from = str(path)
    config.lock()  # as the command line does
    loop.train(config, str(tmp_path / "run"))
    text = capsys.readouterr().out
    assert "has 10 classes, this run has 12: the classifier is re-initialized" in text
    assert "model     nfnet_tiny instead of nfnet_f0" in text


def test_weights_are_evaluated_with_their_own_preprocessing(tmp_path, monkeypatch):
    config = make_config()
    info = WeightsInfo(
        model="nfnet_tiny",
        num_classes=10,
        image_size=24,
        mean_rgb=(1, 2, 3),
        stddev_rgb=(4, 5, 6),
        preprocessing="squash",
        crop_fraction=0.9,
    )
    resolved = resolve(config, num_classes=10)
    params, state = draw_weights(resolved, build_model(resolved))
    save_weights(tmp_path / "w", params, state, info)
    seen = []

    def evaluator(config, dataset):
        seen.append(resolve(config, num_classes=dataset.num_classes))
        return lambda weights: {"raw": {"examples": 0}}

    monkeypatch.setattr(run_evaluation, "_evaluator", evaluator)
    config.eval.image_size = config.eval.preprocessing = None
    run_evaluation.evaluate_weights(config, str(tmp_path / "w"))
    config.eval.image_size, config.eval.preprocessing = 16, "resize"
    run_evaluation.evaluate_weights(config, str(tmp_path / "w"))
    found = [(c.eval.image_size, c.eval.preprocessing, c.eval.crop_fraction) for c in seen]
    assert found == [(24, "squash", 0.9), (16, "resize", 0.9)]
    assert {c.data.mean_rgb for c in seen} == {(1, 2, 3)}
    assert {c.data.stddev_rgb for c in seen} == {(4, 5, 6)}


def test_weights_of_another_model_are_refused(finished, tmp_path):
    state = read_state(finished, make_config())
    path = tmp_path / "w.safetensors"
    save_weights(path, {m: a for m, a in state.params.items() if "final" not in m})
    with pytest.raises(UserError, match="3 missing .*final_conv"):
        run_evaluation.evaluate_weights(make_config(), str(path))
    with pytest.raises(UserError, match="no weights file"):
        run_evaluation.evaluate_weights(make_config(), "nowhere.safetensors")
    path.write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="is not a weights file"):
        run_evaluation.evaluate_weights(make_config(), str(path))


def test_no_run_to_evaluate(tmp_path, finished):
    with pytest.raises(UserError, match="holds no run"):
        run_evaluation.evaluate_workdir(make_config(), str(tmp_path))
    with pytest.raises(UserError, match="no checkpoint of step 5; it has 3, 6"):
        run_evaluation.evaluate_workdir(make_config(), str(finished), step=5)
    with pytest.raises(UserError, match="was trained on 10"):
        run_evaluation.evaluate_workdir(
            make_config(data__source="synthetic:64"), str(finished)
        )


def write_images(folder, count, size=(40, 30)):
    rng = np.random.default_rng(len(str(folder)))
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels)


@pytest.fixture
def image_folder(tmp_path):
    root = tmp_path / "images"
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            write_images(root / split / name, count)
    return root


def folder_config(root, **changes):
    return make_config(
        data__source=f"folder:{root}",
        data__eval_split="val",
        data__batch_size=8,
        eval__batch_size=4,
        train__steps=2,
        eval__every=None,
        eval__every_epochs=None,
        **changes,
    )


def test_a_folder_of_images_trains_and_bad_ones_are_counted(image_folder, tmp_path):
    bad = image_folder / "train" / "cat" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    workdir = tmp_path / "run"
    loop.train(folder_config(image_folder), str(workdir))
    assert read_metrics(workdir / "metrics.jsonl")[0]["train/bad_records"] == 1
    checkpoints = Checkpoints(workdir)
    provenance = checkpoints.read_provenance(2)
    assert provenance.class_names == ("cat", "dog")
    assert provenance.bad_records == 1
    assert provenance.num_train == 12
    with pytest.raises(UserError, match=r"max_bad_records=0.*cat/0.jpg"):
        config = folder_config(image_folder, data__max_bad_records=0)
        loop.train(config, str(tmp_path / "other"))


def test_an_unreadable_evaluation_image_is_named_before_training(image_folder, tmp_path):
    bad = image_folder / "val" / "dog" / "1.jpg"
    bad.write_bytes(b"no image")
    for options in ({}, {"dry_run": True}):
        with pytest.raises(UserError, match=r"1 of 6 .*val/dog/1.jpg: not an im"):
            loop.train(folder_config(image_folder), str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_run_with_images_held_out(image_folder, tmp_path, capsys):
    """Trained, continued with more images, evaluated, extracted."""
    source = f"folder:{image_folder}/train"
    options = {"data__eval_fraction": 0.3, "data__sampling": "balanced"}
    config = folder_config(image_folder, **options)
    config.data.source, config.seed = source, 5
    workdir = tmp_path / "run"
    loop.train(config, str(workdir))
    assert "8 training and 4 evaluation images" in capsys.readouterr().out
    first = read_metrics(workdir / "metrics.jsonl")[-1]

    config.seed, config.data.eval_fraction, config.data.apply_exif = 6, 0.0, False
    result = run_evaluation.evaluate_workdir(config, str(workdir))["raw"]
    assert (result["examples"], result["loss"]) == (4, first["eval/loss"])
    text = capsys.readouterr().out
    assert "seed=5, as in the run" in text and "eval_fraction=0.3, as in the run" in text
    assert f"apply_exif=True, as {workdir} was trained" in text
    # A folder that is set apart for evaluation takes precedence.
    config.data.source = f"folder:{image_folder}"
    result = run_evaluation.evaluate_workdir(config, str(workdir))["raw"]
    assert result["examples"] == 6
    assert "val is evaluated, not the images that are held out" in capsys.readouterr().out

    config.data.source = source
    with pytest.raises(UserError, match="seed is 5 there and 6 here; use the same"):
        config.data.eval_fraction = 0.3
        loop.train(config, str(workdir))
    config.seed, config.data.apply_exif, config.train.steps = 5, True, 3
    shutil.copy(image_folder / "train/cat/0.jpg", image_folder / "train/cat/9.jpg")
    loop.train(config, str(workdir))
    assert "changed   training images: 8 -> 9 since the check" in capsys.readouterr().out
    params, state, info = extract.extract(str(workdir))
    assert info.apply_exif is True
    # The file's choice takes precedence, too.
    path = str(tmp_path / "w.safetensors")
    save_weights(path, params, state, dataclasses.replace(info, apply_exif=False))
    run_evaluation.evaluate_weights(config, path)
    assert f"apply_exif=False, as {path} was trained" in capsys.readouterr().out


def test_evaluation_takes_what_is_held_out_from_the_run(capsys):
    run = resolve(
        make_config(data__eval_fraction=0.3, data__source="folder:x"), num_classes=10
    )
    run = dataclasses.replace(run, seed=5)
    config = make_config(data__source="folder:y")
    run_evaluation._hold_out_as_in(run, config)
    assert (config.seed, config.data.eval_fraction) == (5, 0.3)
    run_evaluation._set_apply_exif(config, False, "w.safetensors")
    run_evaluation._set_apply_exif(config, False, "w.safetensors")
    assert config.data.apply_exif is False
    assert capsys.readouterr().out.splitlines() == [
        "data      seed=5, as in the run, for the images that are held out",
        "data      eval_fraction=0.3, as in the run",
        "data      apply_exif=False, as w.safetensors was trained",
    ]
    other = make_config()  # not a folder: nothing is held out
    run_evaluation._hold_out_as_in(run, other)
    assert other.data.eval_fraction == 0


def test_balanced_sampling_is_refused_before_training(tmp_path):
    config = make_config(data__source="synthetic:64", data__sampling="balanced")
    with pytest.raises(UserError, match="data.sampling=balanced needs the labels"):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n{"step": 3, "x"')
    assert [e["step"] for e in read_metrics(path)] == [1, 2]
    path.write_text('{"step": 1, "x"\n{"step": 2, "x": 2}\n')
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        read_metrics(path)
