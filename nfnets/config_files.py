"""Config files, recipes by name, and overrides of fields on the command line."""

import ast
from collections.abc import Sequence
import difflib
import importlib.util
import json
import os
import pathlib
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

from nfnets.errors import UserError

if TYPE_CHECKING:
    import ml_collections

OVERRIDE = "--config."


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
      UserError: the field is unknown.
    """
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{OVERRIDE}{name} has no value; write {OVERRIDE}{name}=VALUE")
        *sections, field = name.split(".")
        section = _find_section(config, sections)
        # Averages and model overrides may be added; everything else must exist.
        if section is None or (field not in section and section.is_locked):
            raise UserError(_unknown_field(config, name))
        current = section.get(field)
        if _is_section(current) and current.is_locked:
            raise UserError(f"{OVERRIDE}{name} is a section; set one of its fields")
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
    return f"unknown field {OVERRIDE}{name}; did you mean {OVERRIDE}{nearest}?"


def field_names(config: "ml_collections.ConfigDict", prefix: str = "") -> list[str]:
    """Returns the names `section.field` of a config's fields."""
    names: list[str] = []
    for key, value in config.items():
        if _is_section(value):
            names += field_names(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
