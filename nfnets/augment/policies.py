"""RandAugment and AutoAugment: which operation each image gets.

Axis letters: N images, L layers, D draws, S steps, P sub-policies, H height, W width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import draws, kernels
from nfnets.augment import operations as ops

# AutoAugment's ImageNet policy "v0": sub-policies of two (operation, probability,
# magnitude). This is the policy of the published code, found with the operations above;
# table 9 of the paper lists a different one. Checked against the implementations in
# deepmind-research/nfnets and pytorch-image-models.
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
) -> jax.Array:
    """RandAugment: each layer applies one of the sixteen operations, drawn uniformly.

    Source: "RandAugment" (Cubuk et al. 2020), section 3; a geometric operation is turned
    around with probability one half.

    Args:
      key: a JAX key.
      images: uint8 [N, 3, H, W].
      example_index: int32 [N], positions in the global batch.
      layers: L, operations per image.
      magnitude: of all operations, 0 to 30.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    steps = tuple(ops.Step(name, magnitude) for name in ops.OPERATIONS)
    bank = ops.build_bank(steps, height, width, ops.RANDAUGMENT_TRANSLATE)
    bits = draws.example_bits(key, example_index, 4 * layers)
    # [N, 4 L] to four arrays [L, N].
    choice, sign, row, column = bits.reshape(-1, layers, 4).transpose(2, 1, 0)
    return kernels.apply_steps(
        images,
        bank,
        step=draws.below(choice, len(steps)),
        negative=draws.below(sign, 2),
        centre=jnp.stack([draws.below(row, height), draws.below(column, width)], axis=-1),
    )


def auto_augment(key: jax.Array, images: jax.Array, example_index: jax.Array) -> jax.Array:
    """AutoAugment: each image takes one sub-policy, drawn uniformly.

    Each of its two operations is applied with its own probability; a geometric one is
    turned around with probability one half. Source: "AutoAugment" (Cubuk et al. 2019). On
    images under 225 pixels TranslateY leaves nothing but grey, as published.

    Args:
      key: a JAX key.
      images: uint8 [N, 3, H, W].
      example_index: int32 [N], positions in the global batch.

    Returns:
      uint8 [N, 3, H, W].
    """
    _, _, height, width = images.shape
    distinct = {ops.Step(n, m) for pair in AUTOAUGMENT_POLICY for n, _, m in pair}
    steps = (ops.IDENTITY, *sorted(distinct))
    bank = ops.build_bank(steps, height, width, ops.AUTOAUGMENT_TRANSLATE)
    # [P, 2]: position in the bank, and probability in tenths.
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
    return kernels.apply_steps(
        images,
        bank,
        step=jnp.where(applied, jnp.asarray(position)[policy].T, 0),
        negative=draws.below(bits[3:5], 2),
        centre=jnp.zeros((*applied.shape, 2), jnp.int32),  # the policy has no Cutout
    )
