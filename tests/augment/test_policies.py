"""Frequencies and order of the operations of RandAugment and AutoAugment."""

import collections
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import GEOMETRIC, OPERATIONS, draws, kernels, policies
from nfnets.augment import operations as ops

_HEIGHT, _WIDTH = 24, 28


def _image():
    """A planar image that every operation changes, each in its own way."""
    rng = np.random.default_rng(0)
    return rng.integers(20, 230, (3, _HEIGHT, _WIDTH), dtype=np.uint8)


def _outcomes(bank, step, negative):
    """The results of the given steps on `_image`: arrays [layers, outcomes] of choices."""
    step, negative = jnp.asarray(step), jnp.asarray(negative)
    images = jnp.asarray(_image())[None].repeat(step.shape[1], axis=0)
    center = jnp.zeros((*step.shape, 2), jnp.int32)
    return np.asarray(kernels.apply_steps(images, bank, step, negative, center))


def _chi_square(counts, expected):
    return np.sum((np.asarray(counts) - expected) ** 2 / np.asarray(expected))


def test_rand_augment_draws_operations_and_signs_uniformly():
    count, magnitude = 8000, 2
    choices = [
        (i, sign)
        for i, name in enumerate(OPERATIONS)
        for sign in ((0, 1) if name in GEOMETRIC else (0,))
        if name != "Cutout"
    ]
    steps = tuple(ops.Step(name, magnitude) for name in OPERATIONS)
    bank = ops.build_bank(steps, _HEIGHT, _WIDTH, ops.RANDAUGMENT_TRANSLATE)
    known = _outcomes(bank, *np.array(choices).T[:, None])
    names = {image.tobytes(): choice for image, choice in zip(known, choices, strict=True)}
    assert len(names) == len(choices)

    images = np.broadcast_to(_image(), (count, 3, _HEIGHT, _WIDTH))
    results = jax.jit(lambda *a: policies.rand_augment(*a, layers=1, magnitude=magnitude))(
        jax.random.key(0), images, jnp.arange(count)
    )
    found = [names.get(image.tobytes(), "Cutout") for image in np.asarray(results)]
    counts = collections.Counter(found)

    per_operation = [counts["Cutout"]]
    for i, name in enumerate(OPERATIONS):
        if name != "Cutout":
            per_operation.append(counts[i, 0] + counts[i, 1])
        if name in GEOMETRIC:
            # Five standard deviations of a fair coin.
            total = counts[i, 0] + counts[i, 1]
            assert abs(counts[i, 0] - counts[i, 1]) < 5 * np.sqrt(total)
    # 15 degrees of freedom: above 44.3 with one key in 10,000.
    assert _chi_square(per_operation, count / 16) < 44.3

    boxes = [r for r, f in zip(np.asarray(results), found, strict=True) if f == "Cutout"]
    gray = np.all(np.stack(boxes) == 128, axis=1)  # [boxes, H, W]
    centers = []
    for box in gray:
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert box.sum() == rows.size * columns.size > 0
        centers.append((rows[-1], columns[-1]))
        assert rows.size <= 16 and columns.size <= 16  # 2 int(40 M / 10)
    # Of a square of side 16 around a uniform center the last row is center + 7, clipped.
    last_row, last_column = np.array(centers).T
    for last, limit in ((last_row, _HEIGHT), (last_column, _WIDTH)):
        assert last.min() == 7
        clipped = np.mean(last == limit - 1)
        np.testing.assert_allclose(clipped, 8 / limit, atol=5 * 0.5 / np.sqrt(len(boxes)))


def test_layers_follow_one_another():
    count, layers, magnitude = 64, 3, 1
    images = np.broadcast_to(_image(), (count, 3, _HEIGHT, _WIDTH))
    index = jnp.arange(count)
    key = jax.random.key(5)
    results = policies.rand_augment(key, images, index, layers=layers, magnitude=magnitude)

    bits = np.asarray(draws.example_bits(key, index, 4 * layers)).reshape(count, layers, 4)
    steps = tuple(ops.Step(name, magnitude) for name in OPERATIONS)
    bank = ops.build_bank(steps, _HEIGHT, _WIDTH, ops.RANDAUGMENT_TRANSLATE)
    apply = jax.jit(lambda *a: kernels.apply_steps(a[0], bank, *a[1:]))
    for layer in range(layers):
        choice, sign, row, column = bits[:, layer].T
        center = np.stack([row % _HEIGHT, column % _WIDTH], axis=-1)
        draw = (x.astype(np.int32)[None] for x in (choice % 16, sign % 2, center))
        images = apply(images, *draw)
    np.testing.assert_array_equal(results, images)
    assert len(np.unique(np.asarray(results).reshape(count, -1), axis=0)) > 50


