"""Conversion of TFDS datasets from TFRecord to array_record files, without TensorFlow."""

from collections.abc import Iterator
import json
import pathlib
import struct

from array_record.python import array_record_module
import tensorflow_datasets as tfds

from nfnets.errors import UserError
from nfnets.files import write_atomically, write_text_atomically

_HEADER = struct.Struct("<Q4x")  # length of the record, checksum of the length
_CHECKSUM_BYTES = 4  # of the record, after it


def convert_tfrecords(builder: tfds.core.DatasetBuilder) -> None:
    """Writes an array_record file next to every TFRecord file of a dataset.

    Afterwards TFDS can read either format. The conversion needs as much free space as the
    dataset and can be resumed. Checksums are not verified.

    Args:
      builder: a prepared dataset in TFRecord files.

    Raises:
      UserError: a file is damaged or missing.
    """
    for split in builder.info.splits.values():
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
            _convert_file(pathlib.Path(path), length)
    # Written last, so that an interrupted conversion is not taken for a complete one.
    description = pathlib.Path(builder.data_dir, "dataset_info.json")
    info = json.loads(description.read_text(encoding="utf-8"))
    info.setdefault("alternativeFileFormats", []).append("array_record")
    write_text_atomically(description, json.dumps(info, indent=2))


def read_tfrecords(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    Raises:
      UserError: the file is missing or truncated.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; restore it or prepare the dataset again")
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
            record = file.read(length + _CHECKSUM_BYTES)
            if len(record) != length + _CHECKSUM_BYTES:
                raise UserError(f"{path} is truncated; prepare the dataset again")
            yield record[:length]


def _convert_file(path: pathlib.Path, length: int) -> None:
    """Converts a file of `length` records, unless that was done before."""
    target = path.with_name(path.name.replace(".tfrecord", ".array_record"))
    if target.exists():
        return

    def write(temporary: pathlib.Path) -> None:
        # Only groups of one record are fast to read in random order.
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
        count = 0
        for record in read_tfrecords(path):
            writer.write(record)
            count += 1
        writer.close()
        if count != length:
            raise UserError(
                f"{path} has {count} records, not {length}; prepare the dataset again"
            )

    write_atomically(target, write)
