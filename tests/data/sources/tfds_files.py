"""TFDS datasets written by hand, without TensorFlow."""

import struct

from array_record.python import array_record_module
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from tests.data.helpers import encoded, picture

LENGTHS = {"train": [6, 4], "validation": [3], "test": [2]}
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def example(number, with_label=True):
    proto = tf_example_pb2.Example()
    feature = proto.features.feature
    feature["image"].bytes_list.value.append(encoded(picture(seed=number), ".jpg"))
    feature["label"].int64_list.value.append(number % 3 if with_label else -1)
    feature["file_name"].bytes_list.value.append(b"file_%d.JPEG" % number)
    return proto.SerializeToString()


def write_array_records(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write_tfrecords(path, records):
    with path.open("wb") as file:
        for record in records:
            file.write(struct.pack("<Q4x", len(record)) + record + bytes(4))


def write_dataset(
    root, name="tiny", version="1.0.0", file_format="array_record", **features
):
    """Writes root/name/version with the splits of LENGTHS; `test` has no labels."""
    folder = root / name / version
    folder.mkdir(parents=True)
    dataset_name = name.split("/")[0]
    write = write_array_records if file_format == "array_record" else write_tfrecords
    splits, number = [], 0
    for split, lengths in LENGTHS.items():
        for shard, length in enumerate(lengths):
            records = [example(number + i, split != "test") for i in range(length)]
            number += length
            shards = f"{shard:05}-of-{len(lengths):05}"
            write(folder / f"{dataset_name}-{split}.{file_format}-{shards}", records)
        template = tfds.core.ShardedFileTemplate(
            dataset_name=dataset_name,
            data_dir=folder,
            split=split,
            filetype_suffix=file_format,
            template=TEMPLATE,
        )
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=1, filename_template=template
            )
        )
    known = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=["ape", "bee", "cat"]),
        "file_name": tfds.features.Text(),
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict(features or known),
        split_infos=splits,
        filename_template=TEMPLATE,
        check_data=False,  # which would need TensorFlow
    )
    return folder
