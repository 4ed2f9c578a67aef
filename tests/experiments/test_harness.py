"""The experiments' grids, and docs/results.md beside the committed results."""

import importlib
import importlib.util
import json
import pathlib

import pytest

from experiments import clip_layers, data, plot, runs
from experiments.training import PARTS, Settings, create_model, is_in
from nfnets import config_files
from nfnets.training.config import resolve
from nfnets.training.state import build_optimizer

MODULES = [importlib.import_module(f"experiments.{name}") for name in plot.EXPERIMENTS]


def test_a_grid_resumes_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    grid = [Settings(rate=rate) for rate in (0.1, 0.2, 0.3)]
    trained = []

    def train(settings):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(settings.rate)
        return {"accuracy": 100 * settings.rate, "diverged": False, "seconds": 1.0}

    with pytest.raises(KeyboardInterrupt):
        runs.run_grid("name", grid, train=train)
    assert [run.settings for run in runs.read("name")] == grid[:2]
    trained.clear()
    results = runs.run_grid("name", grid, train=train)
    assert trained == [0.3]
    assert runs.read("name") == results
    assert runs.accuracy(results) == pytest.approx((20, 10))
    assert runs.minutes(results) == pytest.approx(0.05)
    other = runs.run_grid("other", grid[1:], shared=["name"], train=None)
    assert other == results[1:]


def test_results_files_hold_differences_from_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    settings = Settings(batch=64, clipped=("stem",), model=(("alpha", 0.1),))
    runs.write("name", [runs.Run(settings, {"diverged": True})])
    text = (tmp_path / "name.json").read_text()
    assert json.loads(text)["runs"][0]["settings"] == {
        "batch": 64,
        "clipped": ["stem"],
        "model": [["alpha", 0.1]],
    }
    assert runs.read("name")[0].settings == settings


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_committed_results_are_the_whole_grid(module):
    found = {runs.encode(run.settings) for run in runs.read(module.NAME)}
    assert found == {runs.encode(settings) for settings in module.grid()}


def test_tables_of_the_docs_are_those_of_the_results():
    text = (plot.DOCS / "results.md").read_text()
    tables = plot.all_tables()
    assert plot.fill_in(text, tables) == text
    for marker in tables:
        assert f"<!-- table: {marker} -->" in text


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_figures_are_drawn_and_committed(module):
    for file, figure in module.figures(runs.read(module.NAME)).items():
        figure.draw_without_rendering()
        assert (plot.DOCS / "figures" / f"{file}.png").exists()
        assert f"figures/{file}.png" in (plot.DOCS / "results.md").read_text()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.NAME)
def test_full_grids_resolve_on_imagenet(module, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    folders = set()
    for command in runs.commands(module.CONFIG, module.FULL, "runs"):
        recipe, workdir, *flags = command[4:]
        config = config_files.load_config(recipe.removeprefix("--config="))
        config_files.apply_overrides(
            config, [flag.removeprefix("--config.") for flag in flags]
        )
        resolved = resolve(config, num_classes=1000, num_train=1281167)
        build_optimizer(resolved)
        folders.add(workdir)
    assert len(folders) == len(module.FULL)


def test_digits_are_the_librarys_split():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 8, 8, 3)
    assert digits.test_images.shape == (360, 8, 8, 3)
    assert sorted(set(digits.test_labels.tolist())) == list(range(10))


@pytest.mark.skipif(not importlib.util.find_spec("skimage"), reason="no [experiments]")
def test_photographs_do_not_share_pixels_or_a_mean_color():
    photographs = data.load("photographs")
    assert photographs.train_images.shape == (1600, 64, 64, 3)
    means = photographs.train_images.mean((1, 2))
    spread = [means[photographs.train_labels == label].mean(0).std() for label in range(10)]
    assert max(spread) < 10  # of 255, where single crops differ by more than 30


@pytest.mark.parametrize("network", ["nf_resnet", "nfnet", "batch_norm"])
def test_parts_are_all_parameters_once(network):
    params, _ = create_model(Settings(network=network, depth=2)).shapes()
    counts = {}
    for part in PARTS:
        for module, arrays in is_in((part,), params).items():
            for name, flag in arrays.items():
                counts[module, name] = counts.get((module, name), 0) + flag
    assert set(counts.values()) == {1}
    head = next(module for module in params if module.endswith("Net/~/linear"))
    assert is_in(("classifier",), params)[head] == {"w": True, "b": False}


def test_labels_spare_one_stage():
    params, _ = create_model(Settings()).shapes()
    labels = clip_layers.not_stage_1(params)
    spared = [
        module
        for module, arrays in labels.items()
        if "classifier_weight" in arrays.values()
    ]
    assert len(spared) == 5  # the block's three convolutions, its shortcut, the classifier
    assert sum("nf_res_block_1/" in module for module in spared) == 4
