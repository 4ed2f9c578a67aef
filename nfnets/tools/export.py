"""Exports a classifier as StableHLO, to be run without this project and without Haiku.

    nfnets export --weights=f0.safetensors --out=exported

writes `model.stablehlo`, a function from uint8 images [N, S, S, 3] with any N to
probabilities [N, classes] that includes weights and normalization, and `model.json` with
image size, preprocessing and class names. To run it, with JAX alone:

    exported = jax.export.deserialize(pathlib.Path("exported/model.stablehlo").read_bytes())
    probabilities = exported.call(images)

`nfnets.inference.load_export` does that, and explains why an older JAX cannot. Exported for
`cpu` alone, the network has the form that is fast there (see `nfnets.cpu`); otherwise that
of accelerators, which runs on a CPU, too, but slower.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

import jax
from jax import export as jax_export
import jax.numpy as jnp

from nfnets import cli
from nfnets.errors import UserError
from nfnets.files import local_path, write_atomically, write_text_atomically
from nfnets.inference import Classifier, load_classifier
from nfnets.models.platform import compile_for

MODEL_FILE = "model.stablehlo"
INFO_FILE = "model.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the folder that the command line names."""
    parser = cli.Parser("export", "Export a classifier as StableHLO.")
    cli.add_weights_option(parser, required=True)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--platforms", default="cpu,cuda,tpu", help=f"some of {','.join(PLATFORMS)}"
    )
    options = parser.parse_args(arguments)
    platforms = options.platforms.split(",")
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown:
        known = ", ".join(PLATFORMS)
        raise UserError(f"--platforms: unknown {unknown[0]!r}; known: {known}")
    classifier = load_classifier(options.weights)
    size = write_export(classifier, options.out, platforms)
    info = classifier.info
    print(
        f"{options.out}/{MODEL_FILE}: {info.model}, {size / 1e6:.1f} MB, uint8 images "
        f"[N, {info.image_size}, {info.image_size}, 3] to probabilities "
        f"[N, {info.num_classes}], for {', '.join(platforms)}"
    )


def write_export(
    classifier: Classifier, folder: str, platforms: Sequence[str] = ("cpu",)
) -> int:
    """Writes a classifier as StableHLO.

    Args:
      classifier: from `nfnets.inference.load_classifier`.
      folder: created if necessary; files of the same names are replaced.
      platforms: to compile for, some of `PLATFORMS`.

    Returns:
      The size of the function, bytes.

    Raises:
      UserError: the folder cannot be written.
    """
    out = local_path(folder)
    exported = export_function(classifier, platforms)
    data = exported.serialize()
    info: dict[str, Any] = dataclasses.asdict(classifier.info)
    info["input"] = ["N", info["image_size"], info["image_size"], 3]
    info["platforms"] = list(platforms)
    info["jax_version"] = jax.__version__
    info["calling_convention_version"] = exported.calling_convention_version
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / MODEL_FILE, lambda path: path.write_bytes(data))
        write_text_atomically(out / INFO_FILE, json.dumps(info, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    return len(data)


def export_function(
    classifier: Classifier, platforms: Sequence[str]
) -> jax_export.Exported:
    """Returns the function with weights and normalization, for any number of images."""
    (batch,) = jax_export.symbolic_shape("batch")
    size = classifier.info.image_size
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    function = jax.jit(
        lambda x: classifier.probabilities(classifier.params, classifier.state, x)
    )
    accelerators = [platform for platform in platforms if platform != "cpu"]
    with compile_for(accelerators[0] if accelerators else "cpu"):
        return jax_export.export(function, platforms=platforms)(images)
