"""Reading and writing weights as safetensors: data, never code."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from nfnets.errors import UserError
from nfnets.models import Model, Params, State
from nfnets.weights.fitting import fit_weights
from nfnets.weights.info import WeightsInfo

# Tensors are named `params|module|name` and `state|module|name`.
_SEPARATOR = "|"
_METADATA_KEY = "nfnets"


def save_weights(
    path: str | pathlib.Path,
    params: Params,
    state: State | None = None,
    info: WeightsInfo | None = None,
) -> None:
    """Writes weights to a safetensors file.

    Args:
      path: of the file; replaced as a whole if it exists.
      params: module -> name -> array, numpy's or JAX's.
      state: likewise, of batch norm.
      info: kept in the file's metadata, with the tensors' checksum.

    Raises:
      UserError: the file cannot be written.
    """
    tensors = {
        _SEPARATOR.join((kind, module, name)): np.asarray(jax.device_get(array))
        for kind, tree in (("params", params), ("state", state or {}))
        for module, arrays in tree.items()
        for name, array in arrays.items()
    }
    info = dataclasses.replace(info or WeightsInfo(), checksum=checksum(tensors))
    write_safetensors(path, tensors, {_METADATA_KEY: info.to_json()})


def write_safetensors(
    path: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file, which appears as a whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    contiguous = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        safetensors.numpy.save_file(contiguous, temporary, metadata=dict(metadata))
        temporary.chmod(mode)  # safetensors' own lets only the owner read
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}") from None


def load_weights(
    path: str | pathlib.Path, model: Model | None = None, skip: Sequence[str] = ()
) -> tuple[Params, State]:
    """Reads weights that `save_weights` wrote.

    Args:
      path: of the file.
      model: that the weights must fit; None: whatever the file holds.
      skip: see `nfnets.weights.fit_weights`; only with a model.

    Returns:
      (params, state): module -> name -> array.

    Raises:
      UserError: no such file, not one of `save_weights`, damaged, or not of the model.
    """
    trees: dict[str, dict[str, dict[str, jax.Array]]] = {"params": {}, "state": {}}
    tensors, info = _read(path)
    found = checksum(tensors)
    if info.checksum not in (None, found):
        raise UserError(
            f"{path} is damaged: its tensors have the checksum {found[:12]}..., not "
            f"{info.checksum[:12]}... as when it was written"
        )
    for key, array in tensors.items():
        parts = key.split(_SEPARATOR)
        if len(parts) != 3 or parts[0] not in trees:
            raise UserError(
                f"{path} has a tensor {key!r}: not a file of nfnets.save_weights"
                + (" (python -m nfnets.weights.convert reads timm's)" * ("." in key))
            )
        kind, module, name = parts
        trees[kind].setdefault(module, {})[name] = jnp.asarray(array)
    params, state = trees["params"], trees["state"]
    if model is None:
        return params, state
    return fit_weights(path, params, state, model, skip)


def read_weights_info(path: str | pathlib.Path) -> WeightsInfo:
    """Returns what a weights file says about itself; reads none of its tensors.

    Raises:
      UserError: no such file, or no safetensors file.
    """
    with open_safetensors(path) as file:
        return _info(path, file)


def initial_weights(
    path: str | None, model: Model, seed: int, skip: Sequence[str] = ()
) -> tuple[Params, State] | None:
    """Returns the weights that a run starts from.

    A classifier for another number of classes is replaced by a fresh one, and said so.

    Args:
      path: a weights file; None: start from random weights.
      model: that the weights are for.
      seed: of a fresh classifier.
      skip: patterns as in `fit_weights`.

    Returns:
      (params, state) in the dtypes that the model trains in, whatever the file's; or None
      without a path.

    Raises:
      UserError: the file does not fit the model.
    """
    if path is None:
        return None
    params, state = load_weights(path)
    head = f"{model.spec.module_name}/~/linear"
    classes = params[head]["w"].shape[-1] if "w" in params.get(head, {}) else None
    if classes not in (None, model.num_classes):
        print(
            f"init      {path} is for {classes} classes, this run has "
            f"{model.num_classes}: the classifier starts anew",
            flush=True,
        )
        skip = (*skip, f"{head}:*")
    fitted = fit_weights(path, params, state, model, skip, seed)
    return jax.tree.map(lambda a, like: a.astype(like.dtype), fitted, model.shapes())


def checksum(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names, dtypes, shapes and values, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        array = np.ascontiguousarray(tensors[key])
        digest.update(f"{key}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def open_safetensors(path: str | pathlib.Path) -> Any:
    """Opens a safetensors file for `keys`, `get_tensor` and `metadata`.

    Raises:
      UserError: no such file, or no safetensors file.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"no weights file {path}")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from None


def _read(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], WeightsInfo]:
    with open_safetensors(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, _info(path, file)


def _info(path: str | pathlib.Path, file: Any) -> WeightsInfo:
    text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
    try:
        return WeightsInfo.from_json(text)
    except ValueError as error:
        raise UserError(f"{path} has unreadable metadata: {error}") from None
