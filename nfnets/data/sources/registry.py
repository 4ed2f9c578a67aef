"""Opens datasets by name."""

from collections.abc import Callable
from typing import Literal

from absl import logging

from nfnets.data.sources import synthetic
from nfnets.data.sources.base import Dataset
from nfnets.data.sources.digits import open_digits
from nfnets.data.sources.folder import FolderOptions, open_folder
from nfnets.errors import UserError

SOURCES = "digits, synthetic[:N], folder:PATH, tfds:NAME[:VERSION]"


def open_dataset(
    source: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    eval_split: str = "validation",
    num_classes: int | None = None,
    splits: Literal["both", "eval"] = "both",
    eval_fraction: float = 0.0,
    seed: int = 0,
    log: Callable[[str], None] = logging.warning,
) -> Dataset:
    """Opens a dataset.

    Args:
      source: `digits`, `synthetic` or `synthetic:N` (N training records), `folder:PATH`,
        `tfds:NAME` or `tfds:NAME:VERSION`.
      data_dir: directory of the TFDS datasets; None: the default of TFDS.
      train_split: training split: a TFDS split such as `train[:99%]`, or the name of a
        subfolder. Ignored for digits and synthetic data, whose splits are fixed.
      eval_split: evaluation split, likewise.
      num_classes: number of classes of synthetic data; None: 1,000. Ignored otherwise.
      splits: `eval` leaves `train` of a folder or TFDS dataset empty.
      eval_fraction: of an image folder without an evaluation split: share of the training
        images of each class that is held out for evaluation, in [0, 1).
      seed: determines the images that are held out.
      log: receives lines about files of an image folder that are left out.

    Raises:
      UserError: the source is unknown or cannot be opened.
    """
    kind, _, rest = source.partition(":")
    if eval_fraction and kind != "folder":
        raise UserError(
            f"data.eval_fraction={eval_fraction} is for image folders, not {source}; "
            "set it to 0 (splits of tfds: data.train_split='train[:90%]')"
        )
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
            FolderOptions(
                train_split=train_split,
                eval_split=eval_split,
                eval_fraction=eval_fraction,
                seed=seed,
                with_train=splits == "both",
                log=log,
            ),
        )
    if kind == "tfds" and rest:
        # Imported here because it takes a second.
        from nfnets.data.sources.tfds import open_tfds

        return open_tfds(
            rest,
            data_dir=data_dir,
            train_split=train_split,
            eval_split=eval_split,
            with_train=splits == "both",
        )
    raise UserError(f"unknown data.source={source!r}; choose one of {SOURCES}")
