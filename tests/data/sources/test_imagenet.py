"""Preparing and reading a miniature ImageNet from archives like the original ones."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nfnets import data
from tests.data.helpers import ROOT, encoded, run_python

CLASSES, IMAGES_PER_CLASS, VALIDATION_IMAGES = 1000, 2, 500
# Preparing needs TensorFlow, which may be installed in a different environment.
PYTHON = os.environ.get("TENSORFLOW_PYTHON", sys.executable)


def package_lines(name):
    """Returns the words of one of TFDS's files about ImageNet."""
    path = pathlib.Path(tfds.__file__).parent / "datasets/imagenet2012" / name
    return path.read_text().split()


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def jpeg(number):
    """Returns a JPEG whose gray level encodes a number."""
    return encoded(np.full((24, 32, 3), 40 + number % 180, np.uint8), ".jpg")


def write_tars(folder):
    """Writes the two archives; that of the training split contains one per class."""
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for label, name in enumerate(package_lines("labels.txt")):
            images = io.BytesIO()
            with tarfile.open(fileobj=images, mode="w") as archive:
                for number in range(IMAGES_PER_CLASS):
                    add(archive, f"{name}_{number}.JPEG", jpeg(label))
            add(train, f"{name}.tar", images.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as validation:
        # In reverse order, since TFDS assigns the labels by sorted name.
        for number in reversed(range(1, VALIDATION_IMAGES + 1)):
            add(validation, f"ILSVRC2012_val_{number:08}.JPEG", jpeg(number))


@pytest.mark.long
def test_imagenet_from_its_archives_to_batches(tmp_path):
    has_tensorflow = "import importlib.util as u; exit(u.find_spec('tensorflow') is None)"
    if subprocess.run([PYTHON, "-c", has_tensorflow], check=False).returncode:
        pytest.skip("needs TensorFlow: set TENSORFLOW_PYTHON to a Python that has it")
    archives, prepared = tmp_path / "archives", tmp_path / "prepared"
    archives.mkdir()
    write_tars(archives)
    command = ["-m", "nfnets", "prepare", "imagenet2012", f"--data_dir={prepared}"]
    result = subprocess.run(
        [PYTHON, *command, f"--manual_dir={archives}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"prepared: {prepared}/imagenet2012/5.1.0\n")

    dataset = data.open_dataset("tfds:imagenet2012", data_dir=str(prepared))
    names = package_lines("labels.txt")
    assert dataset.class_names == tuple(names)
    assert len(dataset.train) == CLASSES * IMAGES_PER_CLASS
    records = [dataset.train[i] for i in range(len(dataset.train))]
    assert all(record.image == jpeg(record.label) for record in records)
    assert np.bincount([record.label for record in records]).tolist() == [2] * CLASSES
    assert all(names[record.label] in record.name for record in records)

    labels = package_lines("validation_labels.txt")
    assert len(dataset.evaluation) == VALIDATION_IMAGES
    seen = set()
    for i in range(VALIDATION_IMAGES):
        record = dataset.evaluation[i]
        number = int(record.name.rsplit("_", 1)[1].removesuffix(".JPEG)"))
        seen.add(number)
        assert names[record.label] == labels[number - 1]
        assert record.image == jpeg(number)
    assert len(seen) == VALIDATION_IMAGES

    code = (
        "import sys\n"
        "from nfnets import data\n"
        f"dataset = data.open_dataset('tfds:imagenet2012', data_dir={str(prepared)!r})\n"
        "batches = data.eval_batches(dataset.evaluation, batch_size=64, image_size=32)\n"
        "print(int(sum(batch.mask.sum() for batch in batches)))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = run_python("-c", code)
    assert (result.returncode, result.stdout) == (0, f"{VALIDATION_IMAGES}\n"), (
        result.stderr
    )

    options = [
        "--config=configs/nfnet_f0.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.dir={prepared}",
        "--config.data.batch_size=8",
        "--config.data.workers=0",
        "--config.data.image_size=96",
        "--config.train.steps=3",
        "--config.eval.image_size=64",
        "--config.eval.batch_size=100",
    ]
    for program in ("train.py", "eval.py"):
        result = run_python(program, *options, timeout=600)
        assert result.returncode == 0, result.stderr
    evaluated = json.loads((tmp_path / "run/eval.json").read_text())
    assert evaluated["examples"] == evaluated["ema"]["examples"] == VALIDATION_IMAGES
    np.testing.assert_allclose(evaluated["loss"], np.log(CLASSES), rtol=0.2)


@pytest.mark.long
def test_missing_archives_are_named(tmp_path):
    if subprocess.run([PYTHON, "-c", "import tensorflow"], check=False).returncode:
        pytest.skip("needs TensorFlow: set TENSORFLOW_PYTHON to a Python that has it")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/other.txt").write_text("")
    folders = [f"--data_dir={tmp_path}", f"--manual_dir={tmp_path}/archives"]
    for dataset, message in (
        ("imagenet2012", "ILSVRC2012_img_val.tar; No such file"),
        ("no_such_dataset", "TFDS has no dataset 'no_such_dataset'"),
    ):
        result = subprocess.run(
            [PYTHON, "-m", "nfnets", "prepare", dataset, *folders],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 2, result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0]
