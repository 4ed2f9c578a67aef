"""Which rule of the optimizer each parameter falls under, by its path.

A path is `module:name` as in the published checkpoints, for instance
`NFNet/~/nf_block/~/conv0:gain`.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax

# rule -> pattern; every parameter must match exactly one.
PARAMETER_RULES: Mapping[str, str] = {
    "classifier_weight": r"^[^/]+/~/linear:w$",
    "weight": r"^(?![^/]+/~/linear:).*:w$",
    "gain_or_bias": r":(gain|bias|b|skip_gain|scale|offset|bias\d[ab]?)$",
}


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
