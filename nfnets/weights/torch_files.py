"""State dictionaries out of PyTorch files, without PyTorch and without running anything.

Since PyTorch 1.6 a file is a zip archive: one pickle, whose tensors refer to raw storages
beside it. Older files are five pickles in a row, then the storages. The pickles go through
`nfnets.weights.unpickling`.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
import pathlib
import struct
from typing import IO, Any
import zipfile

import numpy as np

from nfnets.errors import UserError
from nfnets.weights.unpickling import (
    ARRAY_NAMES,
    ArrayUnpickler,
    RefusedPickleError,
    Substitute,
    read_pickle,
)

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.DoubleStorage": "<f8",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "?",
}


@dataclasses.dataclass(eq=False, slots=True)
class _Storage:
    """Numbers that tensors look into; `data` comes after the pickle."""

    key: str
    dtype: np.dtype
    count: int
    data: np.ndarray | None = None


@dataclasses.dataclass(eq=False, slots=True)
class _Tensor:
    """A window into a storage, offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Returns a contiguous copy.

        Raises:
          ValueError: the window reaches beyond the storage.
        """
        pairs = list(zip(self.shape, self.strides, strict=True))
        last = self.offset + sum((n - 1) * stride for n, stride in pairs)
        if min((self.offset, *self.shape, *self.strides)) < 0:
            raise ValueError("negative shape, stride or offset")
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        size = self.storage.data.size
        if last >= size or math.prod(self.shape) > size:
            raise ValueError(f"{list(self.shape)} in a storage of {size}")
        window = np.lib.stride_tricks.as_strided(
            self.storage.data[self.offset :],
            self.shape,
            [stride * self.storage.dtype.itemsize for stride in self.strides],
            writeable=False,
        )
        return np.array(window, order="C")


def _rebuild_tensor(
    storage: Any, offset: int, shape: Any, strides: Any, *_: Any
) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _no_call(*_: Any) -> None:
    raise TypeError("a storage's type is called")


_NAMES = {
    **ARRAY_NAMES,
    **dict.fromkeys(_DTYPES, _no_call),
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}


class _TorchUnpickler(ArrayUnpickler):
    """Reads tensors too, whose storages it collects by key."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, _NAMES)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor refers to."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            return super().persistent_load(pid)
        _, kind, key, _, count = pid[:5]
        dtype = next((d for name, d in _DTYPES.items() if _stands_for(kind, name)), None)
        if dtype is None or not isinstance(key, str) or (len(pid) > 5 and pid[5]):
            raise RefusedPickleError("it has a storage that is not read")
        return self.storages.setdefault(key, _Storage(key, np.dtype(dtype), int(count)))


def _stands_for(kind: Any, name: str) -> bool:
    return isinstance(kind, Substitute) and kind.is_named(name)


def read_torch(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the state dictionary in a PyTorch file.

    Args:
      path: a file of `torch.save(model.state_dict(), path)`, or of a dictionary that has
        it under `state_dict` or `model`.

    Returns:
      name -> array.

    Raises:
      UserError: the file holds anything but tensors and mappings, or is damaged.
    """
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
        file.seek(0)
        value = _read_zip(path, file) if is_zip else _read_legacy(path, file)
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path} holds no state dictionary (name -> tensor)")
    arrays = {}
    for key, tensor in value.items():
        if not isinstance(tensor, _Tensor):
            raise UserError(f"{path}: {key!r} is no tensor")
        try:
            arrays[key] = tensor.read()
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: {key!r} is damaged: {error}") from None
    return arrays


def _read_zip(path: object, file: IO[bytes]) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{path} is a zip archive, but not one of PyTorch")
            folder = pickles[0].removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in names and archive.read(order).strip() != b"little":
                raise UserError(f"{path} was written on a big-endian machine")
            with archive.open(pickles[0]) as stream:
                unpickler = _TorchUnpickler(stream)
                value = read_pickle(path, unpickler)
            for storage in unpickler.storages.values():
                _fill(path, storage, archive.read(f"{folder}data/{storage.key}"))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return value


def _read_legacy(path: object, file: IO[bytes]) -> Any:
    if read_pickle(path, ArrayUnpickler(file)) != _MAGIC:
        raise UserError(f"{path} is neither a PyTorch nor a safetensors file")
    for _ in ("protocol version", "the writing machine"):
        read_pickle(path, ArrayUnpickler(file))
    unpickler = _TorchUnpickler(file)
    value = read_pickle(path, unpickler)
    keys = read_pickle(path, ArrayUnpickler(file))
    storages: Mapping[str, _Storage] = unpickler.storages
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise UserError(f"{path} is damaged: its storages are not those of its tensors")
    for key in keys:
        header = file.read(8)
        if len(header) < 8 or struct.unpack("<q", header)[0] != storages[key].count:
            raise UserError(f"{path} is damaged: a storage's length is wrong")
        _fill(path, storages[key], file.read(_size(storages[key])))
    return value


def _size(storage: _Storage) -> int:
    return storage.count * storage.dtype.itemsize


def _fill(path: object, storage: _Storage, data: bytes) -> None:
    if len(data) != _size(storage):
        raise UserError(f"{path} is damaged: a storage's length is wrong")
    storage.data = np.frombuffer(data, storage.dtype)
