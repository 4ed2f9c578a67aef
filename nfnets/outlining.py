"""Parts of a program that stay functions of their own when it is compiled for CPU.

XLA inlines every function. Its CPU backend then compares each operation with all that come
before it, to find out which may run at the same time: that took 70 of the 125 s in which a
training step of F6 was compiled (`benchmarks/RESULTS.md`). Within functions that are left
alone there are few operations to compare.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
import functools
from typing import Any, ParamSpec, TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

P = ParamSpec("P")
R = TypeVar("R")

# Arrays of a tree that one function treats.
_TOGETHER = 64


def outlined(function: Callable[P, R]) -> Callable[P, R]:
    """Calls a jitted function, inside another one, so that it is not inlined on CPU.

    Its gradient is likewise a function of its own. What is jitted within stays so, too,
    unless the body is under `inlined()`. Without effect on other devices.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _inlineable(False):
            return function(*args, **kwargs)

    return call


def map_in_parts(
    function: Callable[..., R], *sequences: Sequence[Any], **options: Any
) -> list[R]:
    """Calls a jitted function on parts of long sequences, each call not inlined on CPU.

    Args:
      function: from an equally long part of each of `sequences`.
      *sequences: of equal length.
      **options: the same for all calls.

    Returns:
      The results of all calls.
    """
    return [
        outlined(function)(*(s[start : start + _TOGETHER] for s in sequences), **options)
        for start in range(0, len(sequences[0]), _TOGETHER)
    ]


def inlined() -> AbstractContextManager:
    """For the body of an outlined function: what it calls is part of it."""
    return _inlineable(True)


def _inlineable(flag: bool) -> AbstractContextManager:
    if jax.default_backend() != "cpu":
        return nullcontext()
    return set_xla_metadata(inlineable=str(flag).lower())
