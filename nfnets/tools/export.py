"""Exports a classifier as StableHLO or ONNX, to be run without this project and Haiku.

    nfnets export --weights=f0.safetensors --out=exported

writes `model.stablehlo`, a function from uint8 images [N, S, S, 3] with any N to
probabilities [N, classes] that includes weights and normalization, and `model.json` with
image size, preprocessing and class names. To run it, with JAX alone:

    exported = jax.export.deserialize(pathlib.Path("exported/model.stablehlo").read_bytes())
    probabilities = exported.call(images)

`nfnets.inference.load_export` does that, and explains why an older JAX cannot. Exported for
`cpu` alone, the network has the form that is fast there (see `nfnets.cpu`); otherwise that
of accelerators, which runs on a CPU, too, but slower.

    nfnets export --weights=f0.safetensors --out=exported --format=onnx

writes `model.onnx` instead, and compares what onnxruntime makes of it with this project.
With `--input=float32`, both formats take images that are normalized already.
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import tempfile
from typing import Any

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from nfnets import cli
from nfnets.errors import UserError
from nfnets.files import local_path, write_atomically, write_text_atomically
from nfnets.inference import Classifier, load_classifier
from nfnets.platform import compile_for

MODEL_FILE = "model.stablehlo"
ONNX_FILE = "model.onnx"
INFO_FILE = "model.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
INPUTS = ("uint8", "float32")

# Largest difference of logarithms of probabilities between onnxruntime and JAX.
_TOLERANCE = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the folder that the command line names."""
    parser = cli.Parser("export", "Export a classifier as StableHLO or ONNX.")
    cli.add_weights_option(parser, required=True)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--format", choices=("stablehlo", "onnx"), default="stablehlo")
    parser.add_argument(
        "--input",
        choices=INPUTS,
        default="uint8",
        help="uint8: images as decoded; float32: normalized ones",
    )
    parser.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        help=f"of StableHLO, some of {','.join(PLATFORMS)}",
    )
    options = parser.parse_args(arguments)
    platforms = options.platforms.split(",")
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown:
        known = ", ".join(PLATFORMS)
        raise UserError(f"--platforms: unknown {unknown[0]!r}; known: {known}")
    classifier = load_classifier(options.weights)
    info = classifier.info
    if options.format == "onnx":
        name, target = ONNX_FILE, "any runtime of ONNX"
        size = write_onnx(classifier, options.out, options.input)
    else:
        name, target = MODEL_FILE, ", ".join(platforms)
        size = write_export(classifier, options.out, platforms, options.input)
    print(
        f"{options.out}/{name}: {info.model}, {size / 1e6:.1f} MB, {options.input} images "
        f"[N, {info.image_size}, {info.image_size}, 3] to probabilities "
        f"[N, {info.num_classes}], for {target}"
    )


def write_export(
    classifier: Classifier,
    folder: str,
    platforms: Sequence[str] = ("cpu",),
    dtype: str = "uint8",
) -> int:
    """Writes a classifier as StableHLO.

    Args:
      classifier: from `nfnets.inference.load_classifier`.
      folder: created if necessary; files of the same names are replaced.
      platforms: to compile for, some of `PLATFORMS`.
      dtype: of the images, one of `INPUTS`; float32 images are normalized already.

    Returns:
      The size of the function, bytes.

    Raises:
      UserError: the folder cannot be written.
    """
    exported = export_function(classifier, platforms, dtype)
    data = exported.serialize()
    facts = {
        "platforms": list(platforms),
        "jax_version": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }
    _write(classifier, folder, MODEL_FILE, bytes(data), {**facts, "input_dtype": dtype})
    return len(data)


def write_onnx(classifier: Classifier, folder: str, dtype: str = "uint8") -> int:
    """Writes a classifier as ONNX, if onnxruntime computes the same from it.

    Args:
      classifier: see `write_export`.
      folder: see `write_export`.
      dtype: see `write_export`.

    Returns:
      The size of the file, bytes.

    Raises:
      UserError: jax2onnx or onnxruntime is missing, the results differ, or the folder
        cannot be written.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format=onnx needs {error.name}: pip install 'nfnets[onnx]'"
        ) from None
    size = classifier.info.image_size
    assert size is not None  # of every classifier
    with compile_for("cuda"), tempfile.TemporaryDirectory() as temporary:
        path = jax2onnx.to_onnx(
            _function(classifier, dtype),
            [jax.ShapeDtypeStruct(("N", size, size, 3), jnp.dtype(dtype))],
            model_name=classifier.info.model,
            return_mode="file",
            output_path=f"{temporary}/{ONNX_FILE}",
            input_names=["images"],
            output_names=["probabilities"],
            export_mode="web",  # a single file
        )
        data = pathlib.Path(path).read_bytes()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        expected = jax.jit(_function(classifier, dtype))
        for count in (1, 5):
            images = np.random.default_rng(count).uniform(0, 255, (count, size, size, 3))
            images = (images if dtype == "uint8" else images / 64 - 2).astype(dtype)
            (found,) = session.run(None, {"images": images})
            logs = [np.log(np.maximum(p, 1e-30)) for p in (found, expected(images))]
            difference = np.max(np.abs(np.subtract(*logs)))
            if not difference <= _TOLERANCE:
                raise UserError(
                    f"onnxruntime's probabilities differ from JAX's by a factor of "
                    f"{np.exp(difference):g} in a batch of {count}; nothing was written"
                )
    _write(classifier, folder, ONNX_FILE, data, {"input_dtype": dtype})
    return len(data)


def _write(
    classifier: Classifier, folder: str, name: str, data: bytes, facts: dict[str, Any]
) -> None:
    """Writes the function, and `INFO_FILE` with the classifier's metadata."""
    out = local_path(folder)
    info: dict[str, Any] = dataclasses.asdict(classifier.info)
    info["input"] = ["N", info["image_size"], info["image_size"], 3]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, lambda path: path.write_bytes(data))
        write_text_atomically(
            out / INFO_FILE, json.dumps({**info, **facts}, indent=2) + "\n"
        )
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None


def _function(classifier: Classifier, dtype: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the function of images alone."""
    function = classifier.probabilities if dtype == "uint8" else classifier.probabilities_of
    return lambda images: function(classifier.params, classifier.state, images)


def export_function(
    classifier: Classifier, platforms: Sequence[str], dtype: str = "uint8"
) -> jax_export.Exported:
    """Returns the function with weights and normalization, for any number of images."""
    (batch,) = jax_export.symbolic_shape("batch")
    size = classifier.info.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.dtype(dtype))
    function = jax.jit(_function(classifier, dtype))
    accelerators = [platform for platform in platforms if platform != "cpu"]
    with compile_for(accelerators[0] if accelerators else "cpu"):
        return jax_export.export(function, platforms=platforms)(images)
