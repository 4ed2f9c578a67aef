"""Random images, for benchmarks and trials without data."""

import dataclasses

import numpy as np

from nfnets.data.sources.base import Dataset, Record

DEFAULT_RECORDS = 10_000
DEFAULT_CLASSES = 1_000
_SIZE = 256  # height and width, pixels
_TRAIN_PER_EVAL = 10  # training records per evaluation record


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Random images with random labels, a pure function of split and index.

    Attributes:
      num_records: number of records.
      num_classes: labels are in [0, num_classes).
      split: name of the split; part of the records' names and of the random seed.
    """

    num_records: int
    num_classes: int
    split: str

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((index, *self.split.encode()))
        # Blocks of one color are cheap to draw and do not average out when resized.
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = np.repeat(np.repeat(blocks, _SIZE // 8, axis=0), _SIZE // 8, axis=1)
        label = int(rng.integers(self.num_classes))
        return Record(image, label, f"synthetic:{self.split}[{index}]")


def open_synthetic(num_records: int, num_classes: int) -> Dataset:
    """Opens synthetic data.

    Args:
      num_records: training records, >= 1. There is one evaluation record for every ten of
        them, and at least one.
      num_classes: number of classes, >= 1.
    """
    return Dataset(
        name=f"synthetic:{num_records}",
        train=SyntheticSource(num_records, num_classes, "train"),
        evaluation=SyntheticSource(
            max(1, num_records // _TRAIN_PER_EVAL), num_classes, "validation"
        ),
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        is_fake=True,
    )
