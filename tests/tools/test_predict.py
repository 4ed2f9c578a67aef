"""Prediction and export, from image files to probabilities."""

import csv
import dataclasses
import importlib.util
import io
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
from typing import ClassVar

import cv2
import jax
import numpy as np
from PIL import Image
import pytest

import nfnets
from nfnets import inference
from nfnets.data.images import decode, preprocess_eval
from nfnets.errors import UserError
from nfnets.models import normalize_images
from nfnets.tools import export, predict
from nfnets.weights import describe_model
from tests.weights.helpers import CLASSES, MICRO, micro_model, micro_params

SIZE = 24
NAMES = tuple(f"name {letter}" for letter in "abcde")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    info = dataclasses.replace(
        describe_model(micro_model(), MICRO), class_names=NAMES, image_size=SIZE
    )
    nfnets.save_weights(path, micro_params(), {}, info)
    return str(path)


@pytest.fixture(scope="module")
def classifier(weights):
    """Compiled once for the batches of this file."""
    loaded = inference.load_classifier(weights)
    compiled = jax.jit(loaded.probabilities)

    class Counting(inference.Classifier):
        shapes: ClassVar = set()

        def compile(self):
            def call(images):
                self.shapes.add(images.shape)
                return compiled(self.params, self.state, images)

            return call

    return Counting(**{f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (folder / "deep").mkdir()
    for name in ("a.jpg", "b.PNG", "deep/c.webp", "d.png", "e.jpeg"):
        pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
        cv2.imwrite(str(folder / name), pixels)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    """Path -> probabilities, of the network as it is trained."""
    model, params = micro_model(), micro_params()
    paths = predict.find_images([str(folder)])
    images = np.stack(
        [
            preprocess_eval(decode(Path(path).read_bytes()), SIZE, "resize_crop_32")
            for path in paths
        ]
    )
    apply = jax.jit(lambda x: model.apply(params, {}, None, normalize_images(x))[0])
    probabilities = jax.nn.softmax(apply(images)["logits"])
    return dict(zip(paths, np.asarray(probabilities), strict=True))


def classify(classifier, paths, **options):
    """Predictions, and (path, reason) of the files that were skipped."""
    skipped = []

    def on_error(*error):
        skipped.append(error)

    found = list(predict.predict(classifier, paths, on_error=on_error, **options))
    return found, skipped


def test_images_of_a_folder_are_found_in_order(folder):
    names = ["a.jpg", "b.PNG", "d.png", "deep/c.webp", "e.jpeg"]
    found = predict.find_images([str(folder), "other.xyz"])
    assert found == [*(str(folder / name) for name in names), "other.xyz"]
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no image files"):
        predict.find_images([str(folder / "empty")])


def test_files_of_a_folder_that_are_left_out_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    data = (folder / "a.jpg").read_bytes()
    (tmp_path / "deep/nameless").write_bytes(data)
    cv2.imwrite(str(tmp_path / "scan.tif"), np.zeros((9, 9, 3), np.uint8))
    lines = []
    found = predict.find_images([str(tmp_path)], lines.append)
    assert {str(tmp_path / "deep/nameless"), str(tmp_path / "scan.tif")} < set(found)
    (line,) = lines
    assert line.startswith(f"{tmp_path}: left out 1 file that is not an image of a known")
    assert line.endswith(": notes.txt")


@pytest.mark.parametrize("apply_exif", [None, True, False])
def test_orientation_is_applied_unless_the_weights_were_trained_without(
    classifier, tmp_path, apply_exif
):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "tagged.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "stored.png")
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "turned.png")
    info = dataclasses.replace(classifier.info, apply_exif=apply_exif)
    paths = [str(tmp_path / f"{name}.png") for name in ("tagged", "stored", "turned")]
    found, _ = classify(dataclasses.replace(classifier, info=info), paths, batch_size=5)
    tagged, stored, turned = (one.probabilities for one in found)
    assert stored != turned
    assert tagged == (stored if apply_exif is False else turned)


def test_images_are_cropped_as_the_weights_say(folder):
    path = folder / "a.jpg"
    got = predict._load(str(path), 20, "squash", 0.8, True)
    want = preprocess_eval(decode(path.read_bytes()), 20, "squash", 0.8)
    np.testing.assert_array_equal(got, want)
    assert np.any(got != predict._load(str(path), 20, "squash", 1.0, True))


def test_predictions_are_the_networks(classifier, expected):
    classifier.shapes.clear()
    found, skipped = classify(classifier, list(expected), top=3, batch_size=2)
    assert skipped == []
    assert [p.path for p in found] == list(expected)
    for prediction, row in zip(found, expected.values(), strict=True):
        order = np.argsort(-row)[:3]
        assert prediction.classes == tuple(order)
        assert prediction.names == tuple(NAMES[index] for index in order)
        np.testing.assert_allclose(prediction.probabilities, row[order], rtol=1e-4)
    # Five images, two at a time: the last batch is padded.
    assert classifier.shapes == {(2, SIZE, SIZE, 3)}
    ((every,), _) = classify(classifier, list(expected)[:1], top=99, batch_size=2)
    assert len(every.classes) == CLASSES
    assert sum(every.probabilities) == pytest.approx(1, abs=1e-5)


def test_bad_files_are_named_and_skipped(classifier, expected, tmp_path):
    bad = [str(tmp_path / name) for name in ("bad.jpg", "missing.jpg", "empty.png")]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "empty.png").write_bytes(b"")
    good = list(expected)
    mixed = [bad[0], good[0], bad[1], bad[2], good[1]]
    found, skipped = classify(classifier, mixed, batch_size=2)
    assert [p.path for p in found] == good[:2]
    for prediction in found:
        assert prediction.classes[0] == np.argmax(expected[prediction.path])
    assert skipped == [
        (bad[0], "not an image that OpenCV can decode, or truncated"),
        (bad[1], "No such file or directory"),
        (bad[2], "the file is empty"),
    ]
    assert classify(classifier, bad, batch_size=2) == ([], skipped)


