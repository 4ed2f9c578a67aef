"""Which rule of the optimizer each parameter falls under, by its path.

A path is `module:name` as in the published checkpoints, for instance
`NFNet/~/nf_block/~/conv0:gain`.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax
import optax

# rule -> pattern; every parameter must match exactly one.
PARAMETER_RULES: Mapping[str, str] = {
    "classifier_weight": r"^[^/]+/~/linear:w$",
    "weight": r"^(?![^/]+/~/linear:).*:w$",
    "gain_or_bias": r":(gain|bias|b|skip_gain|scale|offset|bias\d[ab]?)$",
}

# The classifier, weight and bias.
_HEAD = re.compile(r"^[^/]+/~/linear:")
# The k-th block; the first one carries no number.
_BLOCK = re.compile(r"^[^/]+/~/[a-z_0-9]*block(?:_v2)?(?:_(\d+))?[/:]")


def parameter_path(key_path: tuple[Any, ...]) -> str:
    """Turns a JAX key path of a two-level parameter tree into `module:name`."""
    return ":".join(
        str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in key_path
    )


def label_parameters(params: Any) -> Any:
    """Names each parameter's rule.

    Args:
      params: module -> name -> array, as `Model.init` returns.

    Returns:
      A tree like `params` whose leaves are keys of `PARAMETER_RULES`.

    Raises:
      ValueError: a parameter matches no rule, or more than one.
    """

    def label(key_path: tuple[Any, ...], _: Any) -> str:
        path = parameter_path(key_path)
        found = [
            rule for rule, pattern in PARAMETER_RULES.items() if re.search(pattern, path)
        ]
        if len(found) != 1:
            raise ValueError(
                f"parameter {path} matches {' and '.join(found) or 'no rule'} of the "
                f"optimizer; it must match exactly one of {', '.join(PARAMETER_RULES)}. "
                "For other parameter trees, chain nfnets.adaptive_grad_clip with optax"
            )
        return found[0]

    return jax.tree_util.tree_map_with_path(label, params)


def learning_rate_multipliers(
    params: Any,
    *,
    head_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
) -> Any:
    """Says how much of the learning rate each parameter gets, for fine-tuning.

    The rate falls by `layer_decay` per block from the classifier down to the stem, as in
    "ELECTRA" (Clark et al. 2020); the classifier's is multiplied by `head_multiplier`.

    Args:
      params: module -> name -> array.
      head_multiplier: of the classifier's weight and bias, >= 0.
      layer_decay: per block, in (0, 1]; 1: none.
      frozen: regular expressions that are searched for in the paths; what matches gets 0.

    Returns:
      A tree of floats like `params`.

    Raises:
      ValueError: a value out of range, or a pattern that matches nothing.
    """
    if head_multiplier < 0:
        raise ValueError(f"head_multiplier must be at least 0, not {head_multiplier}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], not {layer_decay}")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [parameter_path(path) for path, _ in leaves]
    for pattern in frozen:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"frozen: {pattern!r} matches no parameter, such as {paths[0]}"
            )
    blocks = [int(match[1] or 0) for match in map(_BLOCK.search, paths) if match]
    last_block = max(blocks, default=0)

    def multiplier(key_path: tuple[Any, ...], _: Any) -> float:
        path = parameter_path(key_path)
        if any(re.search(pattern, path) for pattern in frozen):
            return 0.0
        if _HEAD.search(path):
            return head_multiplier
        return layer_decay ** _layers_below_head(path, last_block)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def _layers_below_head(path: str, last_block: int) -> int:
    """1 for what follows the blocks, then one more per block, most for the stem."""
    match = _BLOCK.search(path)
    if match:
        return 2 + last_block - int(match[1] or 0)
    return 3 + last_block if re.search(r"/~/(stem_conv|initial_)", path) else 1


def scale_by_path(**options: Any) -> optax.GradientTransformation:
    """Multiplies updates as `learning_rate_multipliers(params, **options)` says."""

    def init(params: optax.Params) -> optax.EmptyState:
        learning_rate_multipliers(params, **options)  # mistakes show before training
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        factors = learning_rate_multipliers(updates, **options)
        return jax.tree.map(lambda factor, u: factor * u, factors, updates), state

    return optax.GradientTransformation(init, update)
