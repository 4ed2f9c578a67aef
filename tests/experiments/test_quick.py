"""Experiments as they are run: the direction of claim 1, and `--quick` of all."""

import importlib
import runpy
import sys

import pytest

from experiments import plot, runs
from experiments.training import Settings, train


def test_agc_trains_a_large_batch_that_fails_without():
    large = dict(batch=479, rate=0.4, epochs=8)
    assert train(Settings(**large))["accuracy"] < 30
    clipped = train(Settings(**large, clipping="agc", threshold=0.04))
    assert clipped["accuracy"] > 75
    assert clipped["losses"][-1] < 1.1 < 2.2 < clipped["losses"][0]


@pytest.mark.long
@pytest.mark.parametrize("name", plot.EXPERIMENTS)
def test_quick(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    module = importlib.import_module(f"experiments.{name}")
    runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == len(list(module.quick()))
    assert not list(tmp_path.iterdir())
