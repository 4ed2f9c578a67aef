"""Command lines: options, config files with overrides, and errors of one line."""

import argparse
import ast
from collections.abc import Callable, Sequence
import difflib
import importlib.util
import io
import json
import os
import pathlib
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from nfnets.errors import UserError
from nfnets.files import local_path

if TYPE_CHECKING:
    import ml_collections

_OVERRIDE = "--config."


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
        overrides = [a for a in arguments if a.startswith(_OVERRIDE)]
        options = self.parse_args([a for a in arguments if a not in overrides])
        return options, [a.removeprefix(_OVERRIDE) for a in overrides]


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
    """Lets the output show file names that are not UTF-8 with backslash escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def positive_int(text: str) -> int:
    """Reads an integer of at least 1, for `add_argument(type=...)`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def load_config(path: str | os.PathLike[str]) -> "ml_collections.ConfigDict":
    """Returns the config of a file, or of a recipe of this package.

    Args:
      path: a Python file with `get_config()`, a run's config.json, or one of `recipes`.

    Raises:
      UserError: the file is missing or cannot be read, or sets an unknown field.
    """
    file = pathlib.Path(path)
    if not file.is_file() and str(path) in recipes():
        file = recipes()[str(path)]
    if not file.is_file():
        known = sorted(p.name for p in file.parent.glob("[!_]*.py"))
        hint = f"; that folder has {', '.join(known)}" if known else ""
        raise UserError(f"--config: no file {path}{hint}")
    if file.suffix == ".json":
        return _load_json(file)
    spec = importlib.util.spec_from_file_location("nfnets_run_config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # For recipes that start from another one: `from configs import nfnet_f0`.
    sys.path += [str(file.resolve().parent.parent)]
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config: {path} has no function get_config()")
        return module.get_config()
    except UserError:
        raise
    except Exception as error:  # whatever the user's code does wrong
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        place = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"--config: {place}: {_config_mistake(error)}") from error


def recipes() -> dict[str, pathlib.Path]:
    """Returns name -> file of the recipes, installed or in this checkout."""
    package = pathlib.Path(__file__).parent
    folder = package / "configs"
    if not folder.is_dir():
        folder = package.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("[!_]*.py"))}


def _config_mistake(error: Exception) -> str:
    from nfnets.training.config import default_config

    field = re.search(r'Key \\?"(\w+)\\?" does not exist', str(error))
    if field is None:
        return f"{type(error).__name__}: {_first_line(error)}"
    return _unknown_field(default_config(), field[1])


def _load_json(file: pathlib.Path) -> "ml_collections.ConfigDict":
    from nfnets.training.config import FORMER_DEFAULTS, default_config

    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--config: cannot read {file}: {_first_line(error)}") from None
    config = default_config()
    if not isinstance(stored, dict):
        raise UserError(f"--config: {file} is not the config.json of a run")
    apply_overrides(config, [f"{name}={value}" for name, value in FORMER_DEFAULTS.items()])
    for key, value in stored.items():
        is_section = _is_section(config.get(key)) and isinstance(value, dict)
        for name, entry in value.items() if is_section else ((None, value),):
            path = key if name is None else f"{key}.{name}"
            if path not in _settable(config):
                raise UserError(f"--config: {file}: {_unknown_field(config, path)}")
            place = config if name is None else config[key]
            with place.ignore_type():
                place[name or key] = entry
    return config


def _settable(config: "ml_collections.ConfigDict") -> set[str]:
    """Returns the names of all fields, open mappings such as `train.ema` included."""
    names = set(field_names(config))
    for key, section in config.items():
        if _is_section(section):
            names |= {f"{key}.{name}" for name, v in section.items() if _is_section(v)}
    return names


def apply_overrides(config: "ml_collections.ConfigDict", overrides: Sequence[str]) -> None:
    """Sets fields of a config in place; their types and ranges are checked by `resolve`.

    Args:
      config: of `default_config` or of a config file.
      overrides: `section.field=value` each. Values are Python literals or plain text.

    Raises:
      UserError: there is no such field.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(
                f"{_OVERRIDE}{name} has no value; write {_OVERRIDE}{name}=VALUE"
            )
        *sections, field = name.split(".")
        section = _find_section(config, sections)
        # Averages and model overrides may be added; everything else must exist.
        if section is None or (field not in section and section.is_locked):
            raise UserError(_unknown_field(config, name))
        current = section.get(field)
        if _is_section(current) and current.is_locked:
            raise UserError(f"{_OVERRIDE}{name} is a section; set one of its fields")
        with section.ignore_type():
            section[field] = _parse_value(text, current)


def _find_section(config: "ml_collections.ConfigDict", names: Sequence[str]) -> Any:
    section: Any = config
    for name in names:
        if not _is_section(section) or name not in section:
            return None
        section = section[name]
    return section if _is_section(section) else None


def _parse_value(text: str, current: Any) -> Any:
    if text == "None":
        return None
    if isinstance(current, str):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_section(value: Any) -> bool:
    import ml_collections  # not among the core dependencies

    return isinstance(value, ml_collections.ConfigDict)


def _unknown_field(config: "ml_collections.ConfigDict", name: str) -> str:
    field = name.split(".")[-1]

    def similarity(known: str) -> float:
        words = known.split(".")[-1].split("_")
        is_short_form = field == "".join(word[0] for word in words) or field in words
        return difflib.SequenceMatcher(None, name, known).ratio() + is_short_form

    nearest = max(field_names(config), key=similarity)
    return f"unknown field {_OVERRIDE}{name}; did you mean {_OVERRIDE}{nearest}?"


def field_names(config: "ml_collections.ConfigDict", prefix: str = "") -> list[str]:
    """Returns the names `section.field` of a config's fields."""
    names: list[str] = []
    for key, value in config.items():
        if _is_section(value):
            names += field_names(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _join_values(arguments: Sequence[str]) -> list[str]:
    """Rewrites `--config.field value` as `--config.field=value`."""
    joined: list[str] = []
    for argument in arguments:
        previous = joined[-1] if joined else ""
        is_open = previous.startswith(_OVERRIDE) and "=" not in previous
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
