"""From loaded arrays to a model's parameters: compared name by name, nothing by chance."""

from collections.abc import Mapping, Sequence
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp

from nfnets.errors import UserError
from nfnets.models import Model, Params, State

_SHOWN = 3


def check_weights(
    path: object,
    loaded: Mapping[str, Any],
    expected: Mapping[str, Any],
    skip: Sequence[str] = (),
) -> None:
    """Compares loaded parameters with a model's, name by name.

    Args:
      path: of the file, for messages.
      loaded: module -> name -> array.
      expected: likewise, arrays or shapes.
      skip: patterns as in `fit_weights`; what they match may differ.

    Raises:
      UserError: some are missing, unexpected or of another shape; all kinds are named.
    """
    have, want = _shapes(loaded), _shapes(expected)
    problems = {
        "missing": sorted(want.keys() - have.keys()),
        "unexpected": sorted(have.keys() - want.keys()),
        "wrongly shaped": sorted(
            key for key in want.keys() & have.keys() if want[key] != have[key]
        ),
    }
    texts = []
    for kind, names in problems.items():
        names = [name for name in names if not _matches(name, skip)]
        shown = [
            f"{name} {list(have[name])} for {list(want[name])}" if kind[0] == "w" else name
            for name in names[:_SHOWN]
        ]
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            texts.append(f"{len(names)} {kind} ({', '.join(shown)}{more})")
    if texts:
        raise UserError(f"{path} does not fit the model: {'; '.join(texts)}")


def fit_weights(
    path: object,
    params: Params,
    state: State,
    model: Model,
    skip: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Params, State]:
    """Returns loaded weights as the model's, in its order.

    Args:
      path: of the file, for messages.
      params: module -> name -> array.
      state: likewise, of batch norm.
      model: that the weights are for.
      skip: patterns over `module:name` with `*`, such as `NFNet/~/linear:*`. Of what they
        match, parameters that the file lacks or has in another shape are drawn afresh,
        and those that the model lacks are dropped.
      seed: of what is drawn afresh.

    Returns:
      (params, state): module -> name -> array.

    Raises:
      UserError: the weights do not fit; or a pattern matches nothing.
    """
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    key = jax.random.key(seed)
    # Without patterns nothing is drawn, and shapes say enough.
    fresh = model.init(key, images) if skip else jax.eval_shape(model.init, key, images)
    known = _shapes(params) | _shapes(state) | _shapes(fresh[0]) | _shapes(fresh[1])
    for pattern in skip:
        if not any(_matches(name, (pattern,)) for name in known):
            raise UserError(f"skip: no parameter matches {pattern!r}")
    _check_image_channels(path, params, model)
    for loaded, expected in ((params, fresh[0]), (state, fresh[1])):
        check_weights(path, loaded, expected, skip)
    return _merge(params, fresh[0]), _merge(state, fresh[1])


def _check_image_channels(path: object, loaded: Params, model: Model) -> None:
    """Names the one mismatch that a list of shapes would not explain."""
    stem = f"{model.spec.module_name}/~/{model.spec.stem[0].name}"
    shape = getattr(loaded.get(stem, {}).get("w"), "shape", ())
    if len(shape) == 4 and shape[2] != 3:
        raise UserError(
            f"{path} is for images of {shape[2]} channels: the models take 3 (red, green, "
            "blue)"
        )


def _merge(loaded: Params, expected: Params) -> Params:
    def choose(module: str, name: str, other: Any) -> Any:
        array = loaded.get(module, {}).get(name)
        return other if array is None or array.shape != other.shape else array

    return {
        module: {name: choose(module, name, other) for name, other in arrays.items()}
        for module, arrays in expected.items()
    }


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}:{name}": tuple(array.shape)
        for module, arrays in tree.items()
        for name, array in arrays.items()
    }


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
