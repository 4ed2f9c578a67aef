"""timm's NFNets (dm_nfnet_f0 to f6): other names and layouts for the same parameters.

| timm | here |
|---|---|
| stem.conv1 to conv4 | stem_conv0 to stem_conv3 |
| stages.S.B | nf_block_K, numbered through the stages |
| conv1, conv2, conv2b, conv3 | conv0, conv1, conv1b, conv2 |
| downsample.conv | conv_shortcut |
| attn_last.fc1, fc2 | squeeze_excite/~/linear, linear_1 |
| skipinit_gain | skip_gain |
| final_conv, head.fc | final_conv, linear |

Convolutions are OIHW there and HWIO here, gains [O, 1, 1, 1] and [O], linear layers
[O, C] and [C, O]; squeeze-and-excite's are 1x1 convolutions there.

timm's forward pass differs from the published one in two places: it adds 1e-5 to each
weight's variance where the published code bounds it from below, and its GELU is exact
where the published one is the tanh approximation. `create_model(..., timm_compat=True)`
follows timm.
"""

from collections.abc import Mapping, Sequence
import pathlib
import re
from typing import Any

import numpy as np

from nfnets.errors import UserError
from nfnets.weights.files import open_safetensors, write_safetensors
from nfnets.weights.torch_files import read_torch

Tree = dict[str, dict[str, np.ndarray]]

# Those that timm calls dm_nfnet_f0 and so on.
MODELS = tuple(f"nfnet_f{number}" for number in range(7))

_NETWORK = "NFNet/~/"
_CONVS = {
    "conv1": "conv0",
    "conv2": "conv1",
    "conv2b": "conv1b",
    "conv3": "conv2",
    "downsample.conv": "conv_shortcut",
}
_GATES = {
    "attn_last.fc1": "squeeze_excite/~/linear",
    "attn_last.fc2": "squeeze_excite/~/linear_1",
}
_BLOCK = re.compile(r"nf_block(?:_(\d+))?$")
_STAGE = re.compile(r"stages\.(\d+)\.(\d+)\.")
# Kind of layer -> timm's name of the parameter -> ours.
_NAMES = {
    "conv": {"weight": "w", "bias": "bias", "gain": "gain"},
    "gate": {"weight": "w", "bias": "b"},
    "linear": {"weight": "w", "bias": "b"},
    "block": {"skipinit_gain": "skip_gain"},
    "unknown": {},
}
# Of timm's arrays.
_DIMENSIONS = {
    ("conv", "weight"): 4,
    ("conv", "gain"): 4,
    ("gate", "weight"): 4,
    ("linear", "weight"): 2,
}


def read_timm(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dictionary from a .safetensors or a PyTorch file.

    Raises:
      UserError: no such file, or one that holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if start[8:] != b"{":
        return read_torch(path)
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def write_timm(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dictionary that timm loads.

    Raises:
      UserError: the file cannot be written, or is to be PyTorch's own.
    """
    if pathlib.Path(path).suffix in (".pth", ".pt", ".bin"):
        raise UserError(f"--out={path}: timm's weights are written as .safetensors")
    write_safetensors(path, tensors, {"format": "pt"})


def from_timm(tensors: Mapping[str, np.ndarray], path: object = "the weights") -> Tree:
    """Turns timm's parameters into this project's.

    Args:
      tensors: timm's name -> array, of a dm_nfnet_f0 to f6 with any number of classes.
      path: of the file, for messages.

    Returns:
      module -> name -> float32 array.

    Raises:
      UserError: these are no parameters of such a model.
    """
    layers = _layers(_stage_depths(tensors))
    tree: Tree = {}
    for key, array in tensors.items():
        layer, _, name = key.rpartition(".")
        kind, module = layers.get(layer, ("unknown", ""))
        own_name = _NAMES[kind].get(name)
        if own_name is None:
            raise UserError(f"{path}: {key!r} is no parameter of timm's dm_nfnet_f0 to f6")
        if array.ndim != _DIMENSIONS.get((kind, name), array.ndim):
            raise UserError(f"{path}: {key} has the shape {list(array.shape)}")
        own = _to_own_layout(kind, own_name, np.asarray(array, np.float32))
        tree.setdefault(module, {})[own_name] = own
    return tree


def to_timm(
    params: Mapping[str, Mapping[str, Any]], path: object = "the weights"
) -> dict[str, np.ndarray]:
    """Inverts `from_timm`.

    Args:
      params: module -> name -> array, of an `nfnet_f0` to `f6`.
      path: of the file, for messages.

    Returns:
      timm's name -> array.

    Raises:
      UserError: these are no parameters of such a model.
    """
    # The first block of every stage, and no other, projects its shortcut.
    blocks = sorted(
        int(match[1] or 0)
        for match in (_BLOCK.fullmatch(m.removeprefix(_NETWORK)) for m in params)
        if match
    )
    depths: list[int] = []
    for block in blocks:
        if f"{_NETWORK}{_block_name(block)}/~/conv_shortcut" in params or not depths:
            depths.append(0)
        depths[-1] += 1
    layers = {module: (kind, layer) for layer, (kind, module) in _layers(depths).items()}
    tensors = {}
    for module, arrays in params.items():
        kind, layer = layers.get(module, ("unknown", ""))
        names = {own: theirs for theirs, own in _NAMES[kind].items()}
        for name, array in arrays.items():
            if name not in names:
                raise UserError(f"{path}: {module}:{name} has no place in timm's NFNets")
            theirs = _to_timm_layout(kind, name, np.asarray(array))
            tensors[f"{layer}.{names[name]}"] = theirs
    return tensors


def _stage_depths(tensors: Mapping[str, Any]) -> list[int]:
    """Blocks of each stage, by the highest numbers in timm's names."""
    found = {(int(m[1]), int(m[2])) for m in map(_STAGE.match, tensors) if m}
    stages = range(max((stage for stage, _ in found), default=-1) + 1)
    return [max((b for s, b in found if s == stage), default=-1) + 1 for stage in stages]


def _layers(depths: Sequence[int]) -> dict[str, tuple[str, str]]:
    """timm's layer -> (kind, our module)."""
    layers = {f"stem.conv{k + 1}": ("conv", f"{_NETWORK}stem_conv{k}") for k in range(4)}
    count = 0
    for stage, depth in enumerate(depths):
        for position in range(depth):
            theirs, own = f"stages.{stage}.{position}", f"{_NETWORK}{_block_name(count)}"
            layers[theirs] = ("block", own)
            for name, own_name in _CONVS.items():
                layers[f"{theirs}.{name}"] = ("conv", f"{own}/~/{own_name}")
            for name, own_name in _GATES.items():
                layers[f"{theirs}.{name}"] = ("gate", f"{own}/~/{own_name}")
            count += 1
    layers["final_conv"] = ("conv", f"{_NETWORK}final_conv")
    layers["head.fc"] = ("linear", f"{_NETWORK}linear")
    return layers


def _block_name(index: int) -> str:
    return f"nf_block_{index}" if index else "nf_block"


def _to_own_layout(kind: str, name: str, array: np.ndarray) -> np.ndarray:
    if name == "gain":
        return array.reshape(-1)
    if name != "w":
        return array
    if kind == "conv":
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T


def _to_timm_layout(kind: str, name: str, array: np.ndarray) -> np.ndarray:
    if name == "gain":
        return array.reshape(-1, 1, 1, 1)
    if name != "w":
        return array
    if kind == "conv":
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None, None] if kind == "gate" else array.T
