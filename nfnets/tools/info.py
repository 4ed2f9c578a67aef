"""Shows the content of a weights file.

    nfnets info f0.safetensors
    nfnets info nfnet_f0

prints the metadata, and the number, size and dtypes of the arrays, without loading them.
For files of other formats it prints how to convert them.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
import shlex
from typing import Any

from nfnets import cli
from nfnets.weights.files import identify_format, open_safetensors
from nfnets.weights.hub import find_weights
from nfnets.weights.reading import read_weights_info

_OTHERS = {
    "timm": "a PyTorch state dictionary, such as timm's",
    "haiku": "Haiku parameters, such as DeepMind's published checkpoints",
}
_SHOWN_CLASSES = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the content of the file that the command line names."""
    parser = cli.Parser("info", "Show the content of a weights file.")
    parser.add_argument(
        "file",
        type=cli.WeightsReference,
        help="weights file, name, hf://OWNER/REPOSITORY or URL",
    )
    reference = parser.parse_args(arguments).file
    path = find_weights(reference)
    file_format = identify_format(path)
    if file_format != "nfnets":
        print(f"{reference} holds {_OTHERS[file_format]}. To convert it:")
        print(f"nfnets convert {shlex.quote(reference)} --out=FILE.safetensors")
        if pathlib.Path(reference) == path:  # perhaps weights of another project
            return
    rows = describe_metadata(reference)
    if file_format == "nfnets":
        rows += describe_arrays(path)
    for name, value in rows:
        print(f"{name:<15} {value}")


def describe_metadata(path: str) -> list[tuple[str, str]]:
    """Returns the known metadata of a weights file, as (name, text)."""
    info: dict[str, Any] = dataclasses.asdict(read_weights_info(path))
    names = info["class_names"] or ()
    if names:
        more = ", ..." if len(names) > _SHOWN_CLASSES else ""
        info["class_names"] = f"{', '.join(names[:_SHOWN_CLASSES])}{more}"
    for name in ("mean_rgb", "stddev_rgb"):
        if info[name]:
            info[name] = ", ".join(f"{value:g}" for value in info[name])
    return [(name, str(value)) for name, value in info.items() if value is not None]


def describe_arrays(path: str | pathlib.Path) -> list[tuple[str, str]]:
    """Returns counts and sizes of the arrays of a safetensors file, as (name, text)."""
    counts: Counter[str] = Counter()
    arrays: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    with open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118
            tensor = file.get_slice(key)
            kind = key.partition("|")[0]
            arrays[kind] += 1
            counts[kind] += math.prod(tensor.get_shape())
            dtypes[tensor.get_dtype()] += 1
    return [
        *((kind, f"{counts[kind]:,} in {arrays[kind]} arrays") for kind in arrays),
        ("dtypes", ", ".join(f"{dtype} ({count})" for dtype, count in dtypes.items())),
        ("bytes", f"{os.path.getsize(path):,}"),
    ]
