"""train.py and eval.py as a user calls them: mistakes are one line and exit code 2."""

import subprocess
import sys

import pytest

TRAIN = ["train.py", "--config=configs/digits.py"]


def call(*arguments):
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py"], "--config=FILE.py is missing"),
        (["train.py", "--config=configs/digit.py"], "no file configs/digit.py"),
        ([*TRAIN, "--config.data.bach_size=8"], "the nearest is --config.data.batch_size"),
        ([*TRAIN, "--config.data=8"], "is a section of configs/digits.py"),
        ([*TRAIN, "--config.seed=one"], "--config.seed=one: invalid literal"),
        ([*TRAIN, "--workdr=x"], "Unknown command line flag 'workdr'"),
        ([*TRAIN, "surplus"], "unexpected argument 'surplus'"),
        ([*TRAIN, "--config.model.name=resnet5"], "unknown model 'resnet5'"),
        ([*TRAIN, "--config.data.source=cifar"], "cifar"),
        ([*TRAIN, "--config.data.source=folder:/nowhere"], "/nowhere"),
        ([*TRAIN, "--config.optimizer.momentum=None"], "momentum cannot be None"),
        (["eval.py", "--config=configs/digits.py"], "either --workdir=DIR or --weights"),
        (
            ["eval.py", "--config=configs/digits.py", "--weights=none.safetensors"],
            "no weights file none.safetensors",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    if arguments[0] == "train.py" and "--workdr=x" not in arguments:
        arguments = [*arguments, f"--workdir={tmp_path}/run"]
    code, output, errors = call(*arguments)
    assert code == 2
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in output


def test_help_names_the_flags():
    code, output, _ = call("train.py", "--help")
    assert code == 1  # absl's code for help
    assert "--workdir" in output


SHOW = """
from nfnets.training import cli
config = cli.define_config()
cli.run(lambda: print(config.value.optimizer.clipping, config.value.train.steps))
"""


def test_none_is_a_value_and_values_may_stand_apart():
    code, output, errors = call(
        "-c",
        SHOW,
        "--config",
        "configs/digits.py",
        "--config.optimizer.clipping",
        "None",
        "--config.train.steps=5",
    )
    assert (code, output) == (0, "None 5\n"), errors
