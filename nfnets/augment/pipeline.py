"""`augment`: the whole recipe on a batch, and single operations by name.

Between the stages images are planar, uint8 [N, 3, H, W]: whole grey levels, as in the
published pipeline, at a quarter of float32's memory traffic. MixUp rounds to the nearest
level, the operations round down as published.

Axis letters: N images, H height, W width, K classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfnets.augment import draws, kernels, mixing, policies
from nfnets.augment import operations as ops
from nfnets.augment.options import STAGES, AugmentOptions

Stage = Callable[
    [jax.Array, jax.Array, jax.Array, jax.Array, AugmentOptions],
    tuple[jax.Array, jax.Array],
]


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    options: AugmentOptions,
) -> tuple[jax.Array, jax.Array]:
    """Mixes, distorts and cuts a batch: a pure function, to be called under `jax.jit`.

    Example i's result depends on `key`, on `example_index[i]` and on the images of its pair
    only, so a batch may be split anywhere between pairs, over devices, hosts or
    micro-batches, without changing a bit.

    Args:
      key: a JAX key, different for every step.
      images: [N, H, W, 3] in [0, 255], uint8 or float; floats are rounded and clipped.
        N is even where `options.mixes`, and rows 2i and 2i + 1 are then neighbours 2j and
        2j + 1 of the global batch.
      labels: float32 [N, K], rows that sum to 1.
      example_index: int32 [N], positions in the global batch.
      options: static under `jax.jit`.

    Returns:
      Images, float32 [N, H, W, 3], whole numbers in [0, 255]; labels, float32 [N, K], rows
      that sum to 1.

    Raises:
      ValueError: shapes that do not fit, or mixing with an odd N.
    """
    _check_shapes(images, labels, example_index)
    images = _to_planar(images)
    for name in options.order:
        # By the stage's name, not by its turn: another order makes the same draws.
        stage_key = jax.random.fold_in(key, STAGES.index(name))
        images, labels = _STAGES[name](stage_key, images, labels, example_index, options)
    return _from_planar(images).astype(jnp.float32), labels


def apply_operation(
    name: str,
    images: jax.Array,
    magnitude: int,
    sign: int = 1,
    *,
    centre: tuple[int, int] | None = None,
    translate: int = ops.RANDAUGMENT_TRANSLATE,
) -> jax.Array:
    """Applies one operation to all images, by the code that `augment` runs.

    Args:
      name: one of `OPERATIONS`.
      images: [N, H, W, 3] in [0, 255], uint8 or float.
      magnitude: 0 to 30; static under `jax.jit`, like `name`, `sign` and `translate`.
      sign: 1 or -1, the direction of a geometric operation.
      centre: (row, column) of Cutout's box; None: the middle.
      translate: shift of TranslateX and TranslateY at magnitude 10, pixels.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      ValueError: an unknown operation.

    Example:
      apply_operation("Rotate", images, magnitude=10, sign=-1)  # 30 degrees
    """
    count, height, width, _ = images.shape
    bank = ops.build_bank((ops.Step(name, magnitude),), height, width, translate)
    point = jnp.array(centre or (height // 2, width // 2), jnp.int32)
    distorted = kernels.apply_steps(
        _to_planar(images),
        bank,
        step=jnp.zeros((1, count), jnp.int32),
        negative=jnp.full((1, count), int(sign < 0), jnp.int32),
        centre=jnp.broadcast_to(point, (1, count, 2)),
    )
    return _from_planar(distorted)


def _mix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    options: AugmentOptions,
) -> tuple[jax.Array, jax.Array]:
    if not options.mixes:
        return images, labels
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


def _distort(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    options: AugmentOptions,
) -> tuple[jax.Array, jax.Array]:
    if options.autoaugment:
        images = policies.auto_augment(key, images, example_index)
    elif options.randaugment_layers:
        images = policies.rand_augment(
            key,
            images,
            example_index,
            layers=options.randaugment_layers,
            magnitude=options.randaugment_magnitude,
        )
    return images, labels


def _cutout(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    example_index: jax.Array,
    options: AugmentOptions,
) -> tuple[jax.Array, jax.Array]:
    """Cutout as a stage of its own (DeVries and Taylor 2017): one box on every image."""
    if options.cutout_size:
        _, _, height, width = images.shape
        bits = draws.example_bits(key, example_index, 2)
        row, column = draws.below(bits[:, 0], height), draws.below(bits[:, 1], width)
        centre = jnp.stack([row, column], axis=-1)
        images = kernels.cut_out(images, centre, jnp.int32(options.cutout_size))
    return images, labels


_STAGES: dict[str, Stage] = {"mix": _mix, "distort": _distort, "cutout": _cutout}


def _check_shapes(images: jax.Array, labels: jax.Array, example_index: jax.Array) -> None:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [N, H, W, 3]; got {images.shape}")
    count = images.shape[0]
    if labels.ndim != 2 or labels.shape[0] != count:
        raise ValueError(f"labels must be [{count}, K], one-hot; got {labels.shape}")
    if example_index.shape != (count,):
        raise ValueError(f"example_index must be [{count}]; got {example_index.shape}")


def _to_planar(images: jax.Array) -> jax.Array:
    """[N, H, W, 3] of any dtype to uint8 [N, 3, H, W]."""
    if images.dtype != jnp.uint8:
        images = jnp.round(jnp.clip(images, 0, 255)).astype(jnp.uint8)
    return jnp.moveaxis(images, -1, 1)


def _from_planar(images: jax.Array) -> jax.Array:
    """[N, 3, H, W] to [N, H, W, 3]."""
    return jnp.moveaxis(images, 1, -1)
