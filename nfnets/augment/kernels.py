"""The five kinds of operations as passes over a batch, with arguments for each image.

Images are planar, uint8 [N, 3, H, W], because loops over rows of pixels are vectorized on
CPUs, unlike loops over interleaved colors (Sharpness at 192 px: 2.7 times slower). The
arithmetic is on integers, and on sums of floats for coordinates, so that results agree bit
by bit on all devices and for every split of the batch.

Every image takes part in every pass, and all but one leave it unchanged: on a GPU, a pass
takes microseconds, and branches for each image would cost more than they save.

Axis letters: N images, S steps of the bank, H height, W width.
"""

import jax
from jax import lax
import jax.numpy as jnp

from nfnets.augment import boxes
from nfnets.augment import operations as ops

TABLE, AUTO_CONTRAST, EQUALIZE = (
    ops.KINDS.index(name) for name in ("table", "AutoContrast", "Equalize")
)

# Mode of gathers and scatters whose indices are in range by construction.
_IN_BOUNDS = "promise_in_bounds"


def apply_steps(
    images: jax.Array,
    bank: ops.Bank,
    step: jax.Array,
    negative: jax.Array,
    center: jax.Array,
) -> jax.Array:
    """Applies L steps of the bank to each image, one after another.

    Args:
      images: uint8 [N, 3, H, W].
      bank: arguments of the S steps, built for H and W.
      step: int32 [L, N], in [0, S).
      negative: int32 [L, N], 1 to reverse a geometric operation, else 0.
      center: int32 [L, N, 2], (row, column) of Cutout's box.

    Returns:
      uint8 [N, 3, H, W].
    """

    # L copies of the layer would take L times as long to compile. XLA's CPU backend would
    # also fuse the end of a layer into the gather of the next and recompute it for every
    # pixel (3 times slower).
    def layer(
        images: jax.Array, draw: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        return _apply_layer(images, bank, *draw), None

    return lax.scan(layer, images, (step, negative, center))[0]


def _apply_layer(
    images: jax.Array,
    bank: ops.Bank,
    step: jax.Array,
    negative: jax.Array,
    center: jax.Array,
) -> jax.Array:
    """Applies one step to each image: `apply_steps` without the axis L."""
    # A step changes its image in one pass only, hence any order is valid. This is the
    # fastest.
    if bank.affine is not None:
        columns, rows, offset = (jnp.asarray(term)[step, negative] for term in bank.affine)
        images = gather_affine(images, columns, rows, offset)
    if bank.tables is not None:
        images = _apply_tables(images, bank, step)
    if bank.color is not None:
        images = color(images, jnp.asarray(bank.color)[step])
    if bank.sharpness is not None:
        images = sharpen(images, jnp.asarray(bank.sharpness)[step])
    if bank.cutout is not None:
        images = cut_out(images, center, jnp.asarray(bank.cutout)[step])
    return images


def _apply_tables(images: jax.Array, bank: ops.Bank, step: jax.Array) -> jax.Array:
    """Applies the table operations; `step` is int32 [N]."""
    tables = jnp.repeat(jnp.asarray(bank.tables)[step][:, None], 3, axis=1)
    kind = jnp.asarray(bank.kind)[step]
    is_stretched = {AUTO_CONTRAST, EQUALIZE}.intersection(bank.kinds())

    def run(images: jax.Array) -> jax.Array:
        if not is_stretched:
            return look_up(images, tables)
        return look_up(images, stretch_tables(images, tables, kind))

    # The condition is almost always true. It keeps XLA's CPU backend from fusing this pass
    # with its neighbors, which halves the time of a layer.
    used = jnp.any((kind == TABLE) | (kind == AUTO_CONTRAST) | (kind == EQUALIZE))
    return lax.cond(used, run, lambda images: images, images)


def gather_affine(
    images: jax.Array, columns: jax.Array, rows: jax.Array, offset: jax.Array
) -> jax.Array:
    """Takes each pixel from its nearest source pixel, gray where that is outside.

    Args:
      images: uint8 [N, 3, H, W].
      columns: float32 [N, 2 (x, y), W], see `operations.AffineTerms`.
      rows: float32 [N, 2, H].
      offset: float32 [N, 2].

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    x, y, inside = source_pixels(columns, rows, offset)
    # XLA's CPU backend runs this 3 times as fast as a selection by `inside`.
    pixel = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
    moved = images.reshape(-1).at[_planes(images) + pixel[:, None]].get(mode=_IN_BOUNDS)
    return jnp.where(inside[:, None], moved, jnp.uint8(ops.GRAY))


def source_pixels(
    columns: jax.Array, rows: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each pixel's source (x, y), int32 [N, H, W], and whether it is inside.

    The arguments are those of `gather_affine`.
    """

    def nearest(axis: int) -> jax.Array:
        source = columns[:, axis, None, :] + rows[:, axis, :, None]
        source = source + offset[:, axis, None, None]
        # As published; `jnp.round` rounds half-way cases to even.
        return lax.round(source, lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int32)

    x, y = nearest(0), nearest(1)
    width, height = columns.shape[-1], rows.shape[-1]
    return x, y, (x >= 0) & (x < width) & (y >= 0) & (y < height)


def look_up(images: jax.Array, tables: jax.Array) -> jax.Array:
    """Maps levels by `tables`, uint8 [N, 3, 256]; images are uint8 [N, 3, H, W]."""
    return tables.reshape(-1).at[_bins(images)].get(mode=_IN_BOUNDS)


def stretch_tables(images: jax.Array, tables: jax.Array, kind: jax.Array) -> jax.Array:
    """Replaces the tables of AutoContrast and Equalize, which depend on the images.

    Args:
      images: uint8 [N, 3, H, W].
      tables: uint8 [N, 3, 256].
      kind: int32 [N], `AUTO_CONTRAST` or `EQUALIZE` where tables are replaced.

    Returns:
      uint8 [N, 3, 256].
    """
    contrast = auto_contrast_tables(images)
    is_contrast = (kind == AUTO_CONTRAST)[:, None, None]
    tables = jnp.where(is_contrast, contrast, tables)
    # A histogram costs as much as a layer, and one image in sixteen needs it: the loop runs
    # over those only.
    is_equalize = kind == EQUALIZE
    order = jnp.argsort(~is_equalize)

    def put(i: jax.Array, tables: jax.Array) -> jax.Array:
        image = lax.dynamic_index_in_dim(images, order[i], keepdims=True)
        table = equalize_tables(histograms(image))
        return lax.dynamic_update_index_in_dim(tables, table[0], order[i], 0)

    return lax.fori_loop(0, jnp.sum(is_equalize), put, tables)


def auto_contrast_tables(images: jax.Array) -> jax.Array:
    """Returns tables that stretch each channel to [0, 255]; constant channels stay.

    Args:
      images: uint8 [N, 3, H, W].

    Returns:
      uint8 [N, 3, 256].
    """
    low = jnp.min(images, axis=(2, 3)).astype(jnp.int32)[..., None]
    high = jnp.max(images, axis=(2, 3)).astype(jnp.int32)[..., None]
    gray = jnp.arange(256, dtype=jnp.int32)
    stretched = (jnp.clip(gray - low, 0) * 255) // jnp.maximum(high - low, 1)
    table = jnp.where(high > low, jnp.clip(stretched, 0, 255), gray)
    return table.astype(jnp.uint8)


def histograms(images: jax.Array) -> jax.Array:
    """Counts the pixels of each level: uint8 [N, 3, H, W] to int32 [N, 3, 256]."""
    count, channels, _, _ = images.shape
    flat = jnp.zeros(count * channels * 256, jnp.int32)
    flat = flat.at[_bins(images)].add(1, mode=_IN_BOUNDS)
    return flat.reshape(count, channels, 256)


def equalize_tables(histogram: jax.Array) -> jax.Array:
    """Returns tables that make the levels of each channel about equally frequent.

    Args:
      histogram: int32 [N, 3, 256], pixels of each level.

    Returns:
      uint8 [N, 3, 256].
    """
    total = jnp.sum(histogram, axis=-1, keepdims=True)
    highest = 255 - jnp.argmax(histogram[..., ::-1] > 0, axis=-1, keepdims=True)
    step = (total - jnp.take_along_axis(histogram, highest, axis=-1)) // 255
    darker = jnp.cumsum(histogram, axis=-1) - histogram
    table = jnp.clip((darker + step // 2) // jnp.maximum(step, 1), 0, 255)
    # Channels with fewer than 255 pixels below the highest level stay.
    return jnp.where(step > 0, table, jnp.arange(256)).astype(jnp.uint8)


def color(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends from gray; images uint8 [N, 3, H, W], factor int32 [N], see `blend`."""
    red, green, blue = (images[:, i].astype(jnp.int32) for i in range(3))
    # 0.2989 R + 0.5870 G + 0.1140 B. The published conversion goes through floats in [0, 1]
    # and back, which multiplies by 255.5 / 255.
    luma = 2989 * red + 5870 * green + 1140 * blue
    gray = (luma * 511).astype(jnp.uint32) // jnp.uint32(510 * 10_000)
    return blend(gray[:, None].astype(jnp.int32), images, factor)


def sharpen(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends from a 3x3 blur with weight 5 in the middle; borders stay.

    Args:
      images: uint8 [N, 3, H, W].
      factor: int32 [N], in units of 1 / FACTOR_UNIT.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    wide = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1))).astype(jnp.uint16)
    across = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    total = across[:, :, :-2] + across[:, :, 1:-1] + across[:, :, 2:]
    blur = (total + 4 * images.astype(jnp.uint16)) // jnp.uint16(13)
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    blur = jnp.where(inner, blur.astype(jnp.int32), images.astype(jnp.int32))
    return blend(blur, images, factor)


def cut_out(images: jax.Array, center: jax.Array, size: jax.Array) -> jax.Array:
    """Fills a box around a center with gray, clipped to the image.

    Args:
      images: uint8 [N, 3, H, W].
      center: int32 [N, 2], row and column.
      size: int32 [N] or scalar, side of the box, pixels.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    rows = boxes.clipped_span(center[:, 0], size, height)
    columns = boxes.clipped_span(center[:, 1], size, width)
    mask = boxes.box_mask(rows, columns, height, width)
    return jnp.where(mask[:, None], jnp.uint8(ops.GRAY), images)


def blend(start: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolates from `start` to the images; a factor above 1 extrapolates.

    Args:
      start: int32, broadcasts with [N, 3, H, W].
      images: uint8 [N, 3, H, W].
      factor: int32 [N], in units of 1 / FACTOR_UNIT.

    Returns:
      uint8 [N, 3, H, W]: start + factor (images - start), rounded down, in [0, 255].
    """
    factor = factor[:, None, None, None]
    total = ops.FACTOR_UNIT * start + factor * (images.astype(jnp.int32) - start)
    total = jnp.clip(total, 0, 255 * ops.FACTOR_UNIT).astype(jnp.uint16)
    return (total // jnp.uint16(ops.FACTOR_UNIT)).astype(jnp.uint8)


def _bins(images: jax.Array) -> jax.Array:
    """Returns int32 [N, 3, H, W]: the index of each pixel's level in a flat [N, 3, 256]."""
    return _planes(images, 256) + images.astype(jnp.int32)


def _planes(images: jax.Array, size: int | None = None) -> jax.Array:
    """Returns int32 [N, 3, 1, 1]: flat index of each plane of `size` (default H W)."""
    count, channels, height, width = images.shape
    planes = jnp.arange(count * channels, dtype=jnp.int32).reshape(count, channels, 1, 1)
    return planes * (height * width if size is None else size)
