"""DeepMind's published checkpoints: pickled Haiku parameters, also in files called .npz."""

from collections.abc import Mapping
import pathlib
import re
from typing import Any
import zipfile

import numpy as np

from nfnets.errors import UserError
from nfnets.models import create_model, get_spec, list_models, listing_hash
from nfnets.models.names import block_index, is_head
from nfnets.weights.unpickling import PickledArray, load_pickle

# module -> name -> array.
Tree = dict[str, dict[str, np.ndarray]]

_NPZ_KEY = re.compile(r"(?P<module>.+)[|:](?P<name>[^|:]+)")


def read_published(path: str | pathlib.Path) -> tuple[Tree, Tree]:
    """Reads Haiku parameters, alone or in a pair with the state.

    Args:
      path: of a pickle, by the standard library or dill, or of an npz file with arrays
        called `module:name` or `module|name`.

    Returns:
      (params, state): module -> name -> array; floating-point arrays are float32.

    Raises:
      UserError: the file is missing, or holds anything but arrays and mappings.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            value = _read_npz(path) if is_zip else load_pickle(path, file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    is_pair = (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, dict) for part in value)
    )
    params, state = value if is_pair else (value, {})
    return _tree(path, params), _tree(path, state)


def identify_model(path: object, params: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the name of the only model with these parameters' names and shapes.

    Args:
      path: of the file, for messages.
      params: module -> name -> array.

    Raises:
      UserError: no model has these parameters, or several have.
    """
    classes = count_classes(path, params)
    network = next(iter(params)).partition("/")[0]
    blocks = {block_index(module) for module in params} - {None}
    found = []
    for name in list_models():
        spec = get_spec(name)
        if spec.module_name == network and sum(spec.depths) == len(blocks):
            shapes, _ = create_model(name, classes).shapes()
            if listing_hash(shapes) == listing_hash(params):
                found.append(name)
    if len(found) != 1:
        raise UserError(
            f"{path} has the parameters of {' and '.join(found) or 'no model'} "
            f"({network} of {len(blocks)} blocks); give --model=NAME"
        )
    return found[0]


def count_classes(path: object, params: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns the number of classes of Haiku parameters.

    Raises:
      UserError: there is no classifier, or more than one.
    """
    heads = [arrays["w"] for m, arrays in params.items() if is_head(m) and "w" in arrays]
    if len(heads) != 1 or len(heads[0].shape) != 2:
        raise UserError(f"{path} has no classifier NETWORK/~/linear:w [features, classes]")
    return heads[0].shape[-1]


def _read_npz(path: str | pathlib.Path) -> Tree:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            flat = {key: arrays[key] for key in arrays.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is refused: {error}") from None
    tree: Tree = {}
    for key, array in flat.items():
        match = _NPZ_KEY.fullmatch(key)
        if not match:
            raise UserError(f"{path} has an array {key!r}; expected MODULE:NAME")
        tree.setdefault(match["module"], {})[match["name"]] = array
    return tree


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
            raise UserError(f"{path}: {str(module)[:60]!r} is not a module with arrays")
        tree[module] = {}
        for name, array in arrays.items():
            array = array.value if isinstance(array, PickledArray) else array
            if isinstance(array, bool | int | float):
                array = np.asarray(array, np.float32)
            if not isinstance(name, str) or not isinstance(array, np.ndarray):
                raise UserError(f"{path}: {module}:{str(name)[:60]} is not an array")
            is_float = np.issubdtype(array.dtype, np.floating)
            tree[module][name] = array.astype(np.float32) if is_float else array
    return tree
