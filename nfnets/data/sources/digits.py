"""The digits dataset of scikit-learn, which needs no download."""

import numpy as np

from nfnets.data.sources.base import ArraySource, Dataset

_TEST_RECORDS = 360
_SPLIT_SEED = 0  # fixed, so that accuracies of different runs are comparable


def open_digits() -> Dataset:
    """Opens 1,797 handwritten digits of 8x8 pixels in 10 classes.

    The split into 1,437 training and 360 evaluation records is fixed and stratified.
    """
    # Imported here to keep scikit-learn out of the worker processes.
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
