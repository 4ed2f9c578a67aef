"""Initial values that depend on a random key alone and compile quickly.

Shapes are those of Haiku parameters: HWIO for convolutions, [in, out] for linear layers.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

# Values are drawn in pieces of this length, so that one compiled function serves all
# shapes of a network (with one function per shape, F6 took minutes).
_PIECE = 2**18

# Bounds of the uniform values, and of the normal values that erf_inv turns them into: as in
# jax.random.normal (greater than -1, for which the normal value is infinite), and as in
# jax.random.truncated_normal at two standard deviations.
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
      stddev: standard deviation before truncation, which reduces it by a factor of 0.88.
      fan_in_scaled: divide the standard deviation by the root of the fan-in, the product
        of all dimensions but the last.
      truncated: truncate at two standard deviations.
    """

    stddev: float = 1.0
    fan_in_scaled: bool = False
    truncated: bool = False

    def __call__(self, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
        """Draws values with Haiku's next random key."""
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
          shape: shape of the result.
          dtype: dtype of the result.
          stream: in [0, 2^32), folded into `key`, so that one key serves many arrays; None
            to use `key` itself.
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
        # NumPy joins them, because JAX would compile a function for each shape, which took
        # most of F0's first seconds.
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
    """Draws [_PIECE] values; all distributions share the compiled function."""
    if stream is not None:
        key = jax.random.fold_in(key, stream)
    key = jax.random.fold_in(key, index)
    smallest, largest, lower, upper = distribution
    uniform = jax.random.uniform(key, (_PIECE,), jnp.float32, smallest, largest)
    normal = np.float32(math.sqrt(2)) * jax.lax.erf_inv(uniform)
    return jnp.clip(normal, lower, upper)


# Convolutions with weight standardization, linear layers and other convolutions. ECA's has
# the variance of PyTorch's default, 1 / (3 fan-in).
CONV = ScaledNormal(fan_in_scaled=True)
LINEAR = ScaledNormal(fan_in_scaled=True, truncated=True)
ECA = ScaledNormal(stddev=1 / math.sqrt(3), fan_in_scaled=True)
HE = ScaledNormal(stddev=math.sqrt(2), fan_in_scaled=True)
