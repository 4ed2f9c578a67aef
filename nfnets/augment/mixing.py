"""MixUp and CutMix of neighboring examples.

Examples 2i and 2i + 1 are mixed with each other, each with its own draw.

"mixup: Beyond Empirical Risk Minimization" (Zhang et al. 2018), section 2; "CutMix" (Yun et
al. 2019), section 3.1.

Axis letters: N images, P = N / 2 pairs, H height, W width, K classes. Images are planar,
uint8 [N, 3, H, W].
"""

import fractions

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import boxes, draws
from nfnets.errors import UserError

# Pixel weights are multiples of 1 / WEIGHT_UNIT, because integer arithmetic gives the same
# bits in every program. 255 * WEIGHT_UNIT fits an int32.
WEIGHT_UNIT = 1 << 20

# Keeps the products in `_spread` within an int32.
_MAX_DENOMINATOR = 30_000


def mix_pairs(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    *,
    mixup_alpha: float,
    mixup_fraction: float,
    cutmix_alpha: float,
    cutmix_fraction: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and its label with those of its neighbor.

    Args:
      key: a JAX key.
      images: uint8 [N, 3, H, W]; N even, and images 2i and 2i + 1 of this array are
        neighbors 2j and 2j + 1 of the global batch.
      labels: float32 [N, K].
      example_index: int32 [N], positions in the global batch.
      mixup_alpha: lambda ~ Beta(alpha, alpha) for MixUp, in (0, 100].
      mixup_fraction: share of the pairs that MixUp blends, in [0, 1].
      cutmix_alpha: lambda ~ Beta(alpha, alpha) for CutMix, in (0, 100].
      cutmix_fraction: share of the pairs that CutMix pastes, in [0, 1].

    Returns:
      Images, uint8 [N, 3, H, W], rounded to the nearest level; labels, float32 [N, K],
      mixed with exactly the same weights as the pixels.

    Raises:
      UserError: N is odd.
    """
    count, _, height, width = images.shape
    if count % 2:
        raise UserError(f"mixing needs an even batch size; got {count} images")
    is_mixup, is_cutmix = pair_kinds(example_index // 2, mixup_fraction, cutmix_fraction)
    bits = draws.example_bits(key, example_index, 3)

    blend = draws.from_table(bits[:, 0], _mixup_weights(mixup_alpha))
    sizes = draws.from_table(bits[:, 0], _cutmix_sizes(cutmix_alpha, height, width))
    rows = boxes.clipped_span(draws.below(bits[:, 1], height), sizes[:, 0], height)
    columns = boxes.clipped_span(draws.below(bits[:, 2], width), sizes[:, 1], width)
    pasted = boxes.box_mask(rows, columns, height, width) & is_cutmix[:, None, None]
    area = (rows[1] - rows[0]) * (columns[1] - columns[0])

    pixel_weight = jnp.where(is_mixup, blend, WEIGHT_UNIT)[:, None, None]
    pixel_weight = jnp.where(pasted, 0, pixel_weight)[:, None]
    other = _neighbors(images).astype(jnp.int32)
    scaled = pixel_weight * (images.astype(jnp.int32) - other)
    mixed = other + ((scaled + WEIGHT_UNIT // 2) >> (WEIGHT_UNIT.bit_length() - 1))

    # The label's weights in pixels (CutMix) or units (MixUp).
    unit = jnp.where(is_cutmix, height * width, WEIGHT_UNIT)
    given = jnp.where(is_cutmix, area, jnp.where(is_mixup, WEIGHT_UNIT - blend, 0))
    mixed_labels = _weighted_sum(labels, unit - given, _neighbors(labels), given, unit)
    return mixed.astype(jnp.uint8), mixed_labels


def pair_kinds(
    pair_index: jax.Array, mixup_fraction: float, cutmix_fraction: float
) -> tuple[jax.Array, jax.Array]:
    """Selects the pairs for MixUp and CutMix, without randomness.

    Pair i is mixed if floor((i + 1) f) > floor(i f), where f is the sum of both fractions;
    the same rule among the mixed pairs selects those for MixUp. Of the first P pairs,
    floor(P f) are mixed: each batch has its exact share, evenly spread over the devices.

    Args:
      pair_index: int32 [...], positions of the pairs in the global batch.
      mixup_fraction: in [0, 1], taken as the nearest fraction with a denominator of at
        most 1000.
      cutmix_fraction: likewise; with `mixup_fraction` at most 1.

    Returns:
      (is_mixup, is_cutmix), bool [...] each, never both true.
    """
    mixup, cutmix = (
        fractions.Fraction(value).limit_denominator(1000)
        for value in (mixup_fraction, cutmix_fraction)
    )
    share = min(mixup + cutmix, fractions.Fraction(1))
    mixed, rank = _spread(pair_index, share)
    chosen, _ = _spread(rank, mixup / share if share else share)
    return mixed & chosen, mixed & ~chosen


def _spread(index: jax.Array, share: fractions.Fraction) -> tuple[jax.Array, jax.Array]:
    """Returns whether floor((i + 1) share) > floor(i share), and floor(i share)."""
    share = share.limit_denominator(_MAX_DENOMINATOR)
    whole, rest = index // share.denominator, index % share.denominator
    scaled = rest * share.numerator
    rank = whole * share.numerator + scaled // share.denominator
    return scaled % share.denominator + share.numerator >= share.denominator, rank


def _mixup_weights(alpha: float) -> np.ndarray:
    """Returns int32 [2^15]: lambda in units of 1 / WEIGHT_UNIT."""
    return np.rint(draws.beta_quantiles(alpha) * WEIGHT_UNIT).astype(np.int32)


def _cutmix_sizes(alpha: float, height: int, width: int) -> np.ndarray:
    """Returns int32 [2^15, 2]: (height, width) of the box, sqrt(1 - lambda) x image."""
    side = np.sqrt(1 - draws.beta_quantiles(alpha))
    return (side[:, None] * (height, width)).astype(np.int32)


def _weighted_sum(
    a: jax.Array, a_weight: jax.Array, b: jax.Array, b_weight: jax.Array, unit: jax.Array
) -> jax.Array:
    """Returns a a_weight / unit + b b_weight / unit: [N, K], weights int32 [N]."""

    def part(labels: jax.Array, weight: jax.Array) -> jax.Array:
        share = weight.astype(jnp.float32) / unit.astype(jnp.float32)
        # Labels are not negative, so the maximum changes none of them. It keeps compilers
        # from fusing the product with the sum below, which some programs would do.
        return jnp.maximum(share[:, None] * labels, 0)

    return part(a, a_weight) + part(b, b_weight)


def _neighbors(batch: jax.Array) -> jax.Array:
    """Swaps rows 2i and 2i + 1 of [N, ...]."""
    pairs = batch.reshape(batch.shape[0] // 2, 2, *batch.shape[1:])
    return pairs[:, ::-1].reshape(batch.shape)
