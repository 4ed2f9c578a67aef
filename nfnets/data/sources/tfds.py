"""Datasets prepared by TensorFlow Datasets, read without TensorFlow.

Only preparing a dataset (`python -m nfnets prepare`) needs TensorFlow. The dataset is
described by its files; the code that prepared it is not imported.
"""

import contextlib
import copy
import dataclasses
import errno
import os
import re
import shlex
from typing import Any

from etils import epath
from google.protobuf import message
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.data_sources import base

from nfnets.data.sources.base import (
    Dataset,
    EmptySource,
    Record,
    UnreadableRecordError,
    first_line,
    wrap_os_error,
)
from nfnets.data.sources.class_names import readable_names
from nfnets.data.sources.retries import RetryingSource
from nfnets.errors import UserError

_READABLE_FORMAT = "array_record"
_FEATURES = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
# Raised by array_record and protobuf for damaged files.
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, message.Error)


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """Records of one split of a prepared dataset.

    Attributes:
      examples: random-access source of TFDS, with undecoded images.
      name: name of the dataset and the split.
    """

    examples: base.BaseDataSource
    name: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Record:
        name = f"{self.name}[{index}]"
        files = self.examples.data_source
        try:
            example = self.examples[index]
        except _DAMAGED as error:
            self._reopen(files)
            failure = _as_os_error(error)
            if failure is not None:
                raise wrap_os_error(failure, name) from error
            raise UnreadableRecordError(name, first_line(error)) from error
        if "file_name" in example:
            name += f" ({_text(example['file_name'])})"
        image = example["image"]
        if image is None or example["label"] is None:  # in a truncated file
            raise UnreadableRecordError(name, "the record is empty")
        if not isinstance(image, bytes):
            image = np.asarray(image)
        return Record(image, int(example["label"]), name)

    def _reopen(self, files: Any) -> None:
        """Replaces open files, because array_record keeps failing after one failed read.

        Args:
          files: the source that failed. Another thread may have replaced it already.
        """
        if self.examples.data_source is files:
            # A copy opens its own files; other threads may still use the old ones.
            self.examples.data_source = copy.copy(files)


def open_tfds(
    dataset: str,
    *,
    data_dir: str | None,
    train_split: str,
    eval_split: str,
    with_train: bool = True,
) -> Dataset:
    """Opens a dataset that TFDS has prepared as array_record files.

    Args:
      dataset: `NAME` or `NAME/CONFIG`, optionally followed by `:VERSION`; without it, the
        newest prepared version.
      data_dir: directory of the TFDS datasets; None: the default of TFDS.
      train_split: any TFDS split, e.g. `train[:99%]`.
      eval_split: likewise.
      with_train: whether to open the training split.

    Raises:
      UserError: the dataset is not prepared, is not a classification dataset, or has no
        such split.
    """
    folder = find_prepared(dataset, data_dir)
    if folder is None:
        raise UserError(_not_prepared(dataset, data_dir))
    builder = tfds.builder_from_directory(folder)
    if not has_readable_files(builder):
        raise UserError(
            f"{folder} has {builder.info.file_format.value} files, which do not support "
            f"random access; convert them with: {prepare_command(dataset, data_dir)}"
        )
    _check_features(builder, dataset)
    train: TfdsSource | EmptySource = EmptySource()
    if with_train:
        train = _open_split(builder, dataset, train_split, "data.train_split")
    return Dataset(
        name=f"tfds:{dataset}",
        train=train,
        evaluation=_open_split(builder, dataset, eval_split, "data.eval_split"),
        class_names=readable_names(
            tuple(builder.info.features["label"].names), folder, folder.parent
        ),
    )


