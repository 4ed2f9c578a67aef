"""Files that release 0.1 wrote: its checkpoints resume, its weights load."""

import pathlib
import shutil

import numpy as np

from nfnets.data.order import StreamOrder
from nfnets.training import loop, run_evaluation
from nfnets.training.metric_writers import read_metrics
from nfnets.weights import load_weights, read_weights_info
from tests.training import survival_config
from tests.training.micro import change, losses, stored_arrays

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "release-0.1"


def release_draws(order, start, count, draws):
    """Random numbers of the release's crops: a generator each, areas before aspects."""
    seeds = [(order.seed, 1, position) for position in range(start, start + count)]
    rows = np.array([np.random.default_rng(seed).random(draws) for seed in seeds])
    pairs = rows[:, :20].reshape(count, 2, 10).swapaxes(1, 2).reshape(count, 20)
    return np.concatenate([pairs, rows[:, 20:]], axis=1)


def test_a_checkpoint_resumes(tmp_path, capsys, monkeypatch):
    """Step 7 of 14, whose end the release has computed as well, with its crops."""
    monkeypatch.setattr(StreamOrder, "uniforms", release_draws)
    shutil.copytree(GOLDEN / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(GOLDEN / "metrics.jsonl", tmp_path)
    config = change(
        survival_config.get_config(),
        data__apply_exif=False,  # as the release did
        train__steps=14,
        checkpoint__every=7,
        checkpoint__keep_best=0,
    )
    assert loop.train(config, str(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "resumed at step 7" in output
    assert "changed" not in output
    np.testing.assert_allclose(losses(tmp_path), losses(GOLDEN), rtol=1e-4)
    arrays = stored_arrays(tmp_path)
    with np.load(GOLDEN / "params-step14.npz") as expected:
        for path, values in expected.items():
            got = arrays[path].reshape(-1)[::7]
            np.testing.assert_allclose(got, values, rtol=1e-3, atol=1e-5, err_msg=path)
    last = read_metrics(GOLDEN / "metrics.jsonl")[-1]
    again = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert again.keys() == last.keys()
    np.testing.assert_allclose(again["eval/loss"], last["eval/loss"], rtol=1e-4)


def test_a_weights_file_loads():
    path = str(GOLDEN / "ema-step10.safetensors")
    info = read_weights_info(path)
    assert (info.model, info.num_classes, info.preprocessing) == (
        "nfnet_tiny",
        10,
        "resize",
    )
    params, _ = load_weights(path)
    assert params["NFNet/~/linear"]["w"].shape[-1] == 10
    config = change(survival_config.get_config(), data__source="digits")
    results = run_evaluation.evaluate_weights(config, path)
    assert results["raw"]["examples"] == 360
