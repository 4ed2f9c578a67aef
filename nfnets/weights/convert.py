"""From others' weights files to this project's, and to timm's.

    python -m nfnets.weights.convert F0_haiku.npz --out=f0.safetensors
    python -m nfnets.weights.convert dm_nfnet_f0.pth --from=timm --out=f0.safetensors
    python -m nfnets.weights.convert f0.safetensors --to=timm --out=timm_f0.safetensors

The published checkpoints are pickles in spite of their suffix. They are read as data:
whatever in them is neither an array nor a mapping is refused and not run.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib

from nfnets import command
from nfnets.errors import UserError
from nfnets.models import create_model
from nfnets.weights import timm
from nfnets.weights.files import load_weights, read_weights_info, save_weights
from nfnets.weights.fitting import fit_weights
from nfnets.weights.info import describe_model
from nfnets.weights.published import guess_model, read_published


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts the file that the command line names."""
    parser = command.Parser(
        "nfnets.weights.convert", "From others' weights files to this project's and back."
    )
    parser.add_argument("file", help="what to convert")
    parser.add_argument("--out", required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--from",
        dest="source",
        choices=("haiku", "timm", "nfnets"),
        help="whose file it is; default: haiku's, or with --to=timm this project's",
    )
    parser.add_argument(
        "--to", dest="target", choices=("nfnets", "timm"), default="nfnets", help="whose"
    )
    parser.add_argument("--model", help="its name; default: by its parameters' shapes")
    parser.add_argument("--class_names", metavar="FILE", help="one name a line")
    options = parser.parse_args(arguments)
    source = options.source or ("haiku" if options.target == "nfnets" else "nfnets")
    if options.target == "timm":
        if source != "nfnets":
            raise UserError("--to=timm converts this project's files: without --from")
        print(to_timm_file(options.file, options.out))
        return
    if source == "nfnets":
        raise UserError(f"{options.file} need not be converted: --from=nfnets, --to=nfnets")
    names = read_class_names(options.class_names) if options.class_names else None
    print(to_own_file(options.file, options.out, source, options.model, names))


def to_own_file(
    path: str,
    out: str,
    source: str = "haiku",
    model_name: str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> str:
    """Converts a file of others to one of this project.

    Args:
      path: the file to read.
      out: the .safetensors file to write.
      source: `haiku` or `timm`.
      model_name: None: found by the parameters' names and shapes.
      class_names: index = class.

    Returns:
      What was done, in one line.

    Raises:
      UserError: the file is refused, fits no model, or cannot be written.
    """
    overrides = {}
    if source == "timm":
        params, state = timm.from_timm(timm.read_timm(path), path), {}
        overrides["timm_compat"] = True
    else:
        params, state = read_published(path)
    if model_name is None:
        model_name, classes = guess_model(path, params)
    else:
        classes = _count_classes(path, params)
    try:
        model = create_model(model_name, classes, **overrides)
    except ValueError as error:
        raise UserError(str(error)) from None
    params, state = fit_weights(path, params, state, model)
    if class_names is not None and len(class_names) != classes:
        raise UserError(f"{len(class_names)} class names for {classes} classes")
    info = dataclasses.replace(
        describe_model(model, overrides),
        class_names=class_names,
        source=f"{source} checkpoint {pathlib.Path(path).name}",
    )
    save_weights(out, params, state, info)
    return f"{out}: {model_name}, {classes} classes, from {source}'s {path}"


def to_timm_file(path: str, out: str) -> str:
    """Converts a file of this project to timm's names and layouts.

    Args:
      path: a file of `save_weights`.
      out: the .safetensors file to write.

    Returns:
      What was done, in one line.

    Raises:
      UserError: timm has no such model, or a file cannot be read or written.
    """
    info = read_weights_info(path)
    if info.model not in timm.MODELS:
        raise UserError(f"timm has no {info.model}; it has {', '.join(timm.MODELS)}")
    params, _ = load_weights(path)
    timm.write_timm(out, timm.to_timm(params, path))
    said = f"{out}: timm's names for the {info.model} in {path}"
    if not (info.overrides or {}).get("timm_compat"):
        said += "; its network is not timm_compat, timm computes other activations"
    return said


def read_class_names(path: str) -> tuple[str, ...]:
    """Reads class names, one a line, in the order of the classes.

    Raises:
      UserError: the file cannot be read, or has an empty line.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {path}: {error}") from None
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f"{path}: expected one class name on every line")
    return tuple(line.strip() for line in lines)


def _count_classes(path: str, params: dict) -> int:
    heads = [m for m in params if m.count("/") == 2 and m.endswith("/~/linear")]
    if len(heads) != 1 or getattr(params[heads[0]].get("w"), "ndim", 0) != 2:
        raise UserError(f"{path} has no classifier NETWORK/~/linear:w [features, classes]")
    return params[heads[0]]["w"].shape[-1]


if __name__ == "__main__":
    command.run(main)
