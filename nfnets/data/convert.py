"""Converts a TFDS dataset of TFRecord files to array_record, without TensorFlow."""

from collections.abc import Iterator
import json
import struct

from array_record.python import array_record_module
from etils import epath
import tensorflow_datasets as tfds

from nfnets.errors import UserError

_HEADER = struct.Struct("<Q4x")  # a record's length and its checksum
_CHECKSUM_BYTES = 4  # of the record, after it


def convert_tfrecords(builder: tfds.core.DatasetBuilder) -> None:
    """Writes an array_record file beside every TFRecord file of a dataset.

    The dataset's description then names both formats, and TFDS can read either. Needs as
    much free space again as the dataset takes. Checksums are not verified.

    Args:
        builder: of a prepared dataset in TFRecord files.

    Raises:
        UserError: a file is damaged or missing.
    """
    folder = epath.Path(builder.data_dir)
    for split in builder.info.splits.values():
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
            path = epath.Path(path)
            _convert_file(path, path.parent / _new_name(path.name), length)
    # Last: a conversion that was cut short must not look like a finished one.
    description = folder / "dataset_info.json"
    info = json.loads(description.read_text())
    info.setdefault("alternativeFileFormats", []).append("array_record")
    description.write_text(json.dumps(info, indent=2))


def read_tfrecords(path: epath.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    Raises:
        UserError: if it ends within a record, or is not there.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; restore it or prepare the dataset anew")
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
            record = file.read(length + _CHECKSUM_BYTES)
            if len(record) != length + _CHECKSUM_BYTES:
                raise UserError(f"{path} is cut short; prepare the dataset anew")
            yield record[:length]


def _convert_file(path: epath.Path, target: epath.Path, length: int) -> None:
    """Converts one file of `length` records; skips it if that has been done before."""
    if target.exists():
        return
    temporary = target.parent / f"incomplete.{target.name}"
    # Groups of one: the only size that is fast to read at random places.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
    count = 0
    for record in read_tfrecords(path):
        writer.write(record)
        count += 1
    writer.close()
    if count != length:
        temporary.unlink()
        raise UserError(
            f"{path} has {count} records, not {length}; prepare the dataset anew"
        )
    temporary.rename(target)


def _new_name(name: str) -> str:
    """`imagenet-train.tfrecord-00000-of-01024` with the other format's name in it."""
    return name.replace(".tfrecord", ".array_record")
