"""The operations without gathers and scatters, for TPUs: an image at a time.

A TPU fetches single pixels one after another: as compiled for a TPU v3, the gathers of
`kernels` take several times as long as NFNet-F0's whole training step. Here pixels are
picked by products with one-hot matrices and by shifts, and each image runs only the
operation that it draws. The results agree with `kernels` bit by bit.

Axis letters: N images, L layers, H height, W width.
"""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import kernels
from nfnets.augment import operations as ops

# Pixels are picked for squares of this side, from a window of the second side. A square
# turned by 45 degrees is 1.42 times as wide, and rounding adds at most two pixels.
_TILE, _WINDOW = 64, 96

# Products of a one-hot matrix with integers up to 256 are exact in this dtype.
_DTYPE = jnp.bfloat16

# (image [1, 3, H, W], draw [4]: step, negative, row and column of the center) -> image
_Operation = Callable[[jax.Array, jax.Array], jax.Array]


def apply_steps(
    images: jax.Array,
    bank: ops.Bank,
    step: jax.Array,
    negative: jax.Array,
    center: jax.Array,
) -> jax.Array:
    """Computes the same as `kernels.apply_steps`."""
    kinds = bank.kinds()
    branches = [_operation(ops.KINDS[kind], bank) for kind in kinds]
    branch = jnp.asarray(np.searchsorted(kinds, bank.kind))

    def layer(image: jax.Array, draw: jax.Array) -> tuple[jax.Array, None]:
        return lax.switch(branch[draw[0]], branches, image, draw), None

    def one_image(arguments: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, draws = arguments
        return lax.scan(layer, image[None], draws)[0][0]

    # One array, because a TPU takes as long to read a single number as a thousand.
    draws = jnp.stack([step, negative, center[..., 0], center[..., 1]], axis=-1)
    return lax.map(one_image, (images, draws.swapaxes(0, 1)))


def _operation(kind: str, bank: ops.Bank) -> _Operation:
    """Returns the function of one of `KINDS`."""

    def entry(values: np.ndarray | None, draw: jax.Array) -> jax.Array:
        return jnp.asarray(values)[draw[0]][None]

    def terms(draw: jax.Array) -> tuple[jax.Array, ...]:
        assert bank.affine is not None
        return tuple(jnp.asarray(term)[draw[0], draw[1]][None] for term in bank.affine)

    def tables(draw: jax.Array) -> jax.Array:
        return jnp.repeat(entry(bank.tables, draw)[:, None], 3, axis=1)

    match kind:
        case "table":
            return lambda x, draw: look_up(x, tables(draw))
        case "AutoContrast":
            return lambda x, _: look_up(x, kernels.auto_contrast_tables(x))
        case "Equalize":
            return lambda x, _: look_up(x, kernels.equalize_tables(histograms(x)))
        case "Rotate":
            return lambda x, draw: rotate(x, *terms(draw))
        case "shift columns":
            return lambda x, draw: shift(x, *terms(draw), axis=3)
        case "shift rows":
            return lambda x, draw: shift(x, *terms(draw), axis=2)
        case "Color":
            return lambda x, draw: kernels.color(x, entry(bank.color, draw))
        case "Sharpness":
            return lambda x, draw: kernels.sharpen(x, entry(bank.sharpness, draw))
        case "Cutout":
            return lambda x, draw: kernels.cut_out(
                x, draw[None, 2:], entry(bank.cutout, draw)
            )
    return lambda x, _: x


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Computes the same as `kernels.look_up`."""
    high, low = _halves(images)
    rows = tables.reshape(*tables.shape[:2], 16, 16).astype(_DTYPE)
    rows = jnp.einsum("ncph,nchl->ncpl", high.astype(_DTYPE), rows)
    # One term of the sum is not zero.
    levels = jnp.sum(jnp.where(low, rows, 0), axis=-1, dtype=jnp.float32)
    return levels.astype(jnp.uint8).reshape(images.shape)


def histograms(images: jax.Array) -> jax.Array:
    """Computes the same as `kernels.histograms`."""
    high, low = _halves(images)
    counts = jnp.einsum(
        "ncph,ncpl->nchl",
        high.astype(_DTYPE),
        low.astype(_DTYPE),
        preferred_element_type=jnp.float32,  # exact up to 2^24 pixels
    )
    return counts.astype(jnp.int32).reshape(*images.shape[:2], 256)


def _halves(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns one-hot bool [N, 3, H W, 16] of each level's high and low four bits."""
    levels = images.reshape(*images.shape[:2], -1, 1).astype(jnp.int32)
    return levels >> 4 == jnp.arange(16), levels & 15 == jnp.arange(16)


def shift(
    images: jax.Array,
    columns: jax.Array,
    rows: jax.Array,
    offset: jax.Array,
    *,
    axis: int,
) -> jax.Array:
    """Computes the same as `kernels.gather_affine` where pixels move along one axis.

    Args:
      images: uint8 [1, 3, H, W].
      columns: see `kernels.gather_affine`, as are `rows` and `offset`.
      rows: of a shear or a translation.
      offset: of the same.
      axis: 2 if pixels stay in their column, 3 if they stay in their row.
    """
    x, y, inside = kernels.source_pixels(columns, rows, offset)
    source = y if axis == 2 else x
    size = images.shape[axis]
    moves = source - lax.broadcasted_iota(jnp.int32, source.shape, axis - 1)
    # All pixels of a line move by the same number, or, because coordinates are rounded,
    # some of them by one more.
    smallest = jnp.min(jnp.where(inside, moves, size), axis=axis - 1, keepdims=True)
    largest = jnp.max(jnp.where(inside, moves, -size), axis=axis - 1, keepdims=True)
    is_back = largest < 0
    line = jnp.where(is_back, largest, jnp.maximum(smallest, 0))

    def move(distance: int, moves: jax.Array, is_back: jax.Array) -> jax.Array:
        """Moves those pixels to which `moves` applies."""
        ahead, back = (_moved(pixels, d, axis) for d in (distance, -distance))
        moved = jnp.where(is_back[:, None], back, ahead)
        return jnp.where(moves[:, None], moved, pixels)

    pixels = images
    for bit in range((size - 1).bit_length()):
        pixels = move(1 << bit, jnp.abs(line) >> bit & 1 == 1, is_back)
    pixels = move(1, moves != line, moves < line)
    return jnp.where(inside[:, None], pixels, jnp.uint8(ops.GRAY))


def _moved(pixels: jax.Array, distance: int, axis: int) -> jax.Array:
    """Returns out[i] = pixels[i + distance], 0 outside."""
    padding = [(0, 0, 0)] * pixels.ndim
    padding[axis] = (-distance, distance, 0)
    return lax.pad(pixels, jnp.zeros((), pixels.dtype), padding)


def rotate(
    images: jax.Array, columns: jax.Array, rows: jax.Array, offset: jax.Array
) -> jax.Array:
    """Computes the same as `kernels.gather_affine` for rotations; images [1, 3, H, W]."""
    _, channels, height, width = images.shape
    x, y, inside = kernels.source_pixels(columns, rows, offset)
    image = images[0].astype(_DTYPE)
    window = (min(_WINDOW, height), min(_WINDOW, width))

    def pick(sources: jax.Array) -> jax.Array:
        """Sources (y, x) of a square, int32 [2, _TILE, _TILE], to uint8 [3, _TILE^2]."""
        first = jnp.min(sources[:, :: _TILE - 1, :: _TILE - 1], axis=(1, 2))  # at a corner
        first = jnp.clip(first, 0, np.subtract((height, width), window))
        y, x = (sources - first[:, None, None]).reshape(2, -1)
        part = lax.dynamic_slice(image, (0, first[0], first[1]), (channels, *window))
        is_column = x[:, None] == jnp.arange(window[1])
        # [_TILE^2, 3, window rows]: the column of each pixel's source.
        lines = jnp.einsum("px,cyx->pcy", is_column.astype(_DTYPE), part)
        is_row = y[:, None, None] == jnp.arange(window[0])
        levels = jnp.sum(jnp.where(is_row, lines, 0), axis=-1, dtype=jnp.float32)
        return levels.T.astype(jnp.uint8)

    tiles = (-(-height // _TILE), -(-width // _TILE))

    padding = [(0, 0)] + [
        (0, n * _TILE - size) for n, size in zip(tiles, (height, width), strict=True)
    ]
    sources = jnp.pad(jnp.concatenate([y, x]), padding, mode="edge")
    sources = sources.reshape(2, tiles[0], _TILE, tiles[1], _TILE)
    sources = sources.transpose(1, 3, 0, 2, 4).reshape(-1, 2, _TILE, _TILE)
    moved = lax.map(pick, sources)
    moved = moved.reshape(*tiles, channels, _TILE, _TILE).transpose(2, 0, 3, 1, 4)
    moved = moved.reshape(channels, tiles[0] * _TILE, tiles[1] * _TILE)
    moved = moved[None, :, :height, :width]
    return jnp.where(inside[:, None], moved, jnp.uint8(ops.GRAY))
