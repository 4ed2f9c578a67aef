"""TFDS datasets, written by hand and read without TensorFlow."""

import pickle

from array_record.python import array_record_module
import numpy as np
import pytest
import tensorflow_datasets as tfds

from nfnets import __main__, data
from nfnets.errors import UserError
from nfnets.tools import prepare
from tests.data.helpers import encoded, picture, run_python
from tests.data.sources.tfds_files import example, write_dataset


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
            "tiny:2.0.0",
            {},
            r"not prepared in .*: python -m nfnets prepare tiny:2.0.0 --data_",
        ),
        ("mnist", {}, r"prepare it with: python -m nfnets prepare mnist --data_dir=/"),
        (
            "imagenet2012",
            {},
            r"not prepared in .*set data.source=folder:PATH; or .*: python -m nfnets "
            r"prepare imagenet2012 --data_dir=.* --manual_dir=.*; or .*source=synthetic$",
        ),
        ("tiny", {"train_split": "dev"}, r"data.train_split='dev'.*it has train, vali"),
        ("tiny", {"eval_split": "train[:"}, r"data.eval_split='train\[:' is not a split"),
        ("tiny", {"eval_split": "train[:0]"}, r"is not a split of .* or is empty"),
        ("tiny", {"eval_split": "test"}, r"data.eval_split='test' of .* has no labels"),
        ("configs", {}, r"write one of tfds:configs/big, tfds:configs/small"),
        ("boxes", {}, r"tfds:boxes has no feature `image`, only label; choose a classif"),
        (
            "integers",
            {},
            r"`label` of tfds:integers must be of type ClassLabel, not Scalar; ",
        ),
        ("arrays", {}, r"`image` of tfds:arrays must be of type Image, not Tensor; choose"),
    ],
)
def test_unusable_dataset_is_an_error(tmp_path, source, options, message):
    image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=3)
    write_dataset(tmp_path)
    write_dataset(tmp_path, "configs/big")
    write_dataset(tmp_path, "configs/small")
    write_dataset(tmp_path, "boxes", label=label)
    write_dataset(tmp_path, "integers", image=image, label=tfds.features.Scalar(np.int64))
    tensor = tfds.features.Tensor(shape=(2, 2, 3), dtype=np.uint8)
    write_dataset(tmp_path, "arrays", image=tensor, label=label)
    with pytest.raises(UserError, match=message) as caught:
        data.open_dataset(f"tfds:{source}", data_dir=str(tmp_path), **options)
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


def test_tfrecord_files_are_converted(tmp_path, capsys):
    folder = write_dataset(tmp_path, file_format="tfrecord")
    with pytest.raises(UserError, match=r"has tfrecord files, which .* random") as caught:
        data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    command = str(caught.value).rsplit(": ", 1)[1].split()
    assert command[:3] == ["python", "-m", "nfnets"]
    for _ in range(2):  # there is nothing left to do the second time
        assert not __main__.main(command[3:])
        assert capsys.readouterr().out == f"prepared: {folder}\n"
    assert not list(folder.glob("*.tmp"))
    dataset = data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    assert labels(dataset.train) == [i % 3 for i in range(10)]
    assert dataset.train[9].image == encoded(picture(seed=9), ".jpg")
    for file in folder.glob("*array_record*"):
        reader = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in reader.writer_options_string()  # fast random access
    # TFDS still finds the old files.
    formats = tfds.builder_from_directory(folder).info.available_file_formats()
    assert {file_format.value for file_format in formats} == {"tfrecord", "array_record"}


@pytest.mark.parametrize(("cut", "message"), [(1, "truncated"), (None, "does not exist")])
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
    # Only the number of records reveals that the last one is missing.
    file.write_bytes(content[: -12 - 4 - len(example(9))])
    with pytest.raises(UserError, match="has 3 records, not 4"):
        prepare.prepare("tiny", str(tmp_path))
    with pytest.raises(UserError, match="has tfrecord files"):
        data.open_dataset("tfds:tiny", data_dir=str(tmp_path))
    file.write_bytes(content)
    converted = folder / "tiny-train.array_record-00000-of-00002"
    before = converted.stat()
    prepare.prepare("tiny", str(tmp_path))
    assert converted.stat() == before  # the conversion was resumed
    assert len(data.open_dataset("tfds:tiny", data_dir=str(tmp_path)).train) == 10


def test_preparing_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        prepare.main(["mnist", f"--data_dir={tmp_path}"])
    line = str(raised.value)
    assert line.startswith("preparing a dataset needs TensorFlow")
    assert "pip install tensorflow-cpu" in line and "\n" not in line


def test_reading_and_converting_do_not_import_tensorflow(tmp_path):
    write_dataset(tmp_path, file_format="tfrecord")
    code = (
        "import sys\n"
        "from nfnets import __main__, data\n"
        f"folder = {str(tmp_path)!r}\n"
        "__main__.main(['prepare', 'tiny', f'--data_dir={folder}'])\n"
        "dataset = data.open_dataset('tfds:tiny', data_dir=folder)\n"
        "crop = data.CropOptions(image_size=16)\n"
        "options = {'seed': 0, 'batch_size': 4, 'crop': crop}\n"
        "with data.train_batches(dataset.train, **options) as batches:\n"
        "    next(batches)\n"
        "data.open_dataset('digits')\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
