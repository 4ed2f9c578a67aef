"""Converts weights files from and to other formats.

    nfnets convert F0_haiku.npz --out=f0.safetensors
    nfnets convert dm_nfnet_f0.safetensors --out=f0.safetensors
    nfnets convert nfnet_f0 --out=f0.safetensors
    nfnets convert eca_nfnet_l0.safetensors --out=l0.safetensors
    nfnets convert f0.safetensors --to=timm --out=timm_f0.safetensors
    nfnets convert f0.safetensors --to=hub --license=apache-2.0 --out=my_f0

reads DeepMind's published checkpoints, which are pickles in spite of their suffix, and
timm's .safetensors and PyTorch files, local or by reference (see `nfnets.weights.hub`). It
writes .safetensors files of this project or of timm, or a folder with a model card to be
uploaded to the Hugging Face Hub. Pickles are read as data: anything but arrays and mappings
is refused and not run.
"""

from collections.abc import Sequence
import dataclasses

from nfnets import cli
from nfnets.errors import UserError
from nfnets.files import read_user_text
from nfnets.weights import timm
from nfnets.weights.files import identify_format, save_weights
from nfnets.weights.folders import save_pretrained
from nfnets.weights.hub import find_weights
from nfnets.weights.reading import read_weights


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts the file that the command line names."""
    parser = cli.Parser("convert", "Convert weights from and to other formats.")
    parser.add_argument(
        "file",
        type=cli.WeightsReference,
        help="weights file to read, name, hf://OWNER/REPOSITORY or URL",
    )
    parser.add_argument(
        "--out", required=True, help=".safetensors file, or folder for --to=hub"
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=("haiku", "timm"),
        help="format of the file (default: by its content)",
    )
    parser.add_argument(
        "--to",
        dest="target",
        choices=("nfnets", "timm", "hub"),
        default="nfnets",
        help="format",
    )
    parser.add_argument("--license", default="other", help="on the card, for --to=hub")
    parser.add_argument("--model", help="its name (default: by the parameters' shapes)")
    parser.add_argument(
        "--class_names", metavar="FILE", help="text file, one name per line"
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take the averaged weights of a training checkpoint of timm",
    )
    options = parser.parse_args(arguments)
    source = options.source or identify_format(find_weights(options.file))
    if source == options.target or {source, options.target} == {"haiku", "timm"}:
        raise UserError(f"cannot convert {options.file} from {source} to {options.target}")
    if options.target == "timm":
        summary = to_timm_file(options.file, options.out)
    else:
        names = options.class_names and read_class_names(options.class_names)
        summary = to_nfnets_file(
            options.file,
            options.out,
            source,
            model_name=options.model,
            class_names=names,
            ema=options.ema,
            license=options.license if options.target == "hub" else None,
        )
    print(summary)


def to_nfnets_file(
    path: str,
    out: str,
    source: str,
    *,
    model_name: str | None = None,
    class_names: tuple[str, ...] | None = None,
    ema: bool = False,
    license: str | None = None,
) -> str:
    """Converts weights of another format to a file of this project, or to a folder.

    Args:
      path: file to read, or another reference.
      out: .safetensors file to write, or with a license the folder.
      source: `nfnets`, `haiku` or `timm`.
      model_name: None: identified by the parameters' names and shapes.
      class_names: in the order of the logits; None: the file's.
      ema: take the averaged weights of a training checkpoint of timm.
      license: of the model card in a folder for the Hugging Face Hub.

    Returns:
      A one-line summary.

    Raises:
      UserError: the file cannot be read, fits no model, or cannot be written.
    """
    params, state, info = read_weights(path, source=source, model_name=model_name, ema=ema)
    if class_names is not None and len(class_names) != info.num_classes:
        raise UserError(f"{len(class_names)} class names for {info.num_classes} classes")
    info = dataclasses.replace(info, class_names=class_names or info.class_names)
    if license is None:
        save_weights(out, params, state, info)
    else:
        save_pretrained(out, params, state, info, license=license)
    return f"{out}: {info.model}, {info.num_classes} classes, from {info.source}"


def to_timm_file(path: str, out: str) -> str:
    """Converts a file of this project to timm's names and layouts.

    Args:
      path: file of `save_weights`.
      out: .safetensors file to write.

    Returns:
      A one-line summary.

    Raises:
      UserError: timm has no such model, or a file cannot be read or written.
    """
    params, _, info = read_weights(path)
    if info.model not in timm.MODELS:
        raise UserError(f"timm has no {info.model}; it has {', '.join(timm.MODELS)}")
    timm.write_timm(out, timm.to_timm(params, path))
    summary = f"{out}: {info.model} of {path} with timm's names"
    has_compat = (info.overrides or {}).get("timm_compat")
    if info.model in timm.PUBLISHED and not has_compat:
        summary += "; without timm_compat, timm's forward pass differs from its own"
    return summary


def read_class_names(path: str) -> tuple[str, ...]:
    """Reads class names from a text file, one per line, in the order of the classes.

    Raises:
      UserError: the file cannot be read, or has an empty line.
    """
    lines = read_user_text(path).rstrip("\n").split("\n")
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f"{path}: expected one class name on every line")
    return tuple(line.strip() for line in lines)
