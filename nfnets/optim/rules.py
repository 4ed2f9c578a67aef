"""Rules by parameter path: weight decay, clipping, learning-rate multipliers.

A path is `module:name` as in the published checkpoints, for instance
`NFNet/~/nf_block/~/conv0:gain` (see `nfnets.models.names`).
"""

from collections.abc import Callable, Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nfnets.errors import UserError
from nfnets.models import names

# The kinds of parameters that the optimizer distinguishes.
LABELS = ("classifier_weight", "weight", "gain_or_bias")

# From parameters to a tree of `LABELS`.
LabelFn = Callable[[optax.Params], Any]
# From parameters to a tree of bools.
Mask = Callable[[optax.Params], Any]

_GAINS_AND_BIASES = re.compile(r"(gain|bias|b|skip_gain|scale|offset|bias\d[ab]?)")


def label_parameters(params: optax.Params) -> Any:
    """Labels the parameters of the networks of this package.

    Args:
      params: module -> name -> array, as `Model.init` returns.

    Returns:
      A tree like `params` with entries of `LABELS` as leaves.

    Raises:
      UserError: the name of a parameter is unknown.
    """

    def label(key_path: tuple[Any, ...], _: Any) -> str:
        path = names.parameter_path(key_path)
        module, _, name = path.rpartition(":")
        if name == "w":
            return "classifier_weight" if names.is_head(module) else "weight"
        if _GAINS_AND_BIASES.fullmatch(name):
            return "gain_or_bias"
        raise UserError(
            f"parameter {path} is not a weight, gain or bias of this package's networks; "
            "for models of your own, pass label_fn to create_optimizer"
        )

    return jax.tree_util.tree_map_with_path(label, params)


def mask(label_fn: LabelFn, *excluded: str) -> Mask:
    """Returns a mask for optax: False for parameters with one of the labels `excluded`."""

    def select(params: optax.Params) -> Any:
        labels = label_fn(params)
        unknown = set(jax.tree.leaves(labels)) - set(LABELS)
        if unknown:
            raise UserError(f"label_fn returned {unknown}; labels: {', '.join(LABELS)}")
        return jax.tree.map(lambda label: label not in excluded, labels)

    return select


def learning_rate_multipliers(
    params: optax.Params,
    *,
    head_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
) -> Any:
    """Returns the factor on each parameter's learning rate, for fine-tuning.

    The rate falls by `layer_decay` per block from the classifier down to the stem, as in
    "ELECTRA" (Clark et al. 2020); the classifier's is multiplied by `head_multiplier`.

    Args:
      params: module -> name -> array.
      head_multiplier: of the classifier's weight and bias, >= 0.
      layer_decay: per block, in (0, 1]; 1: none.
      frozen: regular expressions; the factor is 0 where one is found in the path.

    Returns:
      A tree of numbers like `params`.

    Raises:
      UserError: an option or a pattern of `frozen` applies to no parameter.
    """
    paths = [
        names.parameter_path(key_path)
        for key_path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for pattern in frozen:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(f"frozen: {pattern!r} matches no parameter, such as {paths[0]}")
    indices = [i for i in map(names.block_index, paths) if i is not None]
    _check_used("head_multiplier", head_multiplier, any(map(names.is_head, paths)))
    _check_used("layer_decay", layer_decay, bool(indices))
    blocks = max(indices, default=0) + 1

    def multiplier(key_path: tuple[Any, ...], _: Any) -> float:
        path = names.parameter_path(key_path)
        if any(re.search(pattern, path) for pattern in frozen):
            return 0.0
        if names.is_head(path):
            return head_multiplier
        return layer_decay ** _depth_below_head(path, blocks)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def _check_used(option: str, value: object, has_target: bool) -> None:
    if isinstance(value, int | float) and value != 1 and not has_target:
        raise UserError(f"{option} needs parameters named as in this package's networks")


def _depth_below_head(path: str, blocks: int) -> int:
    """1 for layers between the blocks and the classifier, `blocks` + 2 for the stem."""
    if names.is_stem(path):
        return blocks + 2
    index = names.block_index(path)
    return 1 if index is None else 1 + blocks - index


def scale_by_path(
    head_multiplier: float = 1.0, layer_decay: float = 1.0, frozen: Sequence[str] = ()
) -> optax.GradientTransformation:
    """Multiplies updates by the factors of `learning_rate_multipliers`."""

    def factors(tree: optax.Params) -> Any:
        return learning_rate_multipliers(
            tree, head_multiplier=head_multiplier, layer_decay=layer_decay, frozen=frozen
        )

    def init(params: optax.Params) -> optax.EmptyState:
        factors(params)  # errors appear before training
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        return jax.tree.map(_scale, factors(updates), updates), state

    return optax.GradientTransformation(init, update)


def _scale(factor: float | jax.Array, update: jax.Array) -> jax.Array:
    return (factor * update).astype(jnp.result_type(update))
