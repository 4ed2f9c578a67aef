"""Initial values that are a function of a key alone, cheap to compile.

Shapes in this module are those of Haiku parameters: HWIO for convolutions, [in, out] for
linear layers.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

# Random values come in pieces of these lengths, so that two compiled functions serve the
# hundreds of shapes of a large network (F6 took minutes with one function per shape).
_SMALL_PIECE = 2**12
_LARGE_PIECE = 2**18


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
        piece = _SMALL_PIECE if size <= _SMALL_PIECE else _LARGE_PIECE
        count = -(-size // piece)
        draw_piece = functools.partial(
            _draw_piece, key, piece=piece, truncated=self.truncated
        )
        if isinstance(key, jax.core.Tracer):
            values = jax.lax.map(draw_piece, jnp.arange(count)).reshape(-1)
            return (values[:size].reshape(shape) * stddev).astype(dtype)
        pieces = [draw_piece(index) for index in range(count)]
        # Joined by NumPy: nothing to compile for each shape, most of F0's first seconds.
        values = np.concatenate(pieces)[:size].reshape(shape)
        values *= np.float32(stddev)
        return jax.device_put(values.astype(dtype, copy=False), may_alias=False)


@functools.partial(jax.jit, static_argnames=("piece", "truncated"))
def _draw_piece(
    key: jax.Array, index: jax.Array | int, *, piece: int, truncated: bool
) -> jax.Array:
    key = jax.random.fold_in(key, index)
    if truncated:
        return jax.random.truncated_normal(key, -2.0, 2.0, (piece,))
    return jax.random.normal(key, (piece,))


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
