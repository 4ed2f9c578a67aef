"""The published checkpoints: Haiku parameters as pickles, whatever the suffix, or npz."""

from collections.abc import Mapping
import pathlib
import re
from typing import Any
import zipfile

import numpy as np

from nfnets.errors import UserError
from nfnets.models import create_model, get_spec, list_models, listing_hash
from nfnets.weights.unpickling import load_pickle

Tree = dict[str, dict[str, np.ndarray]]

# Separates module and name in the flat keys of an npz file.
_FLAT_KEY = re.compile(r"(?P<module>.+)[|:](?P<name>[^|:]+)")
_BLOCK = re.compile(r"[^/]+/~/(?P<block>[a-z_0-9]*block(?:_v\d)?(?:_\d+)?)(?:/|$)")


def read_published(path: str | pathlib.Path) -> tuple[Tree, Tree]:
    """Reads Haiku parameters, alone or as a pair with the state.

    Args:
      path: a pickle of dill or of the standard library, or an npz file whose arrays are
        called `module:name` or `module|name`.

    Returns:
      (params, state): module -> name -> array; floating-point arrays are float32.

    Raises:
      UserError: no such file, or one that holds anything but arrays and mappings.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            value = _read_npz(path) if is_zip else load_pickle(path, file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    params, state = value if _is_pair(value) else (value, {})
    return _tree(path, params), _tree(path, state)


def guess_model(path: object, params: Mapping[str, Mapping[str, Any]]) -> tuple[str, int]:
    """Finds the model whose parameters have these names and shapes.

    Args:
      path: of the file, for messages.
      params: module -> name -> array.

    Returns:
      (name, number of classes).

    Raises:
      UserError: none has, or several.
    """
    top = {module.partition("/")[0] for module in params}
    blocks = {match["block"] for match in map(_BLOCK.match, params) if match}
    # Squeeze-and-excite has linear layers too, but deeper.
    heads = [
        arrays["w"]
        for module, arrays in params.items()
        if module.count("/") == 2 and module.endswith("/~/linear") and "w" in arrays
    ]
    found = []
    if len(top) == 1 and len(heads) == 1:
        classes = heads[0].shape[-1]
        for name in list_models():
            spec = get_spec(name)
            stem = params.get(f"{spec.module_name}/~/{spec.stem[-1].name}", {}).get("w")
            if sum(spec.depths) != len(blocks) or stem is None:
                continue
            if stem.shape[-1] != spec.stem[-1].channels:  # spares counting the plus ones
                continue
            shapes = create_model(name, classes).shapes()[0]
            if listing_hash(shapes) == listing_hash(params):
                found.append(name)
    if len(found) != 1:
        names = " and ".join(found) or "none"
        raise UserError(
            f"{path}: of the models, {names} has exactly these {len(blocks)} blocks, "
            "parameters and shapes; give --model=NAME"
        )
    return found[0], classes


def _read_npz(path: str | pathlib.Path) -> Tree:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            flat = {key: arrays[key] for key in arrays.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is refused: {error}") from None
    tree: Tree = {}
    for key, array in flat.items():
        match = _FLAT_KEY.fullmatch(key)
        if not match:
            raise UserError(f"{path} has an array {key!r}; expected MODULE:NAME")
        tree.setdefault(match["module"], {})[match["name"]] = array
    return tree


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, dict) for part in value)
    )


def _tree(path: object, value: Any) -> Tree:
    """Checks that `value` is module -> name -> array of numbers."""
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds a {type(value).__name__}, not Haiku parameters "
            "(module -> name -> array)"
        )
    tree: Tree = {}
    for module, arrays in value.items():
        if not isinstance(module, str) or not isinstance(arrays, dict):
            raise UserError(f"{path}: {str(module)[:60]!r} is no module with arrays")
        tree[module] = {}
        for name, array in arrays.items():
            if isinstance(array, bool | int | float):
                array = np.asarray(array, np.float32)
            if not isinstance(name, str) or not isinstance(array, np.ndarray):
                raise UserError(f"{path}: {module}:{str(name)[:60]} is no array")
            is_float = np.issubdtype(array.dtype, np.floating)
            tree[module][name] = array.astype(np.float32) if is_float else array
    return tree
