"""Comparison of loaded arrays with a model's parameters, name by name."""

from collections.abc import Mapping, Sequence
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp

from nfnets.errors import UserError
from nfnets.models import Params, State

# module -> name -> array of NumPy or JAX.
Arrays = Mapping[str, Mapping[str, Any]]

_SHOWN = 3


def fit_weights(
    path: object,
    params: Arrays,
    state: Arrays,
    model: Any,
    skip: Sequence[str] = (),
    *,
    seed: int = 0,
    image_size: int = 32,
    cast: bool = False,
) -> tuple[Params, State]:
    """Returns loaded weights in the order of a model's own.

    Args:
      path: of the file, for messages.
      params: module -> name -> array.
      state: module -> name -> array, batch-norm statistics.
      model: an object with Haiku's `init(rng, images, is_training)`.
      skip: patterns of `module:name`, such as `NFNet/~/linear:*`. Matching parameters
        that are missing or of another shape are initialized; those that the model lacks
        are dropped.
      seed: of the initialization.
      image_size: side of the images that `init` gets, pixels.
      cast: convert the arrays to the model's dtypes.

    Returns:
      (params, state): module -> name -> array.

    Raises:
      UserError: the weights do not fit, or a pattern matches nothing.
    """

    def init() -> tuple[Params, State]:
        images = jnp.zeros((1, image_size, image_size, 3))
        return model.init(jax.random.key(seed), images, True)

    expected = init() if skip else jax.eval_shape(init)
    known = {name for tree in (params, state, *expected) for name in _shapes(tree)}
    for pattern in skip:
        if not any(_matches(name, (pattern,)) for name in known):
            raise UserError(f"skip: no parameter matches {pattern!r}")
    for loaded, own in zip((params, state), expected, strict=True):
        _check(path, loaded, own, skip)
    return _merge(params, expected[0], cast), _merge(state, expected[1], cast)


def _check(path: object, loaded: Arrays, expected: Arrays, skip: Sequence[str]) -> None:
    """Raises `UserError` if parameters are missing, unexpected or of other shapes."""
    have, want = _shapes(loaded), _shapes(expected)
    problems = {
        "missing": want.keys() - have.keys(),
        "unexpected": have.keys() - want.keys(),
        "with mismatched shapes": {k for k in want.keys() & have if want[k] != have[k]},
    }
    texts = []
    for kind, keys in problems.items():
        names = sorted(name for name in keys if not _matches(name, skip))
        shown = [
            f"{name} {list(have[name])} for {list(want[name])}"
            if name in have and name in want
            else name
            for name in names[:_SHOWN]
        ]
        if names:
            more = ", ..." if len(names) > _SHOWN else ""
            texts.append(f"{len(names)} {kind} ({', '.join(shown)}{more})")
    if texts:
        raise UserError(f"{path} does not fit the model: {'; '.join(texts)}")


def _merge(loaded: Arrays, expected: Arrays, cast: bool) -> Params:
    def choose(module: str, name: str, own: Any) -> Any:
        array = loaded.get(module, {}).get(name)
        if array is None or array.shape != own.shape:
            return own
        return array.astype(own.dtype) if cast else array

    return {
        module: {name: choose(module, name, own) for name, own in arrays.items()}
        for module, arrays in expected.items()
    }


def _shapes(tree: Arrays) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}:{name}": tuple(array.shape)
        for module, arrays in tree.items()
        for name, array in arrays.items()
    }


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
