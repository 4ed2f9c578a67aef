"""The digits dataset that comes with scikit-learn: no download, trains in a minute."""

import numpy as np

from nfnets.data.records import ArraySource, Dataset

_TEST_RECORDS = 360
_SPLIT_SEED = 0  # fixed: accuracies of different runs are comparable


def open_digits() -> Dataset:
    """Opens 1,797 handwritten digits of 8x8 pixels, 10 classes: 1,437 to train on, 360 not.

    The split is fixed and has the same share of every class on both sides.
    """
    # Here, because worker processes import this module and have no use for scikit-learn.
    from sklearn import datasets, model_selection

    bunch = datasets.load_digits()
    gray = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    pixels = np.repeat(gray[..., None], 3, axis=-1)
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
