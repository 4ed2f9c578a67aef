"""The notebooks in examples/."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.ipynb"))}


def _code_cells(name):
    cells = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _execute(name, folder):
    """Returns what the code cells print when they run in a folder, without installing."""
    install, *cells = _code_cells(name)
    assert re.fullmatch(r"%pip install .*", install)
    # Compiled as for users, not as `conftest.py` does for short programs.
    environment = {key: os.environ[key] for key in os.environ if key != "XLA_FLAGS"}
    environment |= {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stripped_and_compile(name):
    notebook = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    install, *cells = _code_cells(name)
    assert install.startswith("%pip install -q")
    assert len(cells) >= 5
    for number, cell in enumerate(cells):
        compile(cell, f"{name}, code cell {number}", "exec")


@pytest.mark.long
def test_agc_trains_three_libraries_where_momentum_alone_fails(tmp_path):
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    output = _execute("agc_in_your_loop", tmp_path)
    losses = re.findall(r"^(AGC|no AGC) +loss (\S+),", output, re.MULTILINE)
    assert [label for label, _ in losses] == ["AGC", "no AGC"] * 3
    for label, loss in losses:
        assert (float(loss) < 1) == (label == "AGC"), losses
    assert "OIHW, out_first        axes (1, 2, 3)  norms (32, 1, 1, 1)" in output


@pytest.mark.long
def test_fine_tuning_beats_the_probe(tmp_path):
    output = _execute("finetune_on_a_folder", tmp_path)
    (probe,) = re.findall(r"logistic regression.* (\S+)%", output)
    (tuned,) = re.findall(r"^ema +(\S+)%", output, re.MULTILINE)
    assert 70 < float(probe) < float(tuned)
    # The exported function returns what `nfnets predict` does.
    (predicted,) = re.findall(r"photos/seven/000.png +(\S+)%  seven", output)
    (exported,) = re.findall(r"^seven +(\S+)%", output, re.MULTILINE)
    assert float(exported) == pytest.approx(float(predicted), abs=0.05)
    assert not list(tmp_path.iterdir())  # it writes into a folder of its own


@pytest.mark.long
def test_variances_follow_the_prediction_and_folding_keeps_the_logits(tmp_path):
    output = _execute("features_and_signal_propagation", tmp_path)
    assert "stage_2  (2, 28, 28, 512)" in output
    variances = re.findall(r"variance (\S+), predicted (\S+)", output)
    assert len(variances) == 4
    for measured, predicted in variances:
        assert float(measured) == pytest.approx(float(predicted), rel=0.1)
    (difference,) = re.findall(r"difference of the logits: (\S+)", output)
    assert float(difference) < 1e-4
