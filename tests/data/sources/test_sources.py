"""Digits, synthetic data and unknown names."""

import pickle
import zlib

import numpy as np
import pytest

from nfnets import data
from nfnets.errors import UserError


def test_digits_split_is_fixed():
    dataset = data.open_dataset("digits")
    assert (len(dataset.train), len(dataset.evaluation)) == (1437, 360)
    assert dataset.class_names == tuple("0123456789") and dataset.num_classes == 10
    assert not dataset.is_fake
    checksums = [
        zlib.crc32(np.stack([source[i].image for i in range(len(source))]).tobytes())
        for source in (dataset.train, dataset.evaluation)
    ]
    assert checksums == [671003173, 565769771]


def test_digits_records():
    dataset = data.open_dataset("digits")
    records = [dataset.train[i] for i in range(len(dataset.train))]
    assert records[3].name == "digits:train[3]"
    pixels = np.stack([record.image for record in records])
    assert pixels.shape == (1437, 8, 8, 3) and pixels.dtype == np.uint8
    assert pixels.min() == 0 and pixels.max() == 255
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    assert set(np.unique(pixels)) == {round(level * 255 / 16) for level in range(17)}
    # Both splits have the same class frequencies.
    shares = [
        np.bincount([source[i].label for i in range(len(source))]) / len(source)
        for source in (dataset.train, dataset.evaluation)
    ]
    np.testing.assert_allclose(shares[0], shares[1], atol=2e-3)


def test_synthetic_records_are_a_function_of_their_number():
    dataset = data.open_dataset("synthetic:30", num_classes=7)
    assert (len(dataset.train), len(dataset.evaluation)) == (30, 3)
    assert dataset.is_fake and dataset.num_classes == 7
    first, again = dataset.train[5], dataset.train[5]
    np.testing.assert_array_equal(first.image, again.image)
    assert first.image.dtype == np.uint8 and first.image.shape == (256, 256, 3)
    assert first.label == again.label
    assert len({dataset.train[i].image.tobytes() for i in range(30)}) == 30
    assert {dataset.train[i].label for i in range(30)} == set(range(7))
    assert not np.array_equal(dataset.evaluation[0].image, dataset.train[0].image)


def test_synthetic_has_defaults():
    dataset = data.open_dataset("synthetic")
    assert (len(dataset.train), dataset.num_classes) == (10_000, 1_000)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnist", "unknown data.source='mnist'; choose one of digits, synthetic"),
        ("", "unknown data.source=''"),
        ("digits:3", "unknown data.source='digits:3'"),
        ("folder:", "unknown data.source='folder:'"),
        ("tfds:", "unknown data.source='tfds:'"),
        ("synthetic:many", "expected a number of records after `synthetic:`"),
        ("synthetic:0", "expected a number of records after `synthetic:`"),
        ("synthetic:-1", "expected a number of records after `synthetic:`"),
        ("folder:/no/such/folder", "folder /no/such/folder does not exist"),
    ],
)
def test_invalid_names_are_errors(source, message):
    with pytest.raises(UserError, match=message) as caught:
        data.open_dataset(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["digits", "synthetic:5"])
def test_sources_can_be_pickled(source):
    train = pickle.loads(pickle.dumps(data.open_dataset(source).train))
    assert train[2].label == data.open_dataset(source).train[2].label


def test_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(data.UnreadableRecordError("a.jpg", "is empty")))
    assert str(error) == "a.jpg: is empty"
