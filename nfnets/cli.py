"""Command lines: options, and errors of one line."""

import argparse
from collections.abc import Callable, Sequence
import io
import os
import pathlib
import sys
from typing import TYPE_CHECKING, NoReturn

from nfnets.config_files import OVERRIDE, apply_overrides, load_config
from nfnets.errors import UserError
from nfnets.files import local_path

if TYPE_CHECKING:
    import ml_collections


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are not None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class WeightsReference(str):
    """Option that names weights: a local path, `hf://...` or a URL."""


class Parser(argparse.ArgumentParser):
    """Parses `--name=value` options; a mistake is a `UserError`."""

    def __init__(self, command: str, description: str) -> None:
        """Creates the parser of `nfnets COMMAND`."""
        super().__init__(
            prog=f"nfnets {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse for arguments that it cannot parse."""
        raise UserError(f"{message} (--help lists the options)")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """See `argparse`; URLs in place of local paths are mistakes, too."""
        options = super().parse_args(args, namespace)
        for values in vars(options).values():
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, str) and not isinstance(value, WeightsReference):
                    local_path(value)
        return options


class ConfigParser(Parser):
    """A `Parser` that also takes `--config=FILE` and `--config.section.field=value`."""

    def __init__(self, command: str, description: str) -> None:
        """Creates the parser of `nfnets COMMAND`."""
        super().__init__(command, description)
        self.epilog = (
            "--config.SECTION.FIELD=VALUE overrides a field of the config, such as "
            "--config.data.batch_size=256; None is a value. nfnets/training/config.py "
            "documents every field."
        )
        self.add_argument(
            "--config",
            metavar="FILE",
            help="a recipe's name, such as digits, a Python file with get_config(), or "
            "the config.json of a run; may be omitted where --workdir has one",
        )

    def parse(
        self, arguments: Sequence[str] | None = None
    ) -> "tuple[argparse.Namespace, ml_collections.ConfigDict]":
        """Parses a command line.

        Args:
          arguments: without the program's name; None: `sys.argv`.

        Returns:
          The options and the config, overridden and locked.

        Raises:
          UserError: an option, the file or a field is wrong.
        """
        options, overrides = self.split(arguments)
        path = options.config
        stored = pathlib.Path(getattr(options, "workdir", None) or "", "config.json")
        if path is None and getattr(options, "workdir", None) and stored.is_file():
            path = str(stored)
        if path is None:
            raise UserError(
                "--config=FILE.py is missing, for instance --config=configs/digits.py"
            )
        config = load_config(path)
        apply_overrides(config, overrides)
        return options, config

    def split(
        self, arguments: Sequence[str] | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Returns the options and the overrides of a command line, loading no config."""
        arguments = _join_values(sys.argv[1:] if arguments is None else arguments)
        overrides = [a for a in arguments if a.startswith(OVERRIDE)]
        options = self.parse_args([a for a in arguments if a not in overrides])
        return options, [a.removeprefix(OVERRIDE) for a in overrides]


def add_weights_option(
    parser: argparse.ArgumentParser, *, required: bool = False, note: str = ""
) -> None:
    """Adds `--weights`, also called `--model`, for `nfnets.weights.find_weights`."""
    parser.add_argument(
        *("--weights", "--model"),
        type=WeightsReference,
        required=required,
        help="a weights file, a name such as nfnet_f0 (`nfnets models --pretrained`), "
        f"hf://OWNER/REPOSITORY or a URL{note}",
    )


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `nfnets.training.distributed.session` takes."""
    group = parser.add_argument_group("processes", "not needed on Slurm and Cloud TPU")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0 (also: JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--num_processes", type=int, help="processes of the run (also: JAX_NUM_PROCESSES)"
    )
    group.add_argument(
        "--process_id", type=int, help="this process, from 0 (also: JAX_PROCESS_ID)"
    )


def escape_file_names() -> None:
    """Prints file names that are not UTF-8 with backslash escapes from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def positive_int(text: str) -> int:
    """Reads an integer of at least 1, for `add_argument(type=...)`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _join_values(arguments: Sequence[str]) -> list[str]:
    """Rewrites `--config.field value` as `--config.field=value`."""
    joined: list[str] = []
    for argument in arguments:
        previous = joined[-1] if joined else ""
        is_open = previous.startswith(OVERRIDE) and "=" not in previous
        if is_open and not argument.startswith("--"):
            joined[-1] = f"{previous}={argument}"
        else:
            joined.append(argument)
    return joined


def report_error(error: Exception) -> int:
    """Prints an error as one line on stderr; returns the program's exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, UserError) else 2


def run(main: Callable[[], int | None]) -> NoReturn:
    """Calls a program and exits with its result.

    A `UserError` ends it with one line on stderr and the error's exit code, Ctrl-C with
    130, a closed output (`... | head`) with 141.
    """
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(report_error(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
