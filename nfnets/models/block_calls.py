"""Residual blocks as functions of their own: equal ones are traced and compiled once.

Axis letters as in `nfnets.models.layers`: N examples, H height, W width, C channels.
"""

from collections.abc import Sequence
import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.models.residual import BlockLayout, ResidualBlock
from nfnets.outlining import inlined, outlined

_Arrays = dict[str, dict[str, jax.Array]]


def run_blocks(
    blocks: Sequence[ResidualBlock],
    inputs: jax.Array,
    keep: Sequence[jax.Array | None],
    is_training: bool,
    rematerialize: bool = False,
) -> jax.Array:
    """Runs blocks one after the other, each as a function of its own.

    Haiku's interceptors, getters and creators are not called within: what has been traced
    for one block is used for all that are equal. For the use of parameters, not for their
    creation, and not for blocks with state (batch normalisation).

    Args:
      blocks: of the network that is being applied.
      inputs: [N, H, W, C], of the first block.
      keep: of each block, as it takes it.
      is_training: as blocks take it.
      rematerialize: the backward pass computes all of this again, from `inputs`.

    Returns:
      What the last block returns.
    """
    params = [_own_parameters(block) for block in blocks]
    stds = [jnp.float32(block.expected_std) for block in blocks]
    layouts = tuple(block.layout for block in blocks)
    run = outlined(_run_rematerialized) if rematerialize else _run
    return run(params, stds, inputs, list(keep), layouts, is_training)


def _run(
    params: Sequence[_Arrays],
    stds: Sequence[jax.Array],
    hidden: jax.Array,
    keep: Sequence[jax.Array | None],
    layouts: tuple[BlockLayout, ...],
    is_training: bool,
) -> jax.Array:
    """Calls each block's function, with that block's own of each sequence."""
    run_block = outlined(_run_block)
    for own, std, kept, layout in zip(params, stds, keep, layouts, strict=True):
        hidden = run_block(own, std, hidden, kept, layout, is_training)
    return hidden


@functools.partial(jax.jit, static_argnums=(4, 5))
def _run_rematerialized(*args: Any) -> jax.Array:
    """`_run`, of which the backward pass keeps the arguments alone."""
    with inlined():
        return jax.checkpoint(_run, static_argnums=(4, 5))(*args)


@functools.partial(jax.jit, static_argnames=("layout", "is_training"))
def _run_block(
    params: _Arrays,
    expected_std: jax.Array,
    hidden: jax.Array,
    keep: jax.Array | None,
    layout: BlockLayout,
    is_training: bool,
) -> jax.Array:
    """One block that stands alone: it knows its layout, but not its place in a network."""

    def block(hidden: jax.Array, keep: jax.Array | None) -> jax.Array:
        return ResidualBlock(layout, expected_std)(hidden, keep, is_training)

    with inlined():
        return hk.transform(block).apply(params, None, hidden, keep)


def _own_parameters(block: ResidualBlock) -> _Arrays:
    """The block's parameters, by the names that they have where it stands alone."""
    alone, path = block.layout.spec.module_name, block.module_name
    return {
        alone + module.removeprefix(path): dict(arrays)
        for module, arrays in hk.get_params().items()
        if module == path or module.startswith(f"{path}/")
    }
