"""`augment` as a pure function of key, examples and positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.augment import AugmentOptions, augment

_COUNT, _CLASSES = 16, 10
_RECIPES = {
    "randaugment": AugmentOptions(randaugment_layers=2, cutout_size=9),
    "autoaugment": AugmentOptions(
        autoaugment=True, randaugment_layers=0, mixup_fraction=0.3, cutmix_fraction=0.2
    ),
}
_augment = jax.jit(augment, static_argnames="options")


def _batch(count=_COUNT, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 24, 20, 3), dtype=np.uint8)
    labels = rng.dirichlet(np.full(_CLASSES, 0.5), count).astype(np.float32)
    return images, labels, np.arange(count, dtype=np.int32)


def _assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@functools.cache
def _whole(recipe):
    return jax.tree.map(
        np.asarray, _augment(jax.random.key(0), *_batch(), options=_RECIPES[recipe])
    )


@pytest.mark.parametrize("recipe", _RECIPES)
@pytest.mark.parametrize("pieces", [2, 4])
def test_splitting_a_batch_changes_nothing(recipe, pieces):
    parts = [np.split(part, pieces) for part in _batch()]
    results = [
        _augment(jax.random.key(0), *piece, options=_RECIPES[recipe])
        for piece in zip(*parts, strict=True)
    ]
    joined = [np.concatenate(piece) for piece in zip(*results, strict=True)]
    _assert_same(joined, _whole(recipe))


@pytest.mark.parametrize("recipe", _RECIPES)
def test_devices_change_nothing(recipe):
    devices = min(4, jax.local_device_count())
    batch = [part.reshape(devices, -1, *part.shape[1:]) for part in _batch()]
    step = jax.pmap(
        lambda *a: augment(*a, _RECIPES[recipe]),
        in_axes=(None, 0, 0, 0),
        devices=jax.local_devices()[:devices],
    )
    results = step(jax.random.key(0), *batch)
    joined = [np.asarray(x).reshape(_COUNT, *x.shape[2:]) for x in results]
    _assert_same(joined, _whole(recipe))


def test_within_a_gradient_and_a_loop_over_microbatches():
    recipe = "randaugment"

    def loss(scale, batch):
        images, labels = augment(jax.random.key(0), *batch, _RECIPES[recipe])
        return scale * jnp.sum(images), (images, labels)

    def one(total, batch):
        gradient, result = jax.grad(loss, has_aux=True)(1.0, batch)
        return total + gradient, result

    batch = [part.reshape(4, 4, *part.shape[1:]) for part in _batch()]
    total, results = jax.jit(lambda batch: jax.lax.scan(one, 0.0, batch))(batch)
    joined = [np.asarray(x).reshape(_COUNT, *x.shape[2:]) for x in results]
    _assert_same(joined, _whole(recipe))
    np.testing.assert_allclose(total, _whole(recipe)[0].sum(), rtol=1e-5)


def test_the_key_decides():
    options = _RECIPES["randaugment"]
    _assert_same(
        _augment(jax.random.key(0), *_batch(), options=options), _whole("randaugment")
    )
    other = _augment(jax.random.key(1), *_batch(), options=options)
    same = np.all(np.asarray(other[0]) == _whole("randaugment")[0], axis=(1, 2, 3))
    assert same.sum() <= 1


def test_old_style_keys_work():
    options = AugmentOptions(order=("mix",))
    new = _augment(jax.random.key(0), *_batch(), options=options)
    _assert_same(_augment(jax.random.PRNGKey(0), *_batch(), options=options), new)


@pytest.mark.parametrize("recipe", _RECIPES)
def test_ranges_and_types(recipe):
    images, labels = _whole(recipe)
    assert images.dtype == labels.dtype == np.float32
    assert images.shape == (_COUNT, 24, 20, 3) and labels.shape == (_COUNT, _CLASSES)
    assert images.min() >= 0 and images.max() <= 255
    np.testing.assert_array_equal(images, np.round(images))
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    assert np.any(images != _batch()[0]) and np.any(labels != _batch()[1])


def test_float_images_are_rounded_and_clipped():
    images, labels, index = _batch()
    options = AugmentOptions(order=("mix",))
    noise = np.random.default_rng(1).uniform(-0.49, 0.49, images.shape)
    floats = np.where(images == 255, 300, images + noise).astype(np.float32)
    whole = _augment(jax.random.key(0), images, labels, index, options=options)
    _assert_same(_augment(jax.random.key(0), floats, labels, index, options=options), whole)


@pytest.mark.parametrize(
    "options",
    [
        AugmentOptions(order=()),
        AugmentOptions(mixup_fraction=0.0, cutmix_fraction=0.0, randaugment_layers=0),
    ],
)
def test_nothing_to_do(options):
    images, labels, index = _batch(3)  # an odd batch is fine where nothing is mixed
    result = _augment(jax.random.key(0), images, labels, index, options=options)
    _assert_same(result, (images.astype(np.float32), labels))


def test_stages_run_in_the_given_order():
    images, labels, index = _batch()
    kwargs = {"randaugment_layers": 1, "cutout_size": 9}
    order = ("distort", "cutout", "mix")
    expected = images, labels
    for stage in order:
        options = AugmentOptions(order=(stage,), **kwargs)
        expected = _augment(jax.random.key(7), *expected, index, options=options)
    options = AugmentOptions(order=order, **kwargs)
    result = _augment(jax.random.key(7), images, labels, index, options=options)
    _assert_same(result, expected)


def test_a_stage_draws_the_same_whatever_comes_before():
    batch = np.zeros((64, 24, 20, 3), np.uint8), np.eye(64), np.arange(64)
    kwargs = {"cutout_size": 2, "randaugment_layers": 0}
    alone = AugmentOptions(order=("cutout",), **kwargs)
    after = AugmentOptions(order=("mix", "distort", "cutout"), **kwargs)
    expected, _ = _augment(jax.random.key(0), *batch, options=alone)
    result, _ = _augment(jax.random.key(0), *batch, options=after)  # black mixed with black
    np.testing.assert_array_equal(result, expected)


def test_stages_draw_independently():
    count, side = 256, 16
    images = np.zeros((count, side, side, 3), np.uint8)
    images[1::2] = 255
    batch = images, np.eye(count), np.arange(count)
    options = AugmentOptions(
        order=("mix", "cutout"), mixup_fraction=0.0, cutmix_fraction=1.0, cutout_size=1
    )
    mixed, _ = _augment(jax.random.key(0), *batch, options=options)
    mixed = np.asarray(mixed)[..., 0]
    is_other = mixed == np.where(np.arange(count) % 2, 0, 255)[:, None, None]
    agree, total = 0, 0
    for pasted, dot in zip(is_other, mixed == 128, strict=True):
        rows = np.flatnonzero(pasted.any(axis=1))
        if rows.size and rows[0] > 0 and rows[-1] < side - 1:  # not clipped
            center = rows[0] + rows.size // 2
            agree += center in np.argwhere(dot)[0]
            total += 1
    # One in eight agrees by chance; were the draws the same, all would.
    assert total > 50 and agree < total / 3


def test_cutout_stage_grays_a_square_around_a_uniform_center():
    count, size = 4000, 6
    images = np.zeros((count, 16, 24, 3), np.uint8)
    labels = np.ones((count, 1), np.float32)
    options = AugmentOptions(order=("cutout",), cutout_size=size)
    result, _ = _augment(
        jax.random.key(0), images, labels, np.arange(count), options=options
    )
    result = np.asarray(result)
    assert set(np.unique(result)) == {0.0, 128.0}
    boxes = result[..., 0] == 128
    rows, columns = boxes.any(axis=2), boxes.any(axis=1)
    np.testing.assert_array_equal(boxes, rows[:, :, None] & columns[:, None, :])
    inner = (rows.sum(axis=1) == size) & (columns.sum(axis=1) == size)
    parity = 2 * (np.argmax(rows, axis=1) % 2) + np.argmax(columns, axis=1) % 2
    share = np.bincount(parity[inner], minlength=4) / inner.sum()
    assert np.all(np.abs(share - 0.25) < 0.07)  # rows and columns are independent
    for spans in (rows, columns):
        limit = spans.shape[1]
        # Of the side 6, centers 0, 1, 2 lose 3, 2, 1 pixels, the last two 2 and 1.
        lengths = np.bincount(spans.sum(axis=1), minlength=size + 1) / count
        expected = np.array([0, 0, 0, 1, 2, 2, limit - 5]) / limit
        np.testing.assert_allclose(lengths, expected, atol=5 * 0.5 / np.sqrt(count))
        # A pixel is gray for as many centers as reach it.
        first = spans[:, 0].mean()
        np.testing.assert_allclose(first, 4 / limit, atol=5 * 0.5 / np.sqrt(count))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((4, 8, 8)), np.eye(4), np.arange(4)), r"\[N, H, W, 3\]; got \[4"),
        ((np.zeros((4, 8, 8, 1)), np.eye(4), np.arange(4)), r"\[N, H, W, 3\]"),
        ((np.zeros((4, 8, 8, 3)), np.arange(4), np.arange(4)), r"labels must be \[4, K\]"),
        ((np.zeros((4, 8, 8, 3)), np.eye(3), np.arange(4)), r"labels .* got \[3, 3\]"),
        ((np.zeros((4, 8, 8, 3)), np.eye(4), np.arange(3)), r"example_index must be \[4\]"),
        ((np.zeros((3, 8, 8, 3)), np.eye(3), np.arange(3)), "even batch size"),
    ],
)
def test_shapes_that_do_not_fit(batch, message):
    with pytest.raises(nfnets.UserError, match=message):
        augment(jax.random.key(0), *batch, AugmentOptions())
