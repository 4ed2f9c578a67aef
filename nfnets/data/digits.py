"""The digits dataset that comes with scikit-learn: no download, trains in a minute."""

import numpy as np
from sklearn import datasets, model_selection

from nfnets.data.records import Dataset, Record

_TEST_RECORDS = 360
_SPLIT_SEED = 0  # fixed: accuracies of different runs are comparable


class ArraySource:
    """Records from arrays in memory.

    Attributes:
        images: uint8 [n, H, W, 3].
        labels: int32 [n].
        name: a record's name is this and its number.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        self.images = images
        self.labels = labels
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]), f"{self.name}[{index}]")


def open_digits() -> Dataset:
    """Opens 1,797 handwritten digits of 8x8 pixels, 10 classes: 1,437 to train on, 360 not.

    The split is fixed and has the same share of every class on both sides.
    """
    bunch = datasets.load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    train, test = model_selection.train_test_split(
        np.arange(len(pixels)),
        test_size=_TEST_RECORDS,
        random_state=_SPLIT_SEED,
        stratify=bunch.target,
    )
    return Dataset(
        name="digits",
        train=ArraySource(pixels[train], bunch.target[train], "digits:train"),
        evaluation=ArraySource(pixels[test], bunch.target[test], "digits:test"),
        class_names=tuple(str(name) for name in bunch.target_names),
    )
