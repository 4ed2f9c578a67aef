"""Command lines: mistakes are one line and exit code 2."""

import pathlib
import subprocess
import sys
import time

import pytest

from nfnets import __main__ as program
from nfnets import cli, config_files
from nfnets.errors import UserError
from nfnets.tools import eval as evaluation
from nfnets.tools import train

DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE.py is missing"),
        (["--config=configs/digit.py"], "no file configs/digit.py; that folder has"),
        ([DIGITS, "--config.data.bach_size=8"], "did you mean --config.data.batch_size?"),
        ([DIGITS, "--config.train.lr=8"], "did you mean --config.train.learning_rate?"),
        ([DIGITS, "--config.data=8"], "--config.data is a section"),
        ([DIGITS, "--config.seed"], "--config.seed has no value"),
        ([DIGITS, "--config.seed=one"], "config.seed must be an integer in [0, inf), not"),
        ([DIGITS, "--workdr=x"], "unrecognized arguments: --workdr=x"),
        ([DIGITS, "surplus"], "unrecognized arguments: surplus"),
        ([DIGITS, "--config.model.name=resnet5"], "unknown model 'resnet5'"),
        ([DIGITS, "--config.data.source=cifar"], "cifar"),
        ([DIGITS, "--config.data.source=folder:/nowhere"], "/nowhere"),
        ([DIGITS, "--config.optimizer.momentum=None"], "momentum must be a number"),
        ([DIGITS, "--config.model.overrides.alpa=1"], "has no option 'alpa'"),
        ([DIGITS, "--config.optimizer.frozen=stem,block"], None),
    ],
)
def test_mistakes_of_training(arguments, message, tmp_path):
    if message is None:
        _, config = cli.ConfigParser("train", "").parse(arguments)
        assert config.optimizer.frozen == "stem,block"
        return
    if arguments and "--workdr=x" not in arguments:
        arguments = [*arguments, f"--workdir={tmp_path}/run"]
    with pytest.raises(UserError) as error:
        train.main(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", DIGITS, "--workdir=gs://bucket/run"],
        ["eval", DIGITS, "--workdir=gs://bucket/run"],
        ["predict", "--weights=s3://bucket/w.safetensors", "a.jpg"],
        ["predict", "--weights=w.safetensors", "https://example.com/a.jpg"],
        ["extract", "--workdir=runs/x", "--out=gs://bucket/w.safetensors"],
        ["convert", "gs://bucket/F0_haiku.npz", "--out=x"],
        ["export", "--weights=w.safetensors", "--out=gs://bucket/x"],
        ["curves", "gs://bucket/run"],
        ["clipping", "runs/x", "--out=gs://bucket/x.png"],
        ["info", "gs://bucket/w.safetensors"],
    ],
)
def test_urls_are_not_taken_for_folders(arguments, tmp_path, monkeypatch):
    root = pathlib.Path.cwd()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(root / "configs")
    with pytest.raises(UserError, match="://.* is not a local path; mount the bucket"):
        program.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_mistakes_of_evaluation(tmp_path):
    with pytest.raises(UserError, match="either --workdir=DIR or --weights"):
        evaluation.main([DIGITS])
    with pytest.raises(UserError, match="no weights file none.safetensors"):
        evaluation.main([DIGITS, "--weights=none.safetensors"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", r"line 1: SyntaxError"),
        ("def get_config():\n  return 1 / 0\n", r"line 2: ZeroDivisionError"),
        ("x = 1", "has no function get_config"),
        (
            "from nfnets.training.config import default_config\n"
            "def get_config():\n"
            "  config = default_config()\n"
            "  config.train.lr = 3\n"
            "  return config\n",
            r"line 4: unknown field --config.lr; did you mean --config.train.learning_rate",
        ),
    ],
)
def test_mistakes_in_a_config_file(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        config_files.load_config(str(path))


def test_values_of_overrides():
    parser = cli.ConfigParser("train", "")
    options, config = parser.parse(
        [
            "--config=configs/digits.py",
            "--config.optimizer.clipping",
            "None",
            "--config.train.steps=5",
            "--config.train.learning_rate=1e-3",
            "--config.data.flip=true",
            "--config.data.source=folder:/a=b",
            "--config.augment.order=('mix',)",
            "--config.train.ema.slow=0.999",
            "--config.model.overrides.alpha=0.3",
            "--config.train.microbatch=auto",
        ]
    )
    assert options.config == "configs/digits.py"
    assert config.optimizer.clipping is None
    assert (config.train.steps, config.train.learning_rate) == (5, 1e-3)
    assert config.data.flip is True
    assert config.data.source == "folder:/a=b"
    assert config.augment.order == ("mix",)
    assert dict(config.train.ema) == {"ema": 0.99, "slow": 0.999}
    assert dict(config.model.overrides) == {"alpha": 0.3}
    assert config.train.microbatch == "auto"


def test_commands():
    for command in program.COMMANDS:
        assert pathlib.Path("nfnets/tools", f"{command}.py").is_file(), command
    tools = {path.stem for path in pathlib.Path("nfnets/tools").glob("[!_]*.py")}
    assert tools == set(program.COMMANDS)
    with pytest.raises(UserError, match="unknown command 'trian'; did you mean train"):
        program.main(["trian"])


def test_help_lists_the_commands_and_options(capsys):
    assert program.main(["--help"]) is None
    assert "classify image files" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        program.main(["train", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in ("--config", "--workdir", "--dry_run", "--coordinator"):
        assert option in text


def test_a_misspelt_field_is_reported_before_jax_is_imported():
    script = [sys.executable, "train.py", DIGITS, "--config.data.bach_size=8"]
    start = time.monotonic()
    result = subprocess.run(script, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - start
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: unknown field --config.data.bach_size; did you mean "
        "--config.data.batch_size?\n"
    )
    print(f"answered after {seconds:.2f} s")
    loaded = "import sys; from nfnets.tools import train, eval; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert result.stdout == "False\n"
