"""Boxes around a center, clipped to the image: CutMix and Cutout.

Axis letters: N images, H height, W width.
"""

import jax
import jax.numpy as jnp


def clipped_span(
    center: jax.Array, size: jax.Array, limit: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the part within [0, limit) of a span of `size` pixels around `center`.

    Args:
      center: int32 [N], in [0, limit).
      size: int32 [N] or scalar; an even size has one pixel more before the center.
      limit: height or width of the image, pixels.

    Returns:
      (start, stop), int32 [N] each, 0 <= start <= stop <= limit; `stop` is exclusive.
    """
    start = center - size // 2
    return jnp.maximum(start, 0), jnp.minimum(start + size, limit)


def box_mask(
    rows: tuple[jax.Array, jax.Array],
    columns: tuple[jax.Array, jax.Array],
    height: int,
    width: int,
) -> jax.Array:
    """Returns bool [N, H, W], true within the spans `rows` x `columns`."""
    return _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]


def _within(span: tuple[jax.Array, jax.Array], limit: int) -> jax.Array:
    start, stop = span
    position = jnp.arange(limit)
    return (position >= start[:, None]) & (position < stop[:, None])