def test_auto_augment_policy_is_the_published_one():
    # Of the policy in deepmind-research/nfnets and pytorch-image-models.
    digest = hashlib.sha256(repr(policies.AUTOAUGMENT_POLICY).encode()).hexdigest()
    assert digest == "1224f5b1d3b93d6b08760e40be72143be8b204af0905867b23facfea5c303ddb"


def _expected_outcomes():
    """Image bytes -> probability under AutoAugment, by going through all choices."""
    steps = [ops.IDENTITY]
    rows = []
    for pair in policies.AUTOAUGMENT_POLICY:
        for applied, signs in itertools.product(
            itertools.product((True, False), repeat=2), itertools.product((0, 1), repeat=2)
        ):
            probability = 0.25 / len(policies.AUTOAUGMENT_POLICY)
            position = []
            for (name, p, magnitude), is_applied in zip(pair, applied, strict=True):
                probability *= p if is_applied else 1 - p
                steps.append(ops.Step(name, magnitude) if is_applied else ops.IDENTITY)
                position.append(len(steps) - 1)
            rows.append((position, signs, probability))
    bank = ops.build_bank(tuple(steps), _HEIGHT, _WIDTH, ops.AUTOAUGMENT_TRANSLATE)
    positions, signs, probabilities = zip(*rows, strict=True)
    images = _outcomes(bank, np.array(positions).T, np.array(signs).T)
    expected = collections.Counter()
    for image, probability in zip(images, probabilities, strict=True):
        expected[image.tobytes()] += probability
    return +expected


def test_auto_augment_outcomes_have_the_policy_s_probabilities():
    count = 8000
    expected = _expected_outcomes()
    np.testing.assert_allclose(sum(expected.values()), 1)
    images = np.broadcast_to(_image(), (count, 3, _HEIGHT, _WIDTH))
    results = jax.jit(policies.auto_augment)(jax.random.key(0), images, jnp.arange(count))
    counts = collections.Counter(image.tobytes() for image in np.asarray(results))
    assert set(counts) <= set(expected)
    # Rare outcomes together, so that every cell expects at least 20 images.
    common = [outcome for outcome, p in expected.items() if p * count >= 20]
    cells = [counts[outcome] for outcome in common]
    ideal = [expected[outcome] * count for outcome in common]
    cells.append(count - sum(cells))
    ideal.append(count - sum(ideal))
    degrees = len(cells) - 1
    assert degrees > 50
    # Five standard deviations of the chi-square distribution.
    assert _chi_square(cells, ideal) < degrees + 5 * np.sqrt(2 * degrees)


def test_auto_augment_translates_by_its_own_distance():
    """TranslateY at magnitude 9 moves by 225 pixels, not by RandAugment's 90."""
    images = np.full((96, 3, 300, 300), 255, np.uint8)
    run = jax.jit(policies.auto_augment)
    results = np.asarray(run(jax.random.key(0), images, jnp.arange(96)))
    gray_rows = np.all(results == 128, axis=(1, 3)).sum(axis=1)
    assert np.sum(gray_rows >= 225) >= 1
    assert gray_rows.max() < 300


def test_translations_scale_with_the_image():
    """100 pixels at magnitude 10 and 224 px are 25 at 56 px."""
    images = np.full((64, 3, 56, 56), 255, np.uint8)

    def shifts(**options):
        run = jax.jit(
            lambda *a: policies.rand_augment(*a, layers=1, magnitude=10, **options)
        )
        gray = np.asarray(run(jax.random.key(0), images, jnp.arange(64)))[:, 0] == 128
        return set(gray.all(axis=1).sum(axis=1).tolist())  # columns that are all gray

    # Other operations may make the whole image gray.
    assert shifts(scale_translation=True) - {56} == {0, 25}
    assert shifts() == {0, 56}
    assert policies._translation(250, 224, True) == 250


def test_images_do_not_leak_into_each_other():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 3, _HEIGHT, _WIDTH), dtype=np.uint8)
    run = jax.jit(lambda *a: policies.rand_augment(*a, layers=2, magnitude=1))
    before = run(jax.random.key(1), images, jnp.arange(16))
    other = images.copy()  # the first call may still be reading `images`
    other[5] = 255 - other[5]
    after = run(jax.random.key(1), other, jnp.arange(16))
    changed = np.any(np.asarray(before != after), axis=(1, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(changed), [5])
