"""Arrays and mappings out of pickle files, without running anything that is in them.

A pickle is a program: its opcodes name functions and call them. The unpickler here knows
by name what arrays and mappings are made of and puts its own functions in their place;
every other name is refused before anything is called. What the substitutes return are
plain dictionaries and arrays, whose data is copied from bytes in the file.
"""

from collections.abc import Callable, Mapping
import math
import pickle
import re
from typing import IO, Any

import numpy as np

from nfnets.errors import UserError

# Numbers and booleans; no objects, strings or fields.
_DTYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")
_NUMPY_CORES = ("numpy.core", "numpy._core")


class RefusedPickleError(UserError):
    """The pickle names something that is neither an array nor a mapping."""


class Substitute:
    """A callable in place of a named one; without attributes that a pickle could set."""

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        """`function` is called in place of what `name` is elsewhere."""
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function; arguments that it cannot take are the pickle's fault."""
        try:
            return self._function(*args, **kwargs)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise RefusedPickleError(f"its {self._name} is malformed: {error}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise RefusedPickleError(f"it sets {name!r} of {self._name}")

    def is_named(self, *names: str) -> bool:
        """Whether this stands for one of `names`."""
        return self._name in names


class _Dtype:
    """What a pickle calls a dtype, built up in two steps."""

    __slots__ = ("value",)

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise RefusedPickleError(f"it has an array of {code!r}: only numbers are read")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise RefusedPickleError(f"it has the byte order {order!r}")
        self.value = self.value.newbyteorder(order)


class _Array:
    """What a pickle calls an array, filled by its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise RefusedPickleError("it has an array without a dtype")
    if not isinstance(data, bytes | bytearray):
        raise RefusedPickleError("it has an array of objects: only numbers are read")
    shape = tuple(shape)
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise RefusedPickleError(f"it has {len(data)} bytes for an array {list(shape)}")
    array = np.frombuffer(data, dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="), copy=False)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return _array(data, dtype, shape, order)


def _scalar(dtype: Any, data: Any) -> np.ndarray:
    return _array(data, dtype, (), "C")


def _from_reduced(function: Any, _: Any, state: Any, *__: Any) -> _Array:
    """An array inside another's pickle: dill's NumPy arrays and JAX's."""
    if not isinstance(function, Substitute) or not function.is_named(*_RECONSTRUCT):
        raise RefusedPickleError("it has an array that is built by no NumPy function")
    array = _Array()
    array.__setstate__(state)
    return array


class _OrderedDict(dict):
    """Leaves out attributes, such as PyTorch's `_metadata` of a state dictionary."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        pass


def _mapping(data: Any = ()) -> dict[Any, Any]:
    return dict(data)


def _default_mapping(_: Any = None, data: Any = ()) -> dict[Any, Any]:
    return dict(data)


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 and before write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How they write none."""
    return b""


_RECONSTRUCT = tuple(f"{core}.multiarray._reconstruct" for core in _NUMPY_CORES)
ARRAY_NAMES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(_RECONSTRUCT, _reconstruct),
    **{f"{core}.multiarray.scalar": _scalar for core in _NUMPY_CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in _NUMPY_CORES},
    "numpy.ndarray": _reconstruct,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    "dill._dill._create_array": _from_reduced,
    "jax._src.array._reconstruct_array": _from_reduced,
    "jax._src.device_array.reconstruct_device_array": _from_reduced,
    "jax.interpreters.xla.reconstruct_device_array": _from_reduced,
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "collections.OrderedDict": _OrderedDict,
    "collections.defaultdict": _default_mapping,
    "haiku._src.data_structures.FlatMapping": _mapping,
    "haiku._src.data_structures.FlatMap": _mapping,
    "haiku._src.data_structures.frozendict": _mapping,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads numbers, strings, arrays and mappings; refuses every other name."""

    def __init__(
        self, file: IO[bytes], names: Mapping[str, Callable[..., Any]] = ARRAY_NAMES
    ) -> None:
        """`names` says what stands in for which function or class."""
        super().__init__(file)
        self._names = names

    def find_class(self, module: str, name: str) -> Substitute:
        """Called for whatever a pickle names; returns never the thing itself."""
        path = f"{module}.{name}"
        if path not in self._names:
            raise RefusedPickleError(
                f"it names {path!r}; only NumPy arrays, dictionaries and Haiku's mappings "
                "are read, and nothing was run"
            )
        return Substitute(path, self._names[path])

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to objects outside of the pickle."""
        raise RefusedPickleError(f"it refers to an outside object {str(pid)[:40]!r}")


def load_pickle(path: object, file: IO[bytes]) -> Any:
    """Reads a pickle of nested mappings, sequences, arrays and numbers.

    Args:
      path: for messages.
      file: positioned at the pickle.

    Returns:
      The same of dict, tuple, list, `numpy.ndarray`, numbers and strings.

    Raises:
      UserError: no pickle, or one that holds anything else, which is not run.
    """
    return _plain(path, read_pickle(path, ArrayUnpickler(file)))


def read_pickle(path: object, unpickler: pickle.Unpickler) -> Any:
    """Returns `unpickler.load()`, whose errors become one line that names the file.

    Raises:
      UserError: the pickle is refused or damaged.
    """
    try:
        return unpickler.load()
    except RefusedPickleError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} is no readable pickle: {error}") from None


def _plain(path: object, value: Any, depth: int = 0) -> Any:
    """Takes the finished arrays out of what they were built in."""
    if depth > 8:
        raise UserError(f"{path} is refused: it is nested too deeply")
    if isinstance(value, _Array):
        if value.value is None:
            raise UserError(f"{path} is refused: it has an array without data")
        return value.value
    if isinstance(value, dict):
        return {key: _plain(path, entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(path, entry, depth + 1) for entry in value)
    if value is None or isinstance(value, str | bytes | int | float | np.ndarray):
        return value
    raise UserError(f"{path} is refused: it holds a {type(value).__name__}")
