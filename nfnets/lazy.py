"""Package attributes that are imported on first use (PEP 562)."""

from collections.abc import Callable, Mapping, Sequence
import importlib
from typing import Any


def attach(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns a package's `__getattr__` and `__dir__` for lazily imported names.

    Example, in a package's `__init__.py`:

        __getattr__, __dir__ = lazy.attach(__name__, {"package.module": ("name",)})

    Args:
      package: the package's `__name__`.
      exports: module -> names that the package takes from it.
    """
    module_of = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(module_of[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *module_of})

    return get, names
