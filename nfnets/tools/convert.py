"""Converts weights files from and to other formats.

    nfnets convert F0_haiku.npz --out=f0.safetensors
    nfnets convert dm_nfnet_f0.safetensors --out=f0.safetensors
    nfnets convert eca_nfnet_l0.safetensors --out=l0.safetensors
    nfnets convert f0.safetensors --to=timm --out=timm_f0.safetensors

reads DeepMind's published checkpoints, which are pickles in spite of their suffix, and
timm's .safetensors and PyTorch files, and writes .safetensors files of this project or of
timm. Pickles are read as data: anything but arrays and mappings is refused and not run.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from nfnets import cli
from nfnets.errors import UserError
from nfnets.files import read_user_text
from nfnets.models import create_model
from nfnets.weights import timm
from nfnets.weights.files import (
    identify_format,
    load_weights,
    read_weights_info,
    save_weights,
)
from nfnets.weights.fitting import Arrays, fit_weights
from nfnets.weights.info import describe_model
from nfnets.weights.published import count_classes, identify_model, read_published


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts the file that the command line names."""
    parser = cli.Parser("convert", "Convert weights from and to other formats.")
    parser.add_argument("file", help="weights file to read")
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    parser.add_argument(
        "--from",
        dest="source",
        choices=("haiku", "timm"),
        help="format of the file (default: by its content)",
    )
    parser.add_argument(
        "--to", dest="target", choices=("nfnets", "timm"), default="nfnets", help="format"
    )
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
    source = options.source or identify_format(options.file)
    if (source == "nfnets") == (options.target == "nfnets"):
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
) -> str:
    """Converts a file of another format to one of this project.

    Args:
      path: file to read.
      out: .safetensors file to write.
      source: `haiku` or `timm`.
      model_name: None: identified by the parameters' names and shapes.
      class_names: in the order of the logits.
      ema: take the averaged weights of a training checkpoint of timm.

    Returns:
      A one-line summary.

    Raises:
      UserError: the file cannot be read, fits no model, or cannot be written.
    """
    origin = pathlib.Path(path).name
    loaded: Arrays
    state: Arrays = {}
    if source == "timm":
        tensors, entry = timm.read_timm(path, ema=ema)
        loaded = timm.from_timm(tensors, path)
        origin += f" ({entry})" * bool(entry)
    else:
        loaded, state = read_published(path)
    model_name = model_name or identify_model(path, loaded)
    is_timm_copy = source == "timm" and model_name in timm.PUBLISHED
    overrides = {"timm_compat": True} if is_timm_copy else {}
    classes = count_classes(path, loaded)
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"{len(class_names)} class names for {classes} classes")
    model = create_model(model_name, classes, **overrides)
    params, state = fit_weights(path, loaded, state, model)
    info = dataclasses.replace(
        describe_model(model, overrides),
        class_names=class_names,
        source=f"{source} checkpoint {origin}",
    )
    save_weights(out, params, state, info)
    return f"{out}: {model_name}, {classes} classes, from {info.source}"


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
    info = read_weights_info(path)
    if info.model not in timm.MODELS:
        raise UserError(f"timm has no {info.model}; it has {', '.join(timm.MODELS)}")
    params, _ = load_weights(path)
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
