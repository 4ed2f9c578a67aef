"""Safe reader of pickled arrays and dictionaries.

A pickle is a program that names functions and calls them. This unpickler knows the few
names that NumPy arrays and Haiku's mappings need, and puts functions of this file in their
place; every other name is refused before anything is called.
"""

from collections.abc import Callable, Mapping
import math
import pickle
import re
from typing import IO, Any, Literal

import numpy as np

from nfnets.errors import UserError

# Numbers and booleans; no objects, strings or structures.
_DTYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")
_BYTE_ORDERS = ("<", ">", "|", "=")


class RefusedPickleError(UserError):
    """The pickle holds something other than arrays and mappings."""


class _Function:
    """Callable whose attributes a pickle cannot set."""

    __slots__ = ("_call", "_name")
    _call: Callable[..., Any]
    _name: str

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise RefusedPickleError(f"it sets {name!r} of {self._name}")


class _Dtype:
    """A `numpy.dtype` under construction."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise RefusedPickleError(f"it has an array of {code!r}, not of numbers")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in _BYTE_ORDERS:
            raise RefusedPickleError(f"it has the byte order {state[1]!r}")
        self.value = self.value.newbyteorder(state[1])


class PickledArray:
    """A `numpy.ndarray` under construction.

    Attributes:
      value: the array in native byte order; None until `__setstate__`.
    """

    def __init__(self, *_: Any) -> None:
        """Ignores the placeholder's type, shape and dtype."""
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes NumPy's (version, shape, dtype, is in Fortran order, bytes)."""
        _, shape, dtype, is_fortran, data = state
        self.value = _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise RefusedPickleError("it has an array without a dtype")
    if not isinstance(data, bytes | bytearray):
        raise RefusedPickleError("it has an array of objects, not of numbers")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise RefusedPickleError(f"it has {len(data)} bytes for an array {list(shape)}")
    array = np.frombuffer(data, dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="), copy=False)


def _dill_array(_function: Any, _args: Any, state: Any, *_: Any) -> PickledArray:
    array = PickledArray()
    array.__setstate__(state)
    return array


_CORES = ("numpy.core", "numpy._core")  # NumPy 1 and 2
_NAMES: Mapping[str, Callable[..., Any]] = {
    **{f"{core}.multiarray._reconstruct": PickledArray for core in _CORES},
    **{f"{core}.numeric._frombuffer": _array for core in _CORES},
    **{
        f"{core}.multiarray.scalar": lambda dtype, data: _array(data, dtype, (), "C")
        for core in _CORES
    },
    "numpy.ndarray": PickledArray,
    "numpy.dtype": _Dtype,
    "dill._dill._create_array": _dill_array,
    "collections.OrderedDict": dict,
    "haiku._src.data_structures.FlatMapping": dict,
    "haiku._src.data_structures.FlatMap": dict,
    "haiku._src.data_structures.frozendict": dict,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Function:
        path = f"{module}.{name}"
        if path not in _NAMES:
            raise RefusedPickleError(
                f"it names {path!r}; only NumPy arrays, dictionaries and Haiku's mappings "
                "are read, and nothing was run"
            )
        return _Function(path, _NAMES[path])


def load_pickle(path: object, file: IO[bytes]) -> Any:
    """Reads a pickle of nested mappings, sequences, arrays and numbers.

    Args:
      path: for messages.
      file: positioned at the pickle.

    Returns:
      The same as dict, tuple, list, `PickledArray`, `numpy.ndarray`, numbers and strings.

    Raises:
      UserError: the file is not a pickle, or one that holds anything else.
    """
    try:
        return _ArrayUnpickler(file).load()
    except RefusedPickleError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except Exception as error:  # whatever a damaged pickle leads the C code to
        raise UserError(f"{path} is not a readable pickle: {error}") from None