def find_prepared(dataset: str, data_dir: str | None) -> epath.Path | None:
    """Returns the folder DIR/NAME[/CONFIG]/VERSION of a dataset; None if not prepared.

    Args:
      dataset: as in `open_tfds`.
      data_dir: as in `open_tfds`.

    Raises:
      UserError: the dataset has configurations and `dataset` does not name one.
    """
    name, _, version = dataset.partition(":")
    folder = default_data_dir(data_dir) / name
    versions = _versions(folder)
    if version in versions or (versions and not version):
        return folder / (version or versions[-1])
    configs = [path.name for path in _subfolders(folder) if _versions(path)]
    if configs:
        raise UserError(
            f"tfds:{dataset} has configurations; write one of "
            f"{', '.join(f'tfds:{name}/{config}' for config in configs)}"
        )
    return None


def default_data_dir(data_dir: str | None) -> epath.Path:
    """Returns the directory of the TFDS datasets."""
    return epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def has_readable_files(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether the files of a prepared dataset support random access."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    return _READABLE_FORMAT in formats


def prepare_command(dataset: str, data_dir: str | None) -> str:
    """Returns the command line that prepares a dataset."""
    command = f"python -m nfnets prepare {shlex.quote(dataset)}"
    return command if data_dir is None else f"{command} --data_dir={shlex.quote(data_dir)}"


def _not_prepared(dataset: str, data_dir: str | None) -> str:
    """Returns the message for a dataset that is not prepared."""
    message = f"tfds:{dataset} is not prepared in {default_data_dir(data_dir)}; "
    command = prepare_command(dataset, data_dir)
    if not re.match(r"imagenet2012(:|$)", dataset):
        return f"{message}prepare it with: {command}"
    return (
        f"{message}(1) if its archives are extracted to PATH/train/CLASS and "
        f"PATH/val/CLASS, set data.source=folder:PATH; or (2) prepare it from the archives "
        f"with: {command} --manual_dir=FOLDER_WITH_THE_TARS; or (3) for a trial without "
        "data, set data.source=synthetic"
    )


def _check_features(builder: tfds.core.DatasetBuilder, dataset: str) -> None:
    """Raises a UserError if a dataset is not for image classification."""
    features = builder.info.features
    for name, kind in _FEATURES.items():
        if name not in features:
            raise UserError(
                f"tfds:{dataset} has no feature `{name}`, only {', '.join(features)}; "
                "choose a classification dataset"
            )
        if not isinstance(features[name], kind):
            raise UserError(
                f"feature `{name}` of tfds:{dataset} must be of type {kind.__name__}, not "
                f"{type(features[name]).__name__}; choose a classification dataset"
            )


def _open_split(
    builder: tfds.core.DatasetBuilder, dataset: str, split: str, field: str
) -> TfdsSource:
    """Opens a split; messages name the config field `field`."""
    try:
        examples = builder.as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        source = TfdsSource(examples, f"tfds:{dataset}:{split}")
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"{field}={split!r} is not a split of tfds:{dataset}, or is empty; it has "
            f"{', '.join(builder.info.splits)}"
        ) from error
    with contextlib.suppress(UnreadableRecordError):  # counted by the pipeline
        if RetryingSource(source)[0].label < 0:
            raise UserError(f"{field}={split!r} of tfds:{dataset} has no labels; change it")
    return source


def _versions(folder: epath.Path) -> list[str]:
    """Returns the prepared versions in a folder, oldest first."""
    found = [
        path.name
        for path in _subfolders(folder)
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "features.json").exists()
    ]
    return sorted(found, key=lambda version: tuple(map(int, version.split("."))))


def _subfolders(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _as_os_error(error: Exception) -> OSError | None:
    """Returns the OSError behind an error of array_record; None for other errors.

    array_record raises a RuntimeError such as "pread() failed: Input/output error; reading
    /data/..." or, for a damaged file, "Corrupted Riegeli/records file: ...".
    """
    if isinstance(error, OSError):
        return error
    call = re.match(r"\w+\(\) failed: ([^;]+)", str(error))
    if not isinstance(error, RuntimeError) or call is None:
        return None
    codes = {os.strerror(code): code for code in errno.errorcode}
    return OSError(codes.get(call[1], errno.EIO), call[1])
