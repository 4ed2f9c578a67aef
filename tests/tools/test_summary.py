"""The table of sizes and costs of models."""

import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models import count_multiply_adds, count_parameters
from nfnets.models.counting import parameter_shapes
from nfnets.tools import summary
from nfnets.tools.summary import ModelSummary, format_table, summarize


def test_row_of_a_model():
    model = nfnets.create_model("nf_regnet_b0", depths=(1, 1, 1, 1))
    row = summarize(model)
    assert row.parameters == count_parameters(parameter_shapes(model))
    assert (row.train_size, row.test_size) == (192, 224)
    assert row.train_multiply_adds == count_multiply_adds(model, 192)
    assert row.test_multiply_adds == count_multiply_adds(model, 224)
    assert row.step_bytes is row.top1 is None
    # The stem's share alone: 36 channels of 112 x 112.
    assert 36 * 112**2 < row.activations < 10 * 36 * 112**2


@pytest.mark.long
def test_memory_grows_by_the_images_activations():
    model = nfnets.create_model("nfnet_tiny", widths=(64,), depths=(1,), strides=(2,))
    few, many = (summarize(model, batch_size=size).step_bytes for size in (8, 64))
    state = 2 * 4 * count_parameters(parameter_shapes(model))
    assert few > state  # parameters and momentum
    kept = summarize(model).activations * 4
    assert many - few > 56 * kept


def test_rematerialization_is_named():
    model = nfnets.create_model("nfnet_tiny", remat="block")
    row = summarize(model)
    assert row.name == "nfnet_tiny (block)"
    assert row.parameters == count_parameters(parameter_shapes(model))


def test_a_step_is_timed_on_request():
    model = nfnets.create_model("nfnet_tiny", widths=(16,), depths=(1,), strides=(2,))
    row = summarize(model, batch_size=2, run=True)
    assert 0 < row.step_seconds < 60


def test_lines_of_the_table():
    costs = (5 * 10**6, 3 * 2**30, 1.5, 83.6)
    row = ModelSummary("a", 1234567, 32, 2 * 10**9, 64, 8 * 10**9, *costs)
    title, line = format_table([row])
    assert title.split()[0] == "model"
    cells = ["a", "1.2", "32", "2.00", "64", "8.00", "5.00", "3.00", "1.50", "83.6"]
    assert line.split() == cells
    assert len(title) == len(line)


def test_command_line(capsys):
    summary.main(["nfnet_tiny"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("nfnet_tiny ")
    for arguments, message in (
        (["nfnet_f"], "unknown model 'nfnet_f'"),
        (["nfnet_tiny", "--batch=0"], "must be at least 1, not 0"),
        (["nfnet_tiny", "--compute_dtype=int3"], "int3"),
        (["nfnet_tiny", "--remat=all"], "all"),
        (["nfnet_tiny", "--run"], "--run needs --batch=N"),
    ):
        with pytest.raises(UserError, match=message):
            summary.main(arguments)
