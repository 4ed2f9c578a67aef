"""Weights in safetensors files.

Tensors are named `params|module|name` and `state|module|name`; the metadata entry `nfnets`
is a `WeightsInfo` as JSON.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import pathlib
from typing import Any
import zipfile

import jax
import numpy as np
import safetensors
import safetensors.numpy

from nfnets.errors import UserError
from nfnets.files import write_atomically
from nfnets.weights.fitting import Arrays
from nfnets.weights.info import WeightsInfo

SEPARATOR = "|"
METADATA_KEY = "nfnets"
# The first bytes of PyTorch files from before version 1.6.
_OLD_PYTORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def save_weights(
    path: str | pathlib.Path,
    params: Arrays,
    state: Arrays | None = None,
    info: WeightsInfo | None = None,
) -> None:
    """Writes weights to a safetensors file.

    Args:
      path: of the file; replaced if it exists.
      params: module -> name -> array of NumPy or JAX.
      state: module -> name -> array, batch-norm statistics.
      info: metadata; the checksum of the tensors is added.

    Raises:
      UserError: the file cannot be written.
    """
    tensors = {
        SEPARATOR.join((kind, module, name)): np.asarray(jax.device_get(array))
        for kind, tree in (("params", params), ("state", state or {}))
        for module, arrays in tree.items()
        for name, array in arrays.items()
    }
    info = dataclasses.replace(info or WeightsInfo(), checksum=checksum(tensors))
    write_safetensors(path, tensors, {METADATA_KEY: info.to_json()})


def identify_format(path: str | pathlib.Path) -> str:
    """Finds the format of a weights file by its content.

    Returns:
      `nfnets` for files of `save_weights`, `timm` for other safetensors and PyTorch files,
      `haiku` for other pickles and npz files.

    Raises:
      UserError: the file is missing or of none of these formats.
    """
    if is_safetensors(path):
        with open_safetensors(path) as file:
            is_own = all(SEPARATOR in key for key in file.keys())  # noqa: SIM118
        return "nfnets" if is_own else "timm"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_pytorch = any(name.endswith("/data.pkl") for name in archive.namelist())
        return "timm" if is_pytorch else "haiku"
    start = _first_bytes(path)
    if start.startswith(b"\x80"):
        return "timm" if start == _OLD_PYTORCH else "haiku"
    raise UserError(
        f"{path} is not a weights file: neither safetensors, PyTorch nor pickle"
    )


def is_safetensors(path: str | pathlib.Path) -> bool:
    """Returns whether a file begins like a safetensors file: 8 bytes of length, then JSON.

    Raises:
      UserError: the file cannot be read.
    """
    return _first_bytes(path)[8:9] == b"{"


def _first_bytes(path: str | pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(len(_OLD_PYTORCH))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and values, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        array = np.ascontiguousarray(tensors[key])
        digest.update(f"{key}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_safetensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file atomically.

    Raises:
      UserError: the file cannot be written.
    """
    contiguous = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    data = safetensors.numpy.save(contiguous, metadata=dict(metadata))
    try:
        write_atomically(path, lambda place: place.write_bytes(data))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def read_safetensors(
    path: str | pathlib.Path,
) -> tuple[dict[str, np.ndarray], Mapping[str, str] | None]:
    """Returns the tensors and the metadata of a safetensors file.

    Raises:
      UserError: the file is missing or of another format.
    """
    with open_safetensors(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, file.metadata()


def open_safetensors(path: str | pathlib.Path) -> Any:
    """Opens a safetensors file for `keys`, `get_tensor` and `metadata`.

    Raises:
      UserError: the file is missing or of another format.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"no weights file {path}")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
