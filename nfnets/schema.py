"""Values checked against the annotations of a dataclass.

`Annotated[float, "[0, 1)"]` is a range, `Literal["a", "b"]` a choice, and `X | None` an
optional field; nested dataclasses, tuples and mappings are checked by their entries.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

from nfnets.errors import UserError

Section = TypeVar("Section")


def build(cls: type[Section], tree: Mapping[str, Any], path: str) -> Section:
    """Creates a dataclass from a nested mapping.

    Args:
      cls: the dataclass; fields without a value take their defaults.
      tree: field -> value, nested dataclasses as mappings.
      path: prefix of the fields' names in messages.

    Raises:
      UserError: a field is unknown, or its value is of the wrong type or out of range.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    unknown = sorted(tree.keys() - hints.keys())
    if unknown:
        raise UserError(f"unknown field {path}.{unknown[0]}; known: {', '.join(hints)}")
    return cls(**{k: check(hints[k], v, f"{path}.{k}") for k, v in tree.items()})


def check(hint: Any, value: Any, path: str) -> Any:
    """Returns a value converted to an annotation: ints to floats, lists to tuples.

    Args:
      hint: the annotation.
      value: to be checked.
      path: its name in messages.

    Raises:
      UserError: it is of another type, out of range or not one of the choices.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, path)
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if is_union else (hint,)
    if hint is Any or (value is None and types.NoneType in options):
        return value
    for option in options:
        fitted = _fit(option, value, path)
        if fitted is not None:
            return fitted
    wanted = " or ".join(_describe(option) for option in options)
    raise UserError(f"{path} must be {wanted}, not {value!r}")


def select(section: Any, target: type[Section]) -> Section:
    """Creates a dataclass from those attributes of `section` that it has fields for."""
    names = [field.name for field in dataclasses.fields(target)]  # type: ignore[arg-type]
    return target(**{name: getattr(section, name) for name in names})


def as_arguments(section: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass, nested ones as they are."""
    return {
        field.name: getattr(section, field.name) for field in dataclasses.fields(section)
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `outer.inner` -> value of nested mappings; empty ones stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return tree


def drop_unknown(cls: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a nested mapping that a dataclass has fields for."""
    hints = typing.get_type_hints(cls)
    return {
        key: drop_unknown(hints[key], value)
        if dataclasses.is_dataclass(hints[key])
        else value
        for key, value in tree.items()
        if key in hints
    }


def _fit(hint: Any, value: Any, path: str) -> Any:
    """Returns `value` converted to `hint`, None if it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        fitted = _fit(arguments[0], value, path)
        return fitted if fitted is not None and _is_within(fitted, arguments[1]) else None
    if origin is Literal:
        return value if value in arguments else None
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part]
        if not isinstance(value, Sequence):
            return None
        return tuple(check(arguments[0], entry, path) for entry in value)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return None
        return {k: check(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, bool) and hint is not bool:
        return None
    if hint is float and isinstance(value, int | float):
        return float(value)
    return value if isinstance(value, hint) else None


def _is_within(value: float, interval: str) -> bool:
    """Whether a number, which may be NaN, lies in an interval such as "[0, 1)"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _describe(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return f"{_describe(arguments[0])} in {arguments[1]}"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, arguments))
    if typing.get_origin(hint) is tuple:
        return f"a tuple, each entry {_describe(arguments[0])}"
    names = {int: "an integer", float: "a number", str: "a string", bool: "True or False"}
    return names.get(hint, "None" if hint is types.NoneType else "a mapping")
