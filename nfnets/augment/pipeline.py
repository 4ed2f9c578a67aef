"""Augmentation of a batch, and single operations by name.

Between the stages, images are planar, uint8 [N, 3, H, W], which takes a quarter of
float32's memory traffic. As published, levels stay integers, and the operations round
down; MixUp rounds to the nearest level.

Axis letters: N images, H height, W width, K classes.
"""

import jax
import jax.numpy as jnp

from nfnets.augment import kernels, mixing, policies
from nfnets.augment import operations as ops
from nfnets.augment.options import STAGES, AugmentOptions
from nfnets.errors import UserError


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    options: AugmentOptions,
) -> tuple[jax.Array, jax.Array]:
    """Augments a batch: MixUp and CutMix, RandAugment or AutoAugment, Cutout.

    The result for example i depends only on `key`, `example_index[i]` and the images of its
    pair. A batch may be split between pairs, over devices, hosts or micro-batches, without
    changing a bit.

    Example:

        from nfnets.augment import AugmentOptions, augment
        images = jnp.full((4, 32, 32, 3), 200, jnp.uint8)
        labels = jax.nn.one_hot(jnp.array([0, 1, 2, 3]), 10)
        key = jax.random.fold_in(jax.random.key(0), 7)  # of step 7
        images, labels = jax.jit(augment, static_argnames="options")(
            key, images, labels, jnp.arange(4), options=AugmentOptions(cutout_size=8)
        )

    Args:
      key: a JAX key, different for every step.
      images: [N, H, W, 3] in [0, 255], uint8 or float; floats are rounded and clipped.
        If `options.mixes`, N is even, and rows 2i and 2i + 1 are neighbors 2j and 2j + 1
        of the global batch.
      labels: float32 [N, K], each row with the sum 1.
      example_index: int32 [N], positions in the global batch.
      options: static under `jax.jit`.

    Returns:
      Images, float32 [N, H, W, 3], integers in [0, 255]; labels, float32 [N, K], each row
      with the sum 1.

    Raises:
      UserError: the shapes do not match, or N is odd and images are to be mixed.
    """
    _check_shapes(images, labels, example_index)
    images = _to_planar(images)
    for name in options.order:
        # A stage draws the same numbers at any position in `order`.
        stage_key = jax.random.fold_in(key, STAGES.index(name))
        images, labels = _apply_stage(
            name, stage_key, images, labels, example_index, options
        )
    return _from_planar(images).astype(jnp.float32), labels


def apply_operation(
    name: str,
    images: jax.Array,
    magnitude: int,
    sign: int = 1,
    *,
    center: tuple[int, int] | None = None,
    translate: int = ops.RANDAUGMENT_TRANSLATE,
) -> jax.Array:
    """Applies one operation to all images.

    Example:

        apply_operation("Rotate", images, magnitude=10, sign=-1)  # by 30 degrees

    Args:
      name: one of `OPERATIONS`.
      images: [N, H, W, 3] in [0, 255], uint8 or float.
      magnitude: 0 to 30; static under `jax.jit`, like `name`, `sign` and `translate`.
      sign: 1 or -1, the direction of a geometric operation.
      center: (row, column) of Cutout's box; None: the middle.
      translate: shift of TranslateX and TranslateY at magnitude 10, pixels.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      UserError: the operation is unknown.
    """
    count, height, width, _ = images.shape
    bank = ops.build_bank((ops.Step(name, magnitude),), height, width, translate)
    point = jnp.array(center or (height // 2, width // 2), jnp.int32)
    distorted = kernels.apply_steps(
        _to_planar(images),
        bank,
        step=jnp.zeros((1, count), jnp.int32),
        negative=jnp.full((1, count), int(sign < 0), jnp.int32),
        center=jnp.broadcast_to(point, (1, count, 2)),
    )
    return _from_planar(distorted)


def _apply_stage(
    name: str,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    options: AugmentOptions,
) -> tuple[jax.Array, jax.Array]:
    """Applies one of `STAGES` to planar images, if the options make use of it."""
    match name:
        case "mix" if options.mixes:
            return mixing.mix_pairs(
                key,
                images,
                labels,
                example_index,
                mixup_alpha=options.mixup_alpha,
                mixup_fraction=options.mixup_fraction,
                cutmix_alpha=options.cutmix_alpha,
                cutmix_fraction=options.cutmix_fraction,
            )
        case "distort" if options.autoaugment:
            images = policies.auto_augment(
                key,
                images,
                example_index,
                scale_translation=options.scale_translation,
                gathers=options.gathers,
            )
        case "distort" if options.randaugment_layers:
            images = policies.rand_augment(
                key,
                images,
                example_index,
                layers=options.randaugment_layers,
                magnitude=options.randaugment_magnitude,
                scale_translation=options.scale_translation,
                gathers=options.gathers,
            )
        case "cutout" if options.cutout_size:
            images = policies.random_cutout(key, images, example_index, options.cutout_size)
    return images, labels


def _check_shapes(images: jax.Array, labels: jax.Array, example_index: jax.Array) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images must be [N, H, W, 3]; got {list(images.shape)}")
    count = images.shape[0]
    if labels.ndim != 2 or labels.shape[0] != count:
        raise UserError(f"labels must be [{count}, K], one-hot; got {list(labels.shape)}")
    if example_index.shape != (count,):
        raise UserError(f"example_index must be [{count}]; got {list(example_index.shape)}")


def _to_planar(images: jax.Array) -> jax.Array:
    """Converts [N, H, W, 3] of any dtype to uint8 [N, 3, H, W]."""
    if images.dtype != jnp.uint8:
        images = jnp.round(jnp.clip(images, 0, 255)).astype(jnp.uint8)
    return jnp.moveaxis(images, -1, 1)


def _from_planar(images: jax.Array) -> jax.Array:
    """Converts [N, 3, H, W] to [N, H, W, 3]."""
    return jnp.moveaxis(images, 1, -1)
