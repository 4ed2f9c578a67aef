"""RandAugment, AutoAugment and Cutout: random operations for each image.

Axis letters: N images, L layers, D draws, S steps, P sub-policies, H height, W width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import draws, kernels, one_by_one
from nfnets.augment import operations as ops
from nfnets.platform import target_platform

# Images for which the published translations are meant, pixels.
_PUBLISHED_SIZE = 224

# AutoAugment's ImageNet policy "v0": sub-policies of two (operation, probability,
# magnitude). This is the policy of the published code, as in deepmind-research/nfnets and
# pytorch-image-models; table 9 of the paper lists a different one.
AUTOAUGMENT_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


def rand_augment(
    key: jax.Array,
    images: jax.Array,
    example_index: jax.Array,
    *,
    layers: int,
    magnitude: int,
    scale_translation: bool = False,
    gathers: bool | None = None,
) -> jax.Array:
    """Applies RandAugment: in each layer one of sixteen operations, drawn uniformly.

    "RandAugment" (Cubuk et al. 2020), section 3. The direction of a geometric operation is
    reversed with probability one half.

    Args:
      key: a JAX key.
      images: uint8 [N, 3, H, W].
      example_index: int32 [N], positions in the global batch.
      layers: L, operations per image.
      magnitude: of all operations, 0 to 30.
      scale_translation: see `AugmentOptions`.
      gathers: see `AugmentOptions`.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    steps = tuple(ops.Step(name, magnitude) for name in ops.OPERATIONS)
    translate = _translation(ops.RANDAUGMENT_TRANSLATE, width, scale_translation)
    bank = ops.build_bank(steps, height, width, translate)
    bits = draws.example_bits(key, example_index, 4 * layers)
    choice, sign, row, column = bits.reshape(-1, layers, 4).transpose(2, 1, 0)  # [4, L, N]
    return _apply_steps(gathers)(
        images,
        bank,
        step=draws.below(choice, len(steps)),
        negative=draws.below(sign, 2),
        center=jnp.stack([draws.below(row, height), draws.below(column, width)], axis=-1),
    )


def _apply_steps(gathers: bool | None) -> Callable[..., jax.Array]:
    if gathers is None:
        gathers = target_platform() != "tpu"
    return kernels.apply_steps if gathers else one_by_one.apply_steps


def _translation(published: int, width: int, is_scaled: bool) -> int:
    """Returns the shift of translations at magnitude 10, pixels."""
    return round(published * width / _PUBLISHED_SIZE) if is_scaled else published


def auto_augment(
    key: jax.Array,
    images: jax.Array,
    example_index: jax.Array,
    *,
    scale_translation: bool = False,
    gathers: bool | None = None,
) -> jax.Array:
    """Applies AutoAugment: one sub-policy per image, drawn uniformly.

    Each of its two operations is applied with its own probability; the direction of a
    geometric one is reversed with probability one half. "AutoAugment" (Cubuk et al. 2019).
    Images of less than 225 pixels become all gray under TranslateY, as published, unless
    translations are scaled.

    Args:
      key: a JAX key.
      images: uint8 [N, 3, H, W].
      example_index: int32 [N], positions in the global batch.
      scale_translation: see `AugmentOptions`.
      gathers: see `AugmentOptions`.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    distinct = {ops.Step(n, m) for pair in AUTOAUGMENT_POLICY for n, _, m in pair}
    steps = (ops.IDENTITY, *sorted(distinct))
    translate = _translation(ops.AUTOAUGMENT_TRANSLATE, width, scale_translation)
    bank = ops.build_bank(steps, height, width, translate)
    # Positions in the bank, and probabilities in tenths: [P, 2].
    position = np.array(
        [[steps.index(ops.Step(n, m)) for n, _, m in pair] for pair in AUTOAUGMENT_POLICY],
        np.int32,
    )
    tenths = np.array(
        [[round(10 * p) for _, p, _ in pair] for pair in AUTOAUGMENT_POLICY], np.int32
    )
    bits = draws.example_bits(key, example_index, 5).T
    policy = draws.below(bits[0], len(AUTOAUGMENT_POLICY))
    applied = draws.below(bits[1:3], 10) < jnp.asarray(tenths)[policy].T
    return _apply_steps(gathers)(
        images,
        bank,
        step=jnp.where(applied, jnp.asarray(position)[policy].T, 0),
        negative=draws.below(bits[3:5], 2),
        center=jnp.zeros((*applied.shape, 2), jnp.int32),  # the policy has no Cutout
    )


def random_cutout(
    key: jax.Array, images: jax.Array, example_index: jax.Array, size: int
) -> jax.Array:
    """Applies Cutout: a gray square around a uniform center on every image.

    "Improved Regularization of Convolutional Neural Networks with Cutout" (DeVries and
    Taylor 2017).

    Args:
      key: a JAX key.
      images: uint8 [N, 3, H, W].
      example_index: int32 [N], positions in the global batch.
      size: side of the square, pixels; the part outside of the image is cut off.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    bits = draws.example_bits(key, example_index, 2)
    row, column = draws.below(bits[:, 0], height), draws.below(bits[:, 1], width)
    center = jnp.stack([row, column], axis=-1)
    return kernels.cut_out(images, center, jnp.int32(size))