def test_formats():
    found = [
        predict.Prediction(
            path="a,b.jpg", classes=(3, 1), names=("x y", "z"), probabilities=(0.75, 0.125)
        )
    ]
    written = {}
    for kind, write in predict._WRITERS.items():
        out = io.StringIO()
        write(found, out, 8)
        written[kind] = out.getvalue()
    assert written["table"] == (
        "image     probability  class\n"
        "a,b.jpg        75.00%  x y\n"
        "               12.50%  z\n"
    )
    rows = list(csv.DictReader(io.StringIO(written["csv"])))
    assert rows[1] == {
        "image": "a,b.jpg",
        "rank": "2",
        "class": "1",
        "name": "z",
        "probability": "0.125000",
    }
    assert json.loads(written["json"]) == [
        {
            "image": "a,b.jpg",
            "predictions": [
                {"class": 3, "name": "x y", "probability": 0.75},
                {"class": 1, "name": "z", "probability": 0.125},
            ],
        }
    ]


def test_the_command_line(weights, folder, expected, capsys):
    first = next(iter(expected))
    arguments = [f"--weights={weights}", "--format=json", "--top=1", first]
    assert predict.main(arguments) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["image"] == first
    best = int(np.argmax(expected[first]))
    assert entry["predictions"][0]["class"] == best
    assert entry["predictions"][0]["name"] == NAMES[best]
    notes = str(folder / "notes.txt")
    assert predict.main([*arguments, notes]) == 1
    captured = capsys.readouterr()
    assert [entry["image"] for entry in json.loads(captured.out)] == [first]
    assert captured.err.startswith(f"skipped {notes}: not an image")
    assert predict.main([*arguments[:2], notes]) == 2
    assert json.loads(capsys.readouterr().out) == []
    for wrong, message in (
        (["--top=0"], "must be at least 1, not 0"),
        (["--format=xml"], "invalid choice: 'xml'"),
        (["--weights=nowhere"], "no weights file nowhere"),
    ):
        with pytest.raises(UserError, match=message):
            predict.main([*arguments, *wrong])


@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_file_names_that_are_not_utf_8(weights, folder, tmp_path, capsys, kind):
    for name in (b"caf\xe9.jpg", b"bad\xe9.jpg"):
        path = os.path.join(os.fsencode(tmp_path), name)
        data = (folder / "a.jpg").read_bytes() if name[:1] == b"c" else b"no image"
        Path(os.fsdecode(path)).write_bytes(data)
    arguments = [f"--weights={weights}", f"--format={kind}", str(tmp_path)]
    assert predict.main(arguments) == 1
    captured = capsys.readouterr()
    assert "skipped " in captured.err
    assert "caf\\udce9.jpg" in captured.out
    if kind == "json":
        (entry,) = json.loads(captured.out)
        assert os.fsencode(entry["image"]).endswith(b"caf\xe9.jpg")


def test_mistakes_are_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "nfnets", "predict", "a.jpg"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: give either --weights=FILE or --workdir=DIR\n"


def test_metadata_that_weights_lack(tmp_path):
    path = tmp_path / "w.safetensors"
    info = nfnets.WeightsInfo(
        model="nfnet_tiny", num_classes=CLASSES, overrides=MICRO, preprocessing="other"
    )
    nfnets.save_weights(path, micro_params(), {}, info)
    classifier = inference.load_classifier(str(path))
    assert classifier.info.image_size == 32
    assert classifier.class_name(3) == "class 3"
    with pytest.raises(UserError, match="need the unknown preprocessing 'other'"):
        classify(classifier, ["a.jpg"])


