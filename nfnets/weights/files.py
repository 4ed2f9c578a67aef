"""Reading and writing weights as safetensors: data, never code."""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from nfnets.errors import UserError
from nfnets.models import Model, Params, State

# Tensors are named `params|module|name` and `state|module|name`.
_SEPARATOR = "|"
_METADATA_KEY = "nfnets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file says about itself; None where it does not say.

    Attributes:
      model: name for `nfnets.create_model`.
      num_classes: logits.
      class_names: index = class.
      image_size: side of the evaluation images, pixels.
      preprocessing: evaluation preprocessing, `resize_crop_32` or `crop_resize`.
      source: where the weights come from, in words.
    """

    model: str | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    image_size: int | None = None
    preprocessing: str | None = None
    source: str | None = None


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
      info: kept in the file's metadata.
    """
    tensors = {
        _SEPARATOR.join((kind, module, name)): np.asarray(jax.device_get(array))
        for kind, tree in (("params", params), ("state", state or {}))
        for module, arrays in tree.items()
        for name, array in arrays.items()
    }
    stored = {k: v for k, v in dataclasses.asdict(info or WeightsInfo()).items() if v}
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".tmp")
    safetensors.numpy.save_file(
        tensors, temporary, metadata={_METADATA_KEY: json.dumps(stored)}
    )
    temporary.replace(path)


def load_weights(path: str | pathlib.Path) -> tuple[Params, State]:
    """Reads weights that `save_weights` wrote.

    Returns:
      (params, state): module -> name -> array.

    Raises:
      UserError: no such file, or not one of `save_weights`.
    """
    trees: dict[str, dict[str, dict[str, jax.Array]]] = {"params": {}, "state": {}}
    with _open(path) as file:
        for key in file.keys():  # noqa: SIM118, not a dictionary
            parts = key.split(_SEPARATOR)
            if len(parts) != 3 or parts[0] not in trees:
                raise UserError(
                    f"{path} has a tensor {key!r}: not a file of nfnets.save_weights"
                )
            kind, module, name = parts
            trees[kind].setdefault(module, {})[name] = jnp.asarray(file.get_tensor(key))
    return trees["params"], trees["state"]


def read_weights_info(path: str | pathlib.Path) -> WeightsInfo:
    """Returns what a weights file says about itself.

    Raises:
      UserError: no such file, or no safetensors file.
    """
    with _open(path) as file:
        stored = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    if "class_names" in stored:
        stored["class_names"] = tuple(stored["class_names"])
    known = {field.name for field in dataclasses.fields(WeightsInfo)}
    return WeightsInfo(**{key: value for key, value in stored.items() if key in known})


def _open(path: str | pathlib.Path) -> Any:
    if not pathlib.Path(path).is_file():
        raise UserError(f"no weights file {path}")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is no safetensors file: {error}") from None


def check_weights(
    path: str | pathlib.Path, loaded: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Compares loaded parameters with a model's, name by name.

    Raises:
      UserError: some are missing, unexpected or of another shape; all kinds are named.
    """
    have = {(m, n): tuple(a.shape) for m, arrays in loaded.items() for n, a in arrays.items()}
    want = {
        (m, n): tuple(a.shape) for m, arrays in expected.items() for n, a in arrays.items()
    }
    problems = {
        "missing": sorted(want.keys() - have.keys()),
        "unexpected": sorted(have.keys() - want.keys()),
        "wrongly shaped": sorted(
            key for key in want.keys() & have.keys() if want[key] != have[key]
        ),
    }
    if any(problems.values()):
        text = "; ".join(
            f"{len(keys)} {kind} ({':'.join(keys[0])}"
            + (f" {list(have[keys[0]])} for {list(want[keys[0]])}" if kind[0] == "w" else "")
            + ("" if len(keys) == 1 else ", ...")
            + ")"
            for kind, keys in problems.items()
            if keys
        )
        raise UserError(f"{path} does not fit the model: {text}")


def initial_weights(
    path: str | None, model: Model, seed: int
) -> tuple[Params, State] | None:
    """Returns the weights that a run starts from.

    A classifier for another number of classes is replaced by a fresh one, and said so.

    Args:
      path: a weights file; None: start from random weights.
      model: that the weights are for.
      seed: of a fresh classifier.

    Returns:
      (params, state), or None without a path.

    Raises:
      UserError: the file does not fit the model.
    """
    if path is None:
        return None
    params, state = load_weights(path)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    fresh, fresh_state = model.init(jax.random.key(seed), images)
    head = f"{model.spec.module_name}/~/linear"
    if head in params and params[head]["w"].shape != fresh[head]["w"].shape:
        print(
            f"init      {path} is for {params[head]['w'].shape[-1]} classes, this run has "
            f"{model.num_classes}: the classifier starts anew",
            flush=True,
        )
        params = {**params, head: fresh[head]}
    check_weights(path, params, fresh)
    check_weights(path, state, fresh_state)
    ordered = {m: {n: params[m][n] for n in arrays} for m, arrays in fresh.items()}
    return ordered, {m: dict(state[m]) for m in fresh_state}
