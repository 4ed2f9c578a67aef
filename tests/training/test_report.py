"""The report of an evaluation, by hand."""

import csv

import cv2
import numpy as np
import pytest

from nfnets.data import Dataset
from nfnets.data.sources.base import ArraySource
from nfnets.errors import UserError
from nfnets.tools import eval as evaluation
from nfnets.training import loop, report
from nfnets.training.metric_writers import read_metrics
from tests.training.micro import run_config

PROBABILITIES = np.array(
    [
        [0.9, 0.1, 0.0],  # right, surely
        [0.8, 0.1, 0.1],  # wrong, rather sure
        [0.2, 0.7, 0.1],  # right
        [0.1, 0.4, 0.5],  # wrong, not so sure
    ],
    np.float32,
)
LABELS = np.array([0, 1, 1, 0], np.int32)


@pytest.fixture
def dataset():
    images = np.zeros((4, 2, 2, 3), np.uint8)
    source = ArraySource(images, LABELS, "made up")
    return Dataset(name="x", train=source, evaluation=source, class_names=("a", "b", "c"))


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_files_by_hand(dataset, tmp_path):
    predictions = report.Predictions(probabilities=PROBABILITIES, labels=LABELS)
    lines = report.write_report(predictions, dataset, tmp_path / "report")
    folder = tmp_path / "report"
    assert read(folder / "per_class.csv") == [
        ["class", "examples", "top1"],
        ["a", "2", "0.5"],
        ["b", "2", "0.5"],
        ["c", "0", "0.0"],
    ]
    assert [row[1:] for row in read(folder / "confusion.csv")[1:]] == [
        ["1", "0", "1"],
        ["1", "1", "0"],
        ["0", "0", "0"],
    ]
    assert read(folder / "mistakes.csv")[1:] == [
        ["made up[1]", "b", "a", "0.800000"],
        ["made up[3]", "a", "c", "0.500000"],
    ]
    assert cv2.imread(str(folder / "confusion.png")).std() > 1
    assert lines[1] == "lowest accuracies: a 50.0%, b 50.0%"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        report.write_report(predictions, dataset, tmp_path / "file")


def test_calibration_error_by_hand():
    """Bins of 1/15: 0.9 and 0.8 are apart, as are 0.7 and 0.5."""
    predictions = report.Predictions(probabilities=PROBABILITIES, labels=LABELS)
    gaps = [1 - 0.9, 0.8, 1 - 0.7, 0.5]
    assert report.calibration_error(predictions) == pytest.approx(np.mean(gaps))
    # In one bin, accuracy and confidence are averaged first.
    same = np.array([[0.81, 0.19], [0.85, 0.15]], np.float32)
    predictions = report.Predictions(probabilities=same, labels=np.array([0, 1]))
    assert report.calibration_error(predictions) == pytest.approx(0.83 - 0.5, abs=1e-6)


def test_the_report_of_a_run(tmp_path, capsys):
    loop.train(run_config(), str(tmp_path))
    evaluation.main([f"--workdir={tmp_path}", "--report=ema"])  # config.json is enough
    rows = read(tmp_path / "report" / "confusion.csv")[1:]
    confusion = np.array([row[1:] for row in rows], int)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert confusion.sum() == 360
    assert confusion.trace() / 360 == pytest.approx(last["eval/ema_top1"])
    assert "report: " in capsys.readouterr().out
    with pytest.raises(UserError, match="--report=slow: the run has raw, ema"):
        evaluation.main([f"--workdir={tmp_path}", "--report=slow"])
