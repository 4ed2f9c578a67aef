"""Curves of one or several runs."""

import json

from matplotlib.figure import Figure
import pytest

from nfnets.errors import UserError
from nfnets.tools import curves


def write_run(folder, shift=0.0):
    folder.mkdir()
    entries = [
        {"step": 1, "train/loss": 2.0 + shift, "train/top1": 0.1, "train/learning_rate": 1},
        {"step": 2, "train/loss": None, "train/top1": 0.2, "train/agc_clipped_fraction": 0},
        {"step": 2, "eval/loss": 1.5, "eval/ema_loss": 1.0, "eval/top1": 0.5},
        {"step": 3, "train/loss": 1.0, "eval/loss": 1.25, "eval/ema_loss": 0.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))


@pytest.fixture
def drawn(monkeypatch):
    """Title -> [(label, steps, values, line style)] of the last figure."""
    panels = {}

    def record(figure, path, **_):
        for axes in figure.axes:
            panels[axes.get_title()] = [
                (
                    line.get_label(),
                    list(line.get_xdata()),
                    list(line.get_ydata()),
                    line.get_linestyle(),
                )
                for line in axes.lines
            ]

    monkeypatch.setattr(Figure, "savefig", record)
    return panels


def test_metrics_of_one_run(tmp_path, drawn, capsys):
    write_run(tmp_path / "a")
    curves.main([str(tmp_path / "a"), "--out=x.png"])
    assert capsys.readouterr().out == "x.png\n"
    assert drawn["Loss"] == [
        ("train", [1, 3], [2.0, 1.0], "-"),
        ("eval", [2, 3], [1.5, 1.25], "-"),
        ("eval/ema", [2, 3], [1.0, 0.5], "--"),
    ]
    assert [line[0] for line in drawn["Top-1 accuracy"]] == ["train", "eval"]
    assert drawn["Learning rate"] == [("train", [1], [1], "-")]
    assert drawn["Share of units clipped by AGC"] == [("train", [2], [0], "-")]


def test_several_runs_in_one_figure(tmp_path, drawn):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", shift=1.0)
    curves.plot_curves([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    lines = {label: values for label, _, values, _ in drawn["Loss"]}
    assert len(lines) == 6
    assert lines[f"{tmp_path}/a train"] == [2.0, 1.0]
    assert lines[f"{tmp_path}/b train"] == [3.0, 1.0]


def test_pictures_and_mistakes(tmp_path):
    write_run(tmp_path / "a")
    out = tmp_path / "curves.png"
    curves.plot_curves([tmp_path / "a"], out)
    assert out.read_bytes().startswith(b"\x89PNG")
    for arguments, message in (
        ([str(tmp_path)], "is not the folder of a run: it has no metrics.jsonl"),
        ([str(tmp_path / "a"), f"--out={tmp_path}/none/x.png"], "cannot write --out="),
        ([str(tmp_path / "a"), f"--out={tmp_path}/x.text"], "cannot write --out="),
    ):
        with pytest.raises(UserError, match=message):
            curves.main(arguments)
