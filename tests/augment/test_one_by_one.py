"""The operations without gathers agree bit by bit with those that gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.augment import OPERATIONS, AugmentOptions, augment, kernels, one_by_one
from nfnets.augment import operations as ops
from nfnets.platform import compile_for

# Larger than a tile of `one_by_one.rotate` in both directions, and no multiple of it.
_HEIGHT, _WIDTH = 70, 100


def _images(count):
    images = np.random.default_rng(0).integers(
        0, 256, (count, 3, _HEIGHT, _WIDTH), np.uint8
    )
    images[0, 1] = 7  # a constant channel
    images[1] = np.clip(images[1], 40, 90)
    return images


def test_every_operation_in_every_direction():
    # 30: rotations by 90 degrees; 5: shifts that end half-way between two pixels.
    steps = tuple(ops.Step(name, m) for name in OPERATIONS for m in (0, 5, 30))
    bank = ops.build_bank(steps, _HEIGHT, _WIDTH, ops.RANDAUGMENT_TRANSLATE)
    step = np.tile(np.arange(len(steps)), 2)
    negative = np.repeat([0, 1], len(steps))
    center = np.random.default_rng(1).integers(0, _HEIGHT, (1, step.size, 2))
    # In the second layer, images are what the first has made of them.
    draws = [
        jnp.asarray(np.concatenate([a, a[:, ::-1]]), jnp.int32)
        for a in (step[None], negative[None], center)
    ]
    images = _images(step.size)
    expected, found = (
        np.asarray(jax.jit(lambda *a, f=form: f(a[0], bank, *a[1:]))(images, *draws))
        for form in (kernels.apply_steps, one_by_one.apply_steps)
    )
    differing = [
        (steps[i], bool(n))
        for i, n, a, b in zip(step, negative, expected, found, strict=True)
        if not np.array_equal(a, b)
    ]
    assert not differing
    changed = np.any(found != images, axis=(1, 2, 3))
    assert changed.mean() > 0.8


@pytest.mark.parametrize("distance", [-1.5, -0.5, 0.5, 1.5])
def test_pixels_of_a_line_that_round_to_different_moves(distance):
    width, height = 120, 7
    # Near half-way between two pixels, the sum's rounding decides, from column to column.
    nearby = np.float32(distance) * np.float32([1 - 2e-7, 1 - 6e-8, 1, 1 + 2e-7, 1 + 4e-7])
    rows = np.zeros((1, 2, height), np.float32)
    rows[0, 0, :5], rows[0, 1] = nearby, np.arange(height)
    columns = np.zeros((1, 2, width), np.float32)
    columns[0, 0] = np.arange(width)
    terms = (columns, rows, np.zeros((1, 2), np.float32))
    x, _, inside = kernels.source_pixels(*map(jnp.asarray, terms))
    moves = np.asarray(x - jnp.arange(width))[0]
    spread = [np.ptp(m[i]) for m, i in zip(moves, np.asarray(inside)[0], strict=True)]
    assert max(spread) == 1
    images = np.random.default_rng(2).integers(0, 256, (1, 3, height, width), np.uint8)
    expected = kernels.gather_affine(jnp.asarray(images), *terms)
    found = one_by_one.shift(jnp.asarray(images), *terms, axis=3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("options", [{}, {"autoaugment": True, "randaugment_layers": 0}])
def test_tpus_augment_without_large_gathers(options):
    images = np.moveaxis(_images(8), 1, -1)[:, :32, :40]
    labels, index = jnp.eye(8), jnp.arange(8)
    key = jax.random.key(3)

    def run(options):
        return jax.jit(lambda x: augment(key, x, labels, index, options)[0])

    expected = run(AugmentOptions(**options))(images)
    explicit = AugmentOptions(**options, gathers=False)
    np.testing.assert_array_equal(run(explicit)(images), expected)

    with compile_for("tpu"):
        for_tpu = str(jax.make_jaxpr(run(AugmentOptions(**options)))(images))
        forced = str(jax.make_jaxpr(run(AugmentOptions(**options, gathers=True)))(images))
    assert "u8[8,3,32,40] = gather" in forced
    assert "u8[8,3,32,40] = gather" not in for_tpu
    assert "scatter-add" in forced
    assert "scatter-add" not in for_tpu
