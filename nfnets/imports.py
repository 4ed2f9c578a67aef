"""Functions and classes that configs and arguments name."""

from collections.abc import Callable, Mapping
import difflib
import importlib
import inspect
import os
import sys
from typing import Any

from nfnets.errors import UserError


def find(name: str, namespace: object, what: str) -> Any:
    """Returns the function or class called `name`.

    Args:
      name: an attribute of `namespace`, or `package.module:attribute`, which is imported,
        from the current folder too.
      namespace: a module, or a mapping from names; None: only imports are accepted.
      what: description of the value in messages, such as "optimizer".

    Raises:
      UserError: the module or attribute does not exist, or it is not callable.
    """
    module, colon, attribute = name.rpartition(":")
    if colon:
        namespace = _import(module, f"{what} {name!r}")
    elif namespace is None:
        raise UserError(f"{what} must be 'package.module:function', not {name!r}")
    if isinstance(namespace, Mapping):
        known, found = list(namespace), namespace.get(attribute)
    else:
        known, found = dir(namespace), getattr(namespace, attribute, None)
    if callable(found):
        return found
    choices = difflib.get_close_matches(attribute, known) or known
    hint = f"; did you mean {' or '.join(choices)}?" if len(choices) < 10 else ""
    raise UserError(f"unknown {what} {name!r}{hint}")


def call(function: Callable[..., Any], what: str, /, *args: Any, **kwargs: Any) -> Any:
    """Returns `function(*args, **kwargs)`.

    Raises:
      UserError: the arguments do not fit its signature; `what` describes it.
    """
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(f"{what}: {error}") from None
    return function(*args, **kwargs)


def _import(module: str, what: str) -> Any:
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{what}: {module!r} is not the name of a module")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # an import inside of the module failed
        raise UserError(f"{what}: {error}; is it in the current folder?") from None
