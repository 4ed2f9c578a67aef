"""Haiku names of the parts of a network, as in the published checkpoints.

A module's path is `NETWORK/~/PART`, `NETWORK/~/BLOCK/~/LAYER` and so on, where `~` stands
for a constructor; a parameter is written `module:name`:

    NFNet/~/stem_conv0:w
    NFNet/~/nf_block:skip_gain                          the first block has no number
    NFNet/~/nf_block_1/~/squeeze_excite/~/linear:w
    NFNet/~/linear:w                                    the classifier
"""

from collections.abc import Iterable
import re
from typing import Any

# The classifier's own name; squeeze-and-excite has layers of the same name, but deeper.
HEAD = "linear"

_HEAD = re.compile(rf"[^/:]+/~/{HEAD}(?::|$)")
_STEM = re.compile(r"[^/:]+/~/(?:stem_conv\d+|initial_conv|initial_bn)(?:[/:]|$)")
_BLOCK = re.compile(r"[^/:]+/~/[a-z_]*block(?:_v\d+)?(?:_(?P<index>\d+))?(?:[/:]|$)")


def module_path(network: str, *parts: str) -> str:
    """Returns the path of a module, for instance `NFNet/~/linear`."""
    return "/~/".join((network, *parts))


def head_module(network: str) -> str:
    """Returns the path of the classifier of a network called `network`."""
    return module_path(network, HEAD)


def is_head(path: str) -> bool:
    """Returns whether a module or parameter is the classifier."""
    return _HEAD.match(path) is not None


def is_stem(path: str) -> bool:
    """Returns whether a module or parameter lies before the first block."""
    return _STEM.match(path) is not None


def block_index(path: str) -> int | None:
    """Returns the number of the block that a path leads to or into, None outside blocks."""
    match = _BLOCK.match(path)
    return int(match["index"] or 0) if match else None


def block_name(module_name: str, index: int) -> str:
    """Returns the name of the `index`-th block, counted from 0 through all stages."""
    return f"{module_name}_{index}" if index else module_name


def parameter_path(key_path: Iterable[Any]) -> str:
    """Returns `module:name` for a JAX key path, for instance of `tree_map_with_path`.

    In trees of another depth, all keys are joined by colons.
    """
    return ":".join(_key(entry) for entry in key_path)


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
