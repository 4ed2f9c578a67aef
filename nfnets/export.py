"""Writes a classifier as StableHLO, which runs without this project and without Haiku.

    python -m nfnets.export --weights=f0.safetensors --out=exported

The folder has `model.stablehlo`, a function from uint8 images [N, S, S, 3] for any N to
probabilities [N, classes], weights and normalisation included, and `model.json`: image
size, preprocessing and class names. Grouped convolutions have the form that suits the
device it was written on (see `convolution.conv2d`); others run it too, but slower. To run
it, with JAX alone:

    exported = jax.export.deserialize(pathlib.Path("exported/model.stablehlo").read_bytes())
    probabilities = exported.call(images)
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib

import jax
from jax import export as jax_export
import jax.numpy as jnp

from nfnets import command
from nfnets.errors import UserError
from nfnets.inference import Classifier, load_classifier

MODEL_FILE = "model.stablehlo"
INFO_FILE = "model.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the folder that the command line asks for."""
    parser = command.Parser("nfnets.export", "Writes a classifier as StableHLO.")
    parser.add_argument("--weights", required=True, help="a .safetensors file")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--platforms",
        default=",".join(("cpu", "cuda", "tpu")),
        help=f"that the file is for, of {','.join(PLATFORMS)}",
    )
    options = parser.parse_args(arguments)
    platforms = tuple(options.platforms.split(","))
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown:
        known = ", ".join(PLATFORMS)
        raise UserError(f"--platforms: unknown {unknown[0]!r}; known: {known}")
    classifier = load_classifier(options.weights)
    size = write_export(classifier, options.out, platforms)
    print(
        f"{options.out}/{MODEL_FILE}: {classifier.info.model}, {size / 1e6:.1f} MB, "
        f"uint8 images [N, {classifier.info.image_size}, {classifier.info.image_size}, 3] "
        f"to probabilities [N, {classifier.info.num_classes}], for {', '.join(platforms)}"
    )


def write_export(
    classifier: Classifier, folder: str, platforms: Sequence[str] = ("cpu",)
) -> int:
    """Writes a classifier as StableHLO.

    Args:
      classifier: from `nfnets.inference.load_classifier`.
      folder: is created; files of the same name in it are replaced.
      platforms: that the program is lowered for.

    Returns:
      The program's size, bytes.

    Raises:
      UserError: the folder cannot be written.
    """
    data = serialize(classifier, platforms)
    info = dataclasses.asdict(classifier.info)
    info["input"] = ["N", info["image_size"], info["image_size"], 3]
    info["platforms"] = list(platforms)
    out = pathlib.Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MODEL_FILE).write_bytes(data)
        (out / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    return len(data)


def serialize(classifier: Classifier, platforms: Sequence[str]) -> bytes:
    """Returns the program: weights and normalisation in it, the batch size free."""
    (batch,) = jax_export.symbolic_shape("batch")
    size = classifier.info.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    function = jax.jit(
        lambda x: classifier.probabilities(classifier.params, classifier.state, x)
    )
    return jax_export.export(function, platforms=platforms)(images).serialize()


if __name__ == "__main__":
    command.run(main)
