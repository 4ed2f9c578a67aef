"""Command lines: parsing, overrides of config fields, and one-line errors."""

from collections.abc import Callable, Sequence
import difflib
import importlib.util
import pathlib
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
import ml_collections
from ml_collections import config_flags

from nfnets import command
from nfnets.errors import UserError

_PREFIX = "--config."


def define_config() -> flags.FlagHolder:
    """Defines --config=FILE.py, whose fields --config.section.field=value overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "Configuration file, such as configs/digits.py.", lock_config=True
    )


class ProcessFlags:
    """The flags that say which processes make up a run."""

    def __init__(self) -> None:
        """Defines the flags."""
        self._holders = {
            "coordinator": flags.DEFINE_string(
                "coordinator",
                None,
                "HOST:PORT of process 0, where a run has several processes. Not needed on "
                "Slurm and Cloud TPU. Also: JAX_COORDINATOR_ADDRESS.",
            ),
            "num_processes": flags.DEFINE_integer(
                "num_processes", None, "How many they are. Also: JAX_NUM_PROCESSES."
            ),
            "process_id": flags.DEFINE_integer(
                "process_id", None, "Which one this is, from 0. Also: JAX_PROCESS_ID."
            ),
        }

    def values(self) -> dict[str, Any]:
        """Returns the arguments of `nfnets.training.distributed.session`."""
        return {name: holder.value for name, holder in self._holders.items()}


def run(main: Callable[[], int | None]) -> None:
    """Parses the command line, calls `main` and exits with its result.

    A `UserError` is shown as one line on stderr and ends with its exit code, an interrupt
    from the keyboard with 130.
    """

    def guarded(argv: Sequence[str]) -> NoReturn:
        del argv
        logging.set_verbosity(logging.WARNING)
        command.run(main)

    app.run(guarded, flags_parser=parse_arguments)


def parse_arguments(argv: Sequence[str]) -> list[str]:
    """Parses flags, config fields included, for `absl.app.run`.

    Beyond what `config_flags` does, `None` is a value that every optional field takes, and
    mistakes end the program with one line and exit code 2.

    Args:
      argv: the program's name and arguments.

    Returns:
      The program's name.
    """
    try:
        return _parse_arguments(list(argv))
    except (UserError, flags.Error, ValueError, TypeError) as error:
        sys.exit(command.complain(error))


def default_workdir() -> str:
    """Returns runs/NAME for --config=.../NAME.py."""
    path = flags.FLAGS["config"].config_filename
    return str(pathlib.Path("runs") / pathlib.Path(path).stem)


def _parse_arguments(argv: list[str]) -> list[str]:
    arguments = _join_values(argv[1:])
    overrides = [a for a in arguments if a.startswith(_PREFIX)]
    emptied = [a for a in overrides if a.partition("=")[2] == "None"]
    path = _config_path(arguments)
    if path is None and "config" in flags.FLAGS and not _asks_for_help(arguments):
        raise UserError(
            "--config=FILE.py is missing, for instance --config=configs/digits.py"
        )
    if path is not None:
        config = load_config(path)
        for override in overrides:
            name, _, value = override.removeprefix(_PREFIX).partition("=")
            _check_field(config, name, path)
            if value == "None":
                _set_none(config, name)
    rest = flags.FLAGS([argv[0]] + [a for a in arguments if a not in emptied])
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {rest[1]!r}; options are written --name=value "
            "(--help lists them)"
        )
    for override in emptied:
        name = override.removeprefix(_PREFIX).partition("=")[0]
        _set_none(flags.FLAGS["config"].value, name)
    return rest


def _join_values(arguments: list[str]) -> list[str]:
    """Rewrites `--config.field value` as `--config.field=value`."""
    joined: list[str] = []
    for argument in arguments:
        previous = joined[-1] if joined else ""
        waits = previous == "--config" or previous.startswith(_PREFIX)
        if waits and "=" not in previous and not argument.startswith("--"):
            joined[-1] = f"{previous}={argument}"
        else:
            joined.append(argument)
    return joined


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return any(a.lstrip("-").startswith("help") for a in arguments)


class _IntOrWord(flags.ArgumentParser):
    """Reads 8 as a number and auto as a word."""

    def parse(self, argument: str) -> int | str:
        return int(argument) if argument.lstrip("-").isdigit() else argument

    def flag_type(self) -> str:
        return "int or word"


config_flags.register_flag_parser_for_type(int | str, _IntOrWord())


def _config_path(arguments: Sequence[str]) -> str | None:
    for argument in arguments:
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
    return None


def load_config(path: str) -> ml_collections.ConfigDict:
    """Returns what `get_config()` of a Python file returns.

    Raises:
      UserError: the file is missing or has no `get_config`.
    """
    if not pathlib.Path(path).is_file():
        known = sorted(p.name for p in pathlib.Path(path).parent.glob("[!_]*.py"))
        raise UserError(
            f"--config: no file {path}"
            + (f"; that folder has {', '.join(known)}" if known else "")
        )
    spec = importlib.util.spec_from_file_location("nfnets_run_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} has no function get_config()")
    return module.get_config()


def _check_field(config: ml_collections.ConfigDict, name: str, path: str) -> None:
    known = _field_names(config)
    if name in known:
        return
    if any(field.startswith(f"{name}.") for field in known):
        raise UserError(f"{_PREFIX}{name} is a section of {path}, not a field")
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise UserError(
        f"{_PREFIX}{name} is no field of {path}; the nearest is {_PREFIX}{nearest}"
    )


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict):
            names += _field_names(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _set_none(config: ml_collections.ConfigDict, name: str) -> None:
    *sections, field = name.split(".")
    for section in sections:
        config = config[section]
    config[field] = None  # whether the field may be None, `resolve` decides
