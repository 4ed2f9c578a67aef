"""MixUp and CutMix: shares, weights, distributions and pairs."""

import fractions
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.augment import mixing

_HEIGHT, _WIDTH = 24, 40


@functools.partial(jax.jit, static_argnames=("alpha", "mixup", "cutmix"))
def _mix(key, images, labels, index, *, alpha=1.0, mixup=0.5, cutmix=0.5):
    return mixing.mix_pairs(
        key,
        images,
        labels,
        index,
        mixup_alpha=alpha,
        mixup_fraction=mixup,
        cutmix_alpha=alpha,
        cutmix_fraction=cutmix,
    )


def _black_and_white(count):
    """Even images black, odd ones white; labels the same."""
    images = np.zeros((count, 3, _HEIGHT, _WIDTH), np.uint8)
    images[1::2] = 255
    return jnp.asarray(images), jnp.eye(2)[jnp.arange(count) % 2]


def _own_share(images):
    """The weight of each image's own pixels in a mixed batch of `_black_and_white`."""
    white = np.asarray(images).astype(np.float64) / 255
    white[::2] = 1 - white[::2]
    return white


@pytest.mark.parametrize(
    ("mixup", "cutmix"),
    [(0.5, 0.5), (1, 0), (0, 1), (0, 0), (0.3, 0.1), (1 / 3, 2 / 3), (0.29, 0.7)],
)
def test_shares_are_exact(mixup, cutmix):
    count = 2100
    is_mixup, is_cutmix = mixing.pair_kinds(jnp.arange(count), mixup, cutmix)
    is_mixup, is_cutmix = np.asarray(is_mixup), np.asarray(is_cutmix)
    assert not np.any(is_mixup & is_cutmix)
    # As decimals: 0.29 is one, and its float is a little less.
    up, cut = (fractions.Fraction(f).limit_denominator(1000) for f in (mixup, cutmix))
    assert is_mixup.sum() == count * up
    assert is_cutmix.sum() == count * cut
    pairs = np.arange(1, count + 1)
    mixed = np.cumsum(is_mixup | is_cutmix)
    np.testing.assert_array_equal(mixed, [int(p * (up + cut)) for p in pairs])
    if up + cut:
        share = up / (up + cut)
        expected = [int(int(p * (up + cut)) * share) for p in pairs]
        np.testing.assert_array_equal(np.cumsum(is_mixup), expected)


def test_mixup_blends_pixels_and_labels_alike():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    labels = np.eye(64, dtype=np.float32)
    mixed, targets = _mix(
        jax.random.key(0), images, labels, jnp.arange(64), mixup=1.0, cutmix=0.0
    )
    targets = np.asarray(targets)
    own = np.diagonal(targets)
    other = np.arange(64) ^ 1
    np.testing.assert_allclose(targets[np.arange(64), other], 1 - own, atol=1e-7)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert len(np.unique(own)) > 60  # each example has its own lambda
    weight = own[:, None, None, None].astype(np.float64)
    exact = weight * images + (1 - weight) * images[other]
    np.testing.assert_array_equal(np.asarray(mixed), np.floor(exact + 0.5))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_lambda_is_beta(alpha):
    count = 20_000
    images = jnp.zeros((count, 3, 1, 1), jnp.uint8)
    labels = jnp.eye(2)[jnp.arange(count) % 2]
    _, targets = _mix(
        jax.random.key(1),
        images,
        labels,
        jnp.arange(count),
        alpha=alpha,
        mixup=1.0,
        cutmix=0.0,
    )
    own = np.asarray(targets)[np.arange(count), np.arange(count) % 2]
    reference = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    # Kolmogorov-Smirnov, away from the ends, where 8-bit images cannot tell weights apart:
    # a right distribution exceeds this distance with one key in 10,000.
    at = np.linspace(1e-4, 1 - 1e-4, 1001)[:, None]
    distance = np.abs((own < at).mean(axis=1) - (reference < at).mean(axis=1))
    assert distance.max() < 2.2 * np.sqrt(1 / count + 1 / reference.size)


def test_cutmix_label_weight_is_the_pasted_area():
    count = 512
    images, labels = _black_and_white(count)
    mixed, targets = _mix(
        jax.random.key(2), images, labels, jnp.arange(count), mixup=0.0, cutmix=1.0
    )
    own = _own_share(mixed)[:, 0]
    assert set(np.unique(own)) == {0.0, 1.0}
    weight = np.asarray(targets)[np.arange(count), np.arange(count) % 2]
    np.testing.assert_allclose(weight, own.mean(axis=(1, 2)), rtol=0, atol=1e-7)
    np.testing.assert_allclose(np.asarray(targets).sum(axis=1), 1, atol=1e-6)
    for image in own:
        pasted = image == 0
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns)
        for span in (rows, columns):
            assert np.abs(np.diff(span.astype(int))).sum() <= 2  # one piece


def test_cutmix_boxes_are_the_paper_s():
    count = 10_000
    images, labels = _black_and_white(count)
    mixed, _ = _mix(
        jax.random.key(3), images, labels, jnp.arange(count), mixup=0.0, cutmix=1.0
    )
    pasted = _own_share(mixed)[:, 0] == 0
    # The paper's algorithm, in numpy.
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.uniform(size=count))
    expected = np.ones((count, _HEIGHT, _WIDTH), bool)
    for axis, limit in ((1, _HEIGHT), (2, _WIDTH)):
        size = (side * limit).astype(int)
        start = rng.integers(0, limit, count) - size // 2
        place = np.arange(limit)
        inside = (place >= start[:, None]) & (place < (start + size)[:, None])
        expected &= inside[:, :, None] if axis == 1 else inside[:, None, :]
    # A pixel's frequency has a standard deviation of at most 0.5 / sqrt(count) in each.
    frequency, reference = pasted.mean(axis=0), expected.mean(axis=0)
    assert np.abs(frequency - reference).max() < 5 * 0.5 * np.sqrt(2 / count)
    area = pasted.mean(axis=(1, 2))
    quantiles = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(
        np.quantile(area, quantiles),
        np.quantile(expected.mean(axis=(1, 2)), quantiles),
        atol=0.02,
    )


def test_pairs_keep_to_themselves():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
    labels = np.eye(12, dtype=np.float32)
    before = _mix(jax.random.key(0), images, labels, jnp.arange(12))
    # Copies: the first call may still be reading the arrays.
    other_images, other_labels = images.copy(), labels.copy()
    other_images[4:6] = 255 - images[4:6]
    other_labels[4:6] = 0
    after = _mix(jax.random.key(0), other_images, other_labels, jnp.arange(12))
    others = np.r_[0:4, 6:12]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.asarray(old)[others], np.asarray(new)[others])
        assert not np.array_equal(old[4:6], new[4:6])


def test_pairs_left_alone_are_unchanged():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    labels = np.eye(40, dtype=np.float32)
    mixed, targets = _mix(
        jax.random.key(0), images, labels, jnp.arange(40), mixup=0.25, cutmix=0.15
    )
    changed = np.any(np.asarray(mixed) != images, axis=(1, 2, 3)).reshape(20, 2).any(axis=1)
    relabelled = np.any(np.asarray(targets) != labels, axis=1).reshape(20, 2).any(axis=1)
    np.testing.assert_array_equal(relabelled, changed)
    # MixUp 5, CutMix 3 of the 20 pairs.
    assert changed.sum() == 8


def test_odd_batches_are_refused():
    images, labels = _black_and_white(3)
    with pytest.raises(nfnets.UserError, match="even batch size; got 3 images"):
        _mix(jax.random.key(0), images, labels, jnp.arange(3))
