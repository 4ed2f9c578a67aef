"""Random images, to measure speed and try things out without data."""

import dataclasses

import numpy as np

from nfnets.data.records import Dataset, Record

DEFAULT_RECORDS = 10_000
DEFAULT_CLASSES = 1_000
_SIDE = 256  # pixels
_EVAL_SHARE = 10  # a tenth as many records to evaluate on


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Random images with random labels, a pure function of the record's number.

    Attributes:
        num_records: how many.
        num_classes: labels are in [0, num_classes).
        split: part of the records' names, and of what decides their pixels.
    """

    num_records: int
    num_classes: int
    split: str

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng((index, *self.split.encode()))
        # Blocks of one color: cheap to draw, and not mere noise after a resize.
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = np.repeat(np.repeat(blocks, _SIDE // 8, axis=0), _SIDE // 8, axis=1)
        label = int(rng.integers(self.num_classes))
        return Record(image, label, f"synthetic:{self.split}[{index}]")


def open_synthetic(num_records: int, num_classes: int) -> Dataset:
    """Opens made-up data.

    Args:
        num_records: to train on, >= 1; a tenth as many, at least one, to evaluate on.
        num_classes: >= 1.
    """
    return Dataset(
        name=f"synthetic:{num_records}",
        train=SyntheticSource(num_records, num_classes, "train"),
        evaluation=SyntheticSource(
            max(1, num_records // _EVAL_SHARE), num_classes, "validation"
        ),
        class_names=tuple(f"class {label}" for label in range(num_classes)),
        is_fake=True,
    )
