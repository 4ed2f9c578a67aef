"""The notebooks in examples/."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def _code(notebook):
    """Returns the code of each cell, without the commands of notebooks."""
    cells = [
        c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"
    ]
    assert all(cell["outputs"] == [] for cell in cells)
    return [
        "".join(line for line in cell["source"] if not line.startswith("%"))
        for cell in cells
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_compile_and_have_no_outputs(notebook):
    cells = _code(notebook)
    assert len(cells) > 3
    for cell in cells:
        compile(cell, notebook.name, "exec")


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path):
    code = "\n".join(_code(notebook))
    for package in ("flax", "equinox"):
        if f"import {package}" in code or f"from {package}" in code:
            pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