RUN_EXPORT = """
import json, pathlib, sys
import jax, numpy as np
folder = pathlib.Path(sys.argv[1])
exported = jax.export.deserialize((folder / "model.stablehlo").read_bytes())
images = np.load(sys.argv[2])
some = [exported.call(images[:count]) for count in (1, len(images))]
assert "haiku" not in sys.modules and "nfnets" not in sys.modules
np.save(sys.argv[3], some[1])
print(json.dumps(np.abs(some[0] - some[1][:1]).max().item()))
"""


def test_an_export_runs_without_haiku(weights, classifier, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    out = tmp_path / "exported"
    export.main([f"--weights={weights}", f"--out={out}", "--platforms=cpu,cuda,tpu"])
    assert "[N, 24, 24, 3] to probabilities [N, 5]" in capsys.readouterr().out
    info = json.loads((out / "model.json").read_text())
    assert info["class_names"] == list(NAMES)
    assert info["image_size"] == SIZE
    assert info["preprocessing"] == "resize_crop_32"
    assert info["input"] == ["N", SIZE, SIZE, 3]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EXPORT, out, "images.npy", "result.npy"],
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert json.loads(done.stdout) < 1e-6
    want = classifier.compile()(images)
    np.testing.assert_allclose(np.load(tmp_path / "result.npy"), want, rtol=1e-4)
    with pytest.raises(UserError, match="unknown 'gpu'"):
        export.main([f"--weights={weights}", f"--out={out}", "--platforms=gpu"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        export.main([f"--weights={weights}", f"--out={tmp_path}/file"])


def test_an_export_has_the_form_of_its_platform(classifier):
    pytest.importorskip("flatbuffers")

    def convolutions(*platforms):
        exported = export.export_function(classifier, platforms)
        assert exported.platforms == platforms
        return exported.mlir_module().count("stablehlo.convolution")

    # On CPU, 1x1 convolutions are products of matrices.
    # For both, JAX lowers each convolution twice.
    assert convolutions("cpu", "tpu") >= convolutions("tpu") > convolutions("cpu")


def test_an_export_of_a_newer_jax(classifier, tmp_path):
    pytest.importorskip("flatbuffers")
    out = tmp_path / "out"
    export.write_export(classifier, str(out), ("cpu",))
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    got = inference.load_export(str(out))(images)
    np.testing.assert_allclose(got, classifier.compile()(images), rtol=1e-4)
    info = json.loads((out / "model.json").read_text())
    assert info["jax_version"] == jax.__version__
    info |= {"jax_version": "9.0.0", "calling_convention_version": 99}
    (out / "model.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="was exported with JAX 9.0.0; JAX .* is too old"):
        inference.load_export(str(out))
    with pytest.raises(UserError, match="not a folder of nfnets export"):
        inference.load_export(str(tmp_path))


def _normalized(classifier, images):
    info = classifier.info
    return (images - np.float32(info.mean_rgb)) / np.float32(info.stddev_rgb)


def test_an_export_for_normalized_images(weights, classifier, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    export.main([f"--weights={weights}", f"--out={tmp_path}/e", "--input=float32"])
    got = inference.load_export(f"{tmp_path}/e")(_normalized(classifier, images))
    np.testing.assert_allclose(got, classifier.compile()(images), rtol=1e-4)
    assert json.loads((tmp_path / "e/model.json").read_text())["input_dtype"] == "float32"


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx"), reason="jax2onnx is installed")
def test_onnx_without_its_packages_is_one_line(weights, tmp_path):
    out = tmp_path / "exported"
    with pytest.raises(UserError, match=r"needs jax2onnx: pip install 'nfnets\[onnx\]'"):
        export.main([f"--weights={weights}", f"--out={out}", "--format=onnx"])
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_onnx_runs_in_its_own_runtime(weights, classifier, tmp_path, capsys, dtype):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    command = [f"--weights={weights}", f"--out={tmp_path}", "--format=onnx"]
    export.main([*command, f"--input={dtype}"])
    assert "for any runtime of ONNX" in capsys.readouterr().out
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for count in (1, 3):
        images = np.random.default_rng(count).integers(
            0, 256, (count, SIZE, SIZE, 3), np.uint8
        )
        given = images if dtype == "uint8" else _normalized(classifier, images)
        (got,) = session.run(["probabilities"], {"images": given})
        np.testing.assert_allclose(got, classifier.compile()(images), rtol=1e-4)


@pytest.mark.long
def test_an_onnx_file_that_differs_is_not_written(
    weights, classifier, tmp_path, monkeypatch
):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("jax2onnx")

    class Session:
        def __init__(self, *arguments, **options):
            pass

        def run(self, names, inputs):
            return [np.full((len(inputs["images"]), CLASSES), 1 / CLASSES, np.float32)]

    monkeypatch.setattr(runtime, "InferenceSession", Session)
    with pytest.raises(UserError, match="differ from JAX's by a factor of"):
        export.write_onnx(classifier, f"{tmp_path}/exported")
    assert not (tmp_path / "exported").exists()
