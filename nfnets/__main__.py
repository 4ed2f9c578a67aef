"""`python -m nfnets COMMAND`, and `nfnets COMMAND` after `pip install`."""

from collections.abc import Sequence
import difflib
import importlib
import sys

from nfnets import cli
from nfnets.errors import UserError

# Command -> summary; the command is `main` of the module `nfnets.tools.COMMAND`.
COMMANDS = {
    "train": "train a model, or resume a run",
    "eval": "evaluate a run or a weights file",
    "predict": "classify image files",
    "probe": "classify a dataset by the features of a network",
    "extract": "write a run's weights to a file",
    "convert": "convert weights from and to other formats",
    "export": "write a classifier as StableHLO",
    "info": "show the content of a weights file",
    "models": "list the models",
    "summary": "count parameters, multiply-adds and memory of models",
    "pods": "compile training steps for TPUs and GPUs ahead of time",
    "check": "check a folder of images before a training",
    "prepare": "download and prepare a TFDS dataset",
    "preview": "draw augmented training images",
    "curves": "plot the metrics of runs",
    "clipping": "plot the units that AGC clipped, layer by layer",
    "signal_propagation": "plot signal propagation at initialization",
}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Runs the command that the first argument names.

    Args:
      arguments: without the program's name; None: `sys.argv`.

    Returns:
      The exit code; None for success.

    Raises:
      UserError: the command is unknown; also the command's own errors.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: nfnets COMMAND [--help] ...\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:<20}{summary}")
        return None if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}; {hint}")
    try:
        return importlib.import_module(f"nfnets.tools.{command}").main(rest)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "nfnets"):
            raise
        raise UserError(
            f"nfnets {command} needs {package}; pip install 'nfnets[train,tfds]'"
        ) from error


def entry_point() -> None:
    """Runs `main` as a program."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
