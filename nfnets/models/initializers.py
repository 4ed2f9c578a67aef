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

# Random values come in pieces of this length, so that one compiled function serves the
# hundreds of shapes of a large network (F6 took minutes with one function per shape).
_PIECE = 2**18

# The lowest and highest uniform value, and the lowest and highest of the normal values that
# erf_inv makes of them: as in jax.random.normal (above -1, whose normal value would be
# infinite), and as in jax.random.truncated_normal at two standard deviations.
_INFINITY = np.float32(np.inf)
_WHOLE = (np.nextafter(np.float32(-1), np.float32(0)), np.float32(1), -_INFINITY, _INFINITY)
_TRUNCATED = (
    np.float32(math.erf(-math.sqrt(2))),
    np.float32(math.erf(math.sqrt(2))),
    np.nextafter(np.float32(-2), _INFINITY),
    np.nextafter(np.float32(2), -_INFINITY),
)


@dataclasses.dataclass(frozen=True)
class ScaledNormal:
    """Normal values, optionally truncated at two standard deviations.

    Attributes:
      stddev: of the untruncated distribution; with `fan_in_scaled` it is divided by
        sqrt(fan-in), the product of all dimensions but the last.
      fan_in_scaled: see `stddev`.
      truncated: limited to two standard deviations (Haiku's default for linear
        layers); the result's standard deviation is then 0.88 times `stddev`.
    """

    stddev: float = 1.0
    fan_in_scaled: bool = False
    truncated: bool = False

    def __call__(self, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        """Haiku's initializer protocol: draws with Haiku's next random key."""
        return self.draw(hk.next_rng_key(), shape, dtype)

    def draw(
        self,
        key: jax.Array,
        shape: Sequence[int],
        dtype: jnp.dtype,
        stream: int | None = None,
    ) -> jax.Array:
        """Draws values that depend on the arguments alone.

        Args:
          key: random key.
          shape: of the result.
          dtype: of the result.
          stream: in [0, 2^32), folded into `key` first, so that one key serves many
            arrays; None: `key` as it is.
        """
        stddev = self.stddev
        if self.fan_in_scaled:
            stddev /= math.sqrt(math.prod(shape[:-1]))
        size = math.prod(shape)
        draw_piece = functools.partial(
            _draw_piece,
            key,
            None if stream is None else np.uint32(stream),
            _TRUNCATED if self.truncated else _WHOLE,
        )
        indices = np.arange(-(-size // _PIECE), dtype=np.uint32)
        if isinstance(key, jax.core.Tracer):
            values = jax.lax.map(draw_piece, indices).reshape(-1)
            return (values[:size].reshape(shape) * stddev).astype(dtype)
        pieces = [draw_piece(index) for index in indices]
        # Joined by NumPy: nothing to compile for each shape, most of F0's first seconds.
        values = np.empty(size, np.float32)
        for piece, start in zip(pieces, range(0, size, _PIECE), strict=True):
            part = values[start : start + _PIECE]
            np.multiply(np.asarray(piece)[: part.size], np.float32(stddev), out=part)
        values = values.astype(dtype, copy=False).reshape(shape)
        return jax.device_put(values, may_alias=False)


@jax.jit
def _draw_piece(
    key: jax.Array,
    stream: jax.Array | None,
    distribution: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    index: jax.Array,
) -> jax.Array:
    """Draws [_PIECE] values; the distribution is data, or each would be compiled."""
    if stream is not None:
        key = jax.random.fold_in(key, stream)
    key = jax.random.fold_in(key, index)
    smallest, largest, lower, upper = distribution
    uniform = jax.random.uniform(key, (_PIECE,), jnp.float32, smallest, largest)
    normal = np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)
    return jnp.clip(normal, lower, upper)


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
