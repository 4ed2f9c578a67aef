"""Opens a dataset by the name that a config gives it."""

from typing import Literal

from nfnets.data import synthetic
from nfnets.data.digits import open_digits
from nfnets.data.folder import open_folder
from nfnets.data.records import Dataset
from nfnets.errors import UserError

SOURCES = "digits, synthetic[:N], folder:PATH, tfds:NAME[:VERSION]"


def open_dataset(
    source: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    eval_split: str = "validation",
    num_classes: int | None = None,
    index_dir: str | None = None,
    splits: Literal["both", "eval"] = "both",
) -> Dataset:
    """Opens a dataset.

    Args:
        source: `digits`, `synthetic` or `synthetic:N` (N training records), `folder:PATH`,
            `tfds:NAME` or `tfds:NAME:VERSION`.
        data_dir: where TFDS keeps its datasets; None: its default.
        train_split: to train on: of `tfds` a split as `train[:99%]`, of `folder` the name
            of a subfolder; digits and synthetic data have one split only.
        eval_split: to evaluate on, likewise.
        num_classes: of synthetic data; None: 1,000. Ignored elsewhere.
        index_dir: where to keep the index of a folder that cannot be written to.
        splits: `eval` opens the evaluation half only, and `train` stays empty.

    Raises:
        UserError: no such source, or it cannot be opened.
    """
    kind, _, rest = source.partition(":")
    if kind == "digits" and not rest:
        return open_digits()
    if kind == "synthetic":
        if rest and not (rest.isdecimal() and int(rest)):
            raise UserError(
                f"data.source={source!r}: expected a number of records after `synthetic:`"
            )
        return synthetic.open_synthetic(
            int(rest or synthetic.DEFAULT_RECORDS), num_classes or synthetic.DEFAULT_CLASSES
        )
    if kind == "folder" and rest:
        return open_folder(
            rest,
            train_split=train_split,
            eval_split=eval_split,
            index_dir=index_dir,
            with_train=splits == "both",
        )
    if kind == "tfds" and rest:
        # Here, because it takes a second and most runs of the tests do without.
        from nfnets.data.tfds_source import open_tfds

        return open_tfds(
            rest,
            data_dir=data_dir,
            train_split=train_split,
            eval_split=eval_split,
            with_train=splits == "both",
        )
    raise UserError(f"unknown data.source={source!r}; choose one of {SOURCES}")
