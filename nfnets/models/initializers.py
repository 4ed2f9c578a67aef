"""Initial values that are a function of a key alone, cheap to compile.

Shapes in this module are those of Haiku parameters: HWIO for convolutions, [in, out] for
linear layers.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

# Random values come in pieces of these lengths, so that two compiled functions serve the
# hundreds of shapes of a large network (F6 took minutes with one function per shape).
_SMALL_PIECE = 2**12
_LARGE_PIECE = 2**18


class PieceKind(NamedTuple):
    """What one compiled function draws: how many values, and whether truncated at two."""

    piece: int
    truncated: bool


@dataclasses.dataclass(frozen=True)
class ScaledNormal:
    """Normal values, optionally truncated at two standard deviations.

    Attributes:
      stddev: of the untruncated distribution; with `fan_in_scaled` it is divided by
        sqrt(fan-in), the product of all dimensions but the last.
      fan_in_scaled: see `stddev`.
      truncated: redraw beyond two standard deviations (Haiku's default for linear
        layers); the result's standard deviation is then 0.88 times `stddev`.
    """

    stddev: float = 1.0
    fan_in_scaled: bool = False
    truncated: bool = False

    def __call__(self, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        """Haiku's initializer protocol: draws with Haiku's next random key."""
        return self.draw(hk.next_rng_key(), shape, dtype)

    def draw(self, key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        """Returns values of `shape` and `dtype` that depend on `key` alone."""
        stddev = self.stddev
        if self.fan_in_scaled:
            stddev /= math.sqrt(math.prod(shape[:-1]))
        size = math.prod(shape)
        kind = self.kind(shape)
        count = -(-size // kind.piece)
        draw_piece = functools.partial(draw_piece_of, kind, key)
        if isinstance(key, jax.core.Tracer):
            values = jax.lax.map(draw_piece, jnp.arange(count)).reshape(-1)
            return (values[:size].reshape(shape) * stddev).astype(dtype)
        pieces = [draw_piece(index) for index in range(count)]
        # Joined by NumPy: nothing to compile for each shape, most of F0's first seconds.
        values = np.concatenate(pieces)[:size].reshape(shape)
        values *= np.float32(stddev)
        return jax.device_put(values.astype(dtype, copy=False), may_alias=False)

    def kind(self, shape: Sequence[int]) -> PieceKind:
        """Returns the kind of pieces that an array of `shape` is drawn in."""
        is_small = math.prod(shape) <= _SMALL_PIECE
        return PieceKind(_SMALL_PIECE if is_small else _LARGE_PIECE, self.truncated)


@functools.partial(jax.jit, static_argnums=0)
def draw_piece_of(kind: PieceKind, key: jax.Array, index: jax.Array | int) -> jax.Array:
    """Returns the piece number `index` of the values of a key, float32 [piece]."""
    key = jax.random.fold_in(key, index)
    if kind.truncated:
        return jax.random.truncated_normal(key, -2.0, 2.0, (kind.piece,))
    return jax.random.normal(key, (kind.piece,))


def he_fan_out(channels: int, kernel_size: int, scale: float = 1.0) -> ScaledNormal:
    """Normal values of variance 2 scale^2 / (channels x kernel_size^2).

    Args:
      channels: that leave the convolution.
      kernel_size: side of its window.
      scale: on the standard deviation.
    """
    return ScaledNormal(stddev=scale * math.sqrt(2 / (channels * kernel_size**2)))


# The published networks' distributions.
CONV = ScaledNormal(fan_in_scaled=True)
CLASSIFIER = ScaledNormal(stddev=0.01)
LINEAR = ScaledNormal(fan_in_scaled=True, truncated=True)
HE = ScaledNormal(stddev=math.sqrt(2), fan_in_scaled=True)
