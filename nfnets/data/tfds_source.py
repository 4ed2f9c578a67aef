"""Datasets prepared by TensorFlow Datasets, read without TensorFlow.

`tensorflow_datasets` reads array_record files at random places and works without
TensorFlow; only preparing a dataset (`nfnets.data.prepare`) needs it. The files alone
decide what is read: the code that once made the dataset is not imported.
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

from nfnets.data.class_names import readable_names
from nfnets.data.records import (
    Dataset,
    EmptySource,
    Record,
    UnreadableRecordError,
    named_error,
    reason_of,
)
from nfnets.data.retries import read_record
from nfnets.errors import UserError

_READABLE_FORMAT = "array_record"
_FEATURES = ("image", "label")
# What array_record and protobuf raise for a damaged file.
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, message.Error)


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """Records of one split of a prepared dataset.

    Attributes:
        examples: TFDS's random-access source; its images are the bytes of their files.
        name: of the dataset and the split.
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
                raise named_error(failure, name) from error
            raise UnreadableRecordError(name, reason_of(error)) from error
        if "file_name" in example:
            name += f" ({_text(example['file_name'])})"
        image = example["image"]
        if image is None or example["label"] is None:  # of a file that was cut short
            raise UnreadableRecordError(name, "the record is empty")
        if not isinstance(image, bytes):
            image = np.asarray(image)
        return Record(image, int(example["label"]), name)

    def _reopen(self, files: Any) -> None:
        """Forgets open files: array_record fails forever with one that failed once.

        Args:
            files: what was read from. Another thread may have replaced it already.
        """
        if self.examples.data_source is files:
            # Its copies open their files anew. Other threads may still use the old ones.
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
        dataset: `NAME`, `NAME/CONFIG`, either with `:VERSION`. Without a version, the
            newest prepared one.
        data_dir: where TFDS keeps its datasets; None: its default.
        train_split: any TFDS split, as `train[:99%]`.
        eval_split: likewise.
        with_train: whether the training half is needed.

    Raises:
        UserError: it is not prepared, not for classification, or has no such split.
    """
    folder = find_prepared(dataset, data_dir)
    if folder is None:
        raise UserError(
            f"tfds:{dataset} is not prepared in {default_data_dir(data_dir)}; "
            f"prepare it with: {prepare_command(dataset, data_dir)}"
        )
    builder = tfds.builder_from_directory(folder)
    if not has_readable_files(builder):
        raise UserError(
            f"{folder} has {builder.info.file_format.value} files, which cannot be read at "
            f"random places; convert them with: {prepare_command(dataset, data_dir)}"
        )
    missing = [key for key in _FEATURES if key not in builder.info.features]
    if missing:
        raise UserError(
            f"tfds:{dataset} has no feature `{missing[0]}`, only "
            f"{', '.join(builder.info.features)}; choose a classification dataset"
        )
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
    """Returns the folder of a prepared dataset, DIR/NAME[/CONFIG]/VERSION; None if none.

    Args:
        dataset: as in `open_tfds`.
        data_dir: likewise.

    Raises:
        UserError: the dataset has configurations, and `dataset` does not choose one.
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
    """Returns where TFDS keeps its datasets; None: where it does by itself."""
    return epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def has_readable_files(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether a prepared dataset can be read at random places."""
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    return _READABLE_FORMAT in formats


def prepare_command(dataset: str, data_dir: str | None) -> str:
    """Returns the command line that prepares a dataset."""
    command = f"python -m nfnets.data.prepare {shlex.quote(dataset)}"
    return command if data_dir is None else f"{command} --data_dir={shlex.quote(data_dir)}"


def _open_split(
    builder: tfds.core.DatasetBuilder, dataset: str, split: str, field: str
) -> TfdsSource:
    """Opens one split, `field` being the config field that names it."""
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
    with contextlib.suppress(UnreadableRecordError):  # which is for the pipeline to count
        if read_record(source, 0).label < 0:
            raise UserError(f"{field}={split!r} of tfds:{dataset} has no labels; change it")
    return source


def _versions(folder: epath.Path) -> list[str]:
    """Prepared versions in a folder, oldest first."""
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
    """The failed system call behind an error of array_record; None if there is none.

    array_record raises RuntimeErrors, such as "pread() failed: Input/output error; reading
    /data/..." or, for a damaged file, "Corrupted Riegeli/records file: ...".
    """
    if isinstance(error, OSError):
        return error
    call = re.match(r"\w+\(\) failed: ([^;]+)", str(error))
    if not isinstance(error, RuntimeError) or call is None:
        return None
    codes = {os.strerror(code): code for code in errno.errorcode}
    return OSError(codes.get(call[1], errno.EIO), call[1])
