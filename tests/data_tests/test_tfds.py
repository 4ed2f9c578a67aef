"""TFDS datasets, made here by hand and read without TensorFlow."""

import pickle
import struct

from array_record.python import array_record_module
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from nfnets import data
from nfnets.data import prepare
from nfnets.errors import UserError
from tests.data_tests.helpers import encoded, picture, run_python

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


def labels(source):
    return [source[i].label for i in range(len(source))]


def test_prepared_dataset_is_read(tmp_path):
    write_dataset(tmp_path)
    dataset = data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    assert dataset.class_names == ("ape", "bee", "cat")
    assert labels(dataset.train) == [i % 3 for i in range(10)]
    assert labels(dataset.evaluation) == [i % 3 for i in range(10, 13)]
    record = dataset.train[7]
    assert record.name == "tfds:tiny:train[7] (file_7.JPEG)"
    assert record.image == encoded(picture(seed=7), ".jpg")
    again = pickle.loads(pickle.dumps(dataset.train))
    assert again[7] == record

    with data.eval_batches(dataset.evaluation, batch_size=2, image_size=16) as batches:
        images = np.concatenate([batch.images[0] for batch in batches])
    expected = data.preprocess_eval(data.decode(record.image), 16, "resize_crop_32")
    assert images.shape == (4, 16, 16, 3) and expected.shape == images.shape[1:]


def test_splits_may_be_parts(tmp_path):
    write_dataset(tmp_path)
    dataset = data.open_dataset(
        "tfds:tiny:1.0.0",
        data_dir=str(tmp_path),
        train_split="train[:80%]",
        eval_split="train[80%:]",
    )
    assert labels(dataset.train) == [i % 3 for i in range(8)]
    assert labels(dataset.evaluation) == [8 % 3, 9 % 3]


def test_evaluation_half_alone(tmp_path):
    write_dataset(tmp_path)
    dataset = data.open_dataset("tfds:tiny", data_dir=str(tmp_path), splits="eval")
    assert len(dataset.train) == 0 and len(dataset.evaluation) == 3


def test_newest_version_is_taken(tmp_path):
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        write_dataset(tmp_path, version=version)
    (tmp_path / "tiny/2.0.0.incomplete").mkdir()
    (tmp_path / "tiny/3.0.0").mkdir()  # nothing in it yet
    assert prepare.prepare("tiny", str(tmp_path)) == str(tmp_path / "tiny/1.10.0")
    assert prepare.prepare("tiny:1.2.0", str(tmp_path)) == str(tmp_path / "tiny/1.2.0")


def test_class_names_file_beside_the_data(tmp_path):
    write_dataset(tmp_path)
    (tmp_path / "tiny/class_names.txt").write_text("ape an ape\n")
    dataset = data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    assert dataset.class_names == ("an ape", "bee", "cat")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "tfds:tiny:2.0.0",
            {},
            r"not prepared in .*: python -m nfnets.data.prepare tiny:2.0.0 --data_dir=/",
        ),
        ("tfds:mnist", {}, r"prepare it with: python -m nfnets.data.prepare mnist --data_"),
        (
            "tfds:tiny",
            {"train_split": "dev"},
            r"data.train_split='dev'.*it has train, vali",
        ),
        (
            "tfds:tiny",
            {"eval_split": "train[:"},
            r"data.eval_split='train\[:' is not a spl",
        ),
        ("tfds:tiny", {"eval_split": "train[:0]"}, r"is not a split of .* or is empty"),
        (
            "tfds:tiny",
            {"eval_split": "test"},
            r"data.eval_split='test' of .* has no labels",
        ),
        ("tfds:configs", {}, r"write one of tfds:configs/big, tfds:configs/small"),
        ("tfds:boxes", {}, r"tfds:boxes has no feature `image`, only label"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, source, options, message):
    write_dataset(tmp_path)
    write_dataset(tmp_path, "configs/big")
    write_dataset(tmp_path, "configs/small")
    write_dataset(tmp_path, "boxes", label=tfds.features.ClassLabel(num_classes=3))
    with pytest.raises(UserError, match=message) as caught:
        data.open_dataset(source, data_dir=str(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_damaged_file_is_a_bad_record(tmp_path):
    folder = write_dataset(tmp_path)
    file = folder / "tiny-train.array_record-00001-of-00002"
    content = bytearray(file.read_bytes())
    content[64:20000] = bytes(20000 - 64)
    file.write_bytes(bytes(content))
    source = data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train
    assert source[5].label == 2
    with pytest.raises(data.UnreadableRecordError, match=r"tfds:tiny:train\[6\]: ."):
        _ = source[6]


def test_tfrecord_files_are_converted_without_tensorflow(tmp_path):
    folder = write_dataset(tmp_path, file_format="tfrecord")
    with pytest.raises(UserError, match=r"has tfrecord files, which .* random") as caught:
        data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    command = str(caught.value).rsplit(": ", 1)[1]
    assert command.startswith("python -m nfnets.data.prepare tiny --data_dir=")
    for _ in range(2):  # the second time there is nothing to do
        result = run_python(*command.split()[1:])
        assert (result.returncode, result.stdout) == (0, f"prepared: {folder}\n")
    dataset = data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    assert labels(dataset.train) == [i % 3 for i in range(10)]
    assert dataset.train[9].image == encoded(picture(seed=9), ".jpg")
    for file in folder.glob("*array_record*"):
        reader = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in reader.writer_options_string()  # fast at random places
    # TFDS still finds the old files, too.
    formats = tfds.builder_from_directory(folder).info.available_file_formats()
    assert {file_format.value for file_format in formats} == {"tfrecord", "array_record"}


@pytest.mark.parametrize(("cut", "message"), [(1, "cut short"), (None, "does not exist")])
def test_damaged_tfrecord_files_are_errors(tmp_path, cut, message):
    folder = write_dataset(tmp_path, file_format="tfrecord")
    file = folder / "tiny-train.tfrecord-00001-of-00002"
    content = file.read_bytes()
    if cut is None:
        file.unlink()
    else:
        file.write_bytes(content[:-cut])
    with pytest.raises(UserError, match=f"tiny-train.tfrecord-00001-of-00002 .*{message}"):
        prepare.prepare("tiny", str(tmp_path))
    # A missing record at the end shows in the number of records only.
    file.write_bytes(content[: -12 - 4 - len(example(9))])
    with pytest.raises(UserError, match="has 3 records, not 4"):
        prepare.prepare("tiny", str(tmp_path))
    with pytest.raises(UserError, match="has tfrecord files"):
        data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    file.write_bytes(content)
    prepare.prepare("tiny", str(tmp_path))
    assert len(data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train) == 10


def test_preparing_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        prepare.main(["mnist", f"--data_dir={tmp_path}"])
    line = str(raised.value)
    assert line.startswith("preparing a dataset needs TensorFlow")
    assert "pip install tensorflow-cpu" in line and "\n" not in line


def test_reading_does_without_tensorflow(tmp_path):
    write_dataset(tmp_path)
    code = (
        "import sys\n"
        "from nfnets import data\n"
        f"dataset = data.open_dataset('tfds:tiny', data_dir={str(tmp_path)!r})\n"
        "crop = data.CropOptions(image_size=16)\n"
        "options = {'seed': 0, 'batch_size': 4, 'crop': crop}\n"
        "with data.train_batches(dataset.train, **options) as batches:\n"
        "    next(batches)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
