"""timm's normalizer-free networks: the same parameters with other names and layouts.

| timm | here |
|---|---|
| stem.conv1 to conv4, or stem.conv | stem_conv0 to stem_conv3, or initial_conv |
| stages.S.B | nf_block_K or nf_res_block_K, numbered through the stages |
| conv1, conv2, conv2b, conv3 | conv0, conv1, conv1b, conv2 |
| downsample.conv | conv_shortcut |
| attn_last.fc1, fc2; attn.fc1, fc2 in NF-RegNets | squeeze_excite/~/linear, linear_1 |
| attn_last.conv | channel_attention |
| skipinit_gain | skip_gain |
| final_conv, head.fc | final_conv, linear |

Convolutions are OIHW in timm and HWIO here, gains [O, 1, 1, 1] and [O], linear layers
[O, C] and [C, O]; squeeze-and-excite consists of 1x1 convolutions in timm. ECA's kernel is
[1, 1, K] and [K, 1, 1].

The forward pass of timm's dm_nfnet_f0 to f6 differs from the published one in two places:
it adds 1e-5 to each weight's variance where the published code has a lower bound, and its
GELU is exact where the published one is the tanh approximation. `create_model(...,
timm_compat=True)` follows timm. The other networks are timm's own; see
`nfnets.models.timm_variants`.
"""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
import re
from typing import Any

import numpy as np

from nfnets.errors import UserError
from nfnets.models import timm_variants
from nfnets.models.names import HEAD, block_index, block_name, module_path
from nfnets.weights.files import is_safetensors, read_safetensors, write_safetensors

# module -> name -> array.
Tree = dict[str, dict[str, np.ndarray]]

# Published models that timm has, as dm_nfnet_f0 and so on, with another forward pass.
PUBLISHED = tuple(f"nfnet_f{number}" for number in range(7))
# timm's own.
OWN = tuple(spec.name for spec in timm_variants.all_specs())
MODELS = (*PUBLISHED, *OWN)

# Entries of training checkpoints that hold weights, and averaged weights.
_WEIGHTS = ("state_dict", "model")
_AVERAGES = ("state_dict_ema", "model_ema")
# Prefixes by DistributedDataParallel and AveragedModel, and by torch.compile.
_PREFIXES = re.compile(r"(?:module\.|_orig_mod\.)+")

# Haiku name of the network -> of its blocks.
_BLOCKS = {"NFNet": "nf_block", "NF_RegNet": "nf_block", "NF_ResNet": "nf_res_block"}
# timm's layer of a block -> (kind, ours). NF-RegNets call attn_last attn.
_BLOCK_LAYERS = {
    "conv1": ("conv", "conv0"),
    "conv2": ("conv", "conv1"),
    "conv2b": ("conv", "conv1b"),
    "conv3": ("conv", "conv2"),
    "downsample.conv": ("conv", "conv_shortcut"),
    "attn_last.fc1": ("gate", "squeeze_excite/~/linear"),
    "attn_last.fc2": ("gate", "squeeze_excite/~/linear_1"),
    "attn_last.conv": ("eca", "channel_attention"),
}
_STAGE = re.compile(r"stages\.([0-3])\.(\d{1,3})\.")
# Kind of layer -> timm's name of the parameter -> (ours, timm's number of dimensions).
_PARAMETERS: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "conv": {"weight": ("w", 4), "bias": ("bias", 1), "gain": ("gain", 4)},
    "gate": {"weight": ("w", 4), "bias": ("b", 1)},
    "eca": {"weight": ("w", 3)},
    "linear": {"weight": ("w", 2), "bias": ("b", 1)},
    "block": {"skipinit_gain": ("skip_gain", 0)},
    "unknown": {},
}


def read_timm(
    path: str | pathlib.Path, *, ema: bool = False
) -> tuple[dict[str, np.ndarray], str]:
    """Reads a state dictionary from a .safetensors or a PyTorch file.

    Args:
      path: of a state dictionary or of a training checkpoint that holds one.
      ema: read the averaged weights of a training checkpoint.

    Returns:
      (timm's name -> array, name of the checkpoint's entry that it was read from or "").

    Raises:
      UserError: the file is missing, of another format, or lacks averaged weights; or it
        is a PyTorch file and PyTorch is not installed.
    """
    content = read_safetensors(path)[0] if is_safetensors(path) else _load_torch(path)
    return unwrap(content, path, ema=ema)


def unwrap(
    content: Any, path: object, *, ema: bool = False
) -> tuple[dict[str, np.ndarray], str]:
    """Finds the state dictionary in the content of a file; see `read_timm`.

    Args:
      content: a mapping of tensors, or of such mappings.
      path: of the file, for messages.
      ema: take the averaged weights.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dictionary")
    entries = _AVERAGES if ema else (*_WEIGHTS, *_AVERAGES)
    entry = next((name for name in entries if isinstance(content.get(name), Mapping)), "")
    if ema and not entry:
        names = ", ".join(map(str, list(content)[:5]))
        raise UserError(f"--ema: {path} has no {' or '.join(_AVERAGES)}, but {names}, ...")
    tensors = {}
    for key, value in (content[entry] if entry else content).items():
        if key == "n_averaged":  # counter of torch.optim.swa_utils.AveragedModel
            continue
        if hasattr(value, "detach"):
            value = value.detach().float().numpy()
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path}: {key!r} is not a tensor; expected a state dictionary")
        tensors[_PREFIXES.sub("", key, count=1)] = value
    return tensors, entry


def _load_torch(path: str | pathlib.Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is not a .safetensors file, and reading others needs PyTorch: "
            "pip install torch, or use the .safetensors file"
        ) from None
    try:
        # The files of timm's train.py hold its command line, too.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, depending on how the file is damaged
        # PyTorch advises to load such files as code; only its reason is passed on.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]
        reason = reason.partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path} is not a PyTorch file of tensors: {reason}") from None


def write_timm(path: str | pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dictionary that timm loads.

    Raises:
      UserError: the file cannot be written, or has a suffix of PyTorch's own format.
    """
    if pathlib.Path(path).suffix in (".pth", ".pt", ".bin"):
        raise UserError(f"--out={path}: only .safetensors files are written")
    write_safetensors(path, tensors, {"format": "pt"})


def from_timm(tensors: Mapping[str, np.ndarray], path: object = "the weights") -> Tree:
    """Converts timm's parameters to this project's.

    Args:
      tensors: timm's name -> array, of one of `MODELS` with any number of classes.
      path: of the file, for messages.

    Returns:
      module -> name -> float32 array.

    Raises:
      UserError: a name or a shape is not one of these models'.
    """
    layers = _layers(_network(tensors), _stage_depths(tensors))
    tree: Tree = {}
    for key, array in tensors.items():
        layer, _, name = key.rpartition(".")
        kind, module = layers.get(layer, ("unknown", ""))
        if name not in _PARAMETERS[kind]:
            raise UserError(
                f"{path}: {key!r} is not a parameter of timm's normalizer-free networks"
            )
        own_name, dimensions = _PARAMETERS[kind][name]
        if array.ndim != dimensions:
            raise UserError(
                f"{path}: {key} has the shape {list(array.shape)}, not {dimensions}-D"
            )
        own = _to_own_layout(kind, own_name, np.asarray(array, np.float32))
        tree.setdefault(module, {})[own_name] = own
    return tree


def to_timm(
    params: Mapping[str, Mapping[str, Any]], path: object = "the weights"
) -> dict[str, np.ndarray]:
    """Inverts `from_timm`.

    Args:
      params: module -> name -> array, of one of `MODELS`.
      path: of the file, for messages.

    Returns:
      timm's name -> array.

    Raises:
      UserError: timm has no parameter of that name.
    """
    network = next(iter(params), "").partition("/")[0]
    if network not in _BLOCKS:
        raise UserError(f"{path}: timm has no {network or 'network without parameters'}")
    blocks = {block_index(module) for module in params} - {None}
    depths: list[int] = []
    for index in range(len(blocks)):
        # The first block of each stage, and no other, projects its shortcut.
        block = block_name(_BLOCKS[network], index)
        if module_path(network, block, "conv_shortcut") in params or not depths:
            depths.append(0)
        depths[-1] += 1
    layers = {
        module: (kind, layer) for layer, (kind, module) in _layers(network, depths).items()
    }
    tensors = {}
    for module, arrays in params.items():
        kind, layer = layers.get(module, ("unknown", ""))
        names = {own: theirs for theirs, (own, _) in _PARAMETERS[kind].items()}
        for name, array in arrays.items():
            if name not in names:
                raise UserError(f"{path}: timm's networks have no {module}:{name}")
            theirs = _to_timm_layout(kind, name, np.asarray(array))
            tensors[f"{layer}.{names[name]}"] = theirs
    return tensors


def _network(tensors: Mapping[str, Any]) -> str:
    """Returns the Haiku name of the network that has timm's parameters."""
    if "stem.conv.weight" not in tensors:
        return "NFNet"
    return "NF_RegNet" if "final_conv.weight" in tensors else "NF_ResNet"


def _stage_depths(tensors: Mapping[str, Any]) -> list[int]:
    """Returns the number of blocks of each stage, by the largest indices in the names."""
    depths = [0, 0, 0, 0]
    for match in filter(None, map(_STAGE.match, tensors)):
        stage, block = int(match[1]), int(match[2])
        depths[stage] = max(depths[stage], block + 1)
    return depths


def _layers(network: str, depths: Sequence[int]) -> dict[str, tuple[str, str]]:
    """Returns timm's layer -> (kind, our module)."""
    stem = {f"stem.conv{k + 1}": f"stem_conv{k}" for k in range(4)}
    if network != "NFNet":
        stem = {"stem.conv": "initial_conv"}
    layers = {theirs: ("conv", module_path(network, own)) for theirs, own in stem.items()}
    places = [
        (stage, block) for stage, depth in enumerate(depths) for block in range(depth)
    ]
    for index, (stage, block) in enumerate(places):
        theirs = f"stages.{stage}.{block}"
        own = module_path(network, block_name(_BLOCKS[network], index))
        layers[theirs] = ("block", own)
        for name, (kind, own_name) in _BLOCK_LAYERS.items():
            if network == "NF_RegNet":
                name = name.replace("attn_last", "attn")
            layers[f"{theirs}.{name}"] = (kind, module_path(own, own_name))
    layers["final_conv"] = ("conv", module_path(network, "final_conv"))
    layers["head.fc"] = ("linear", module_path(network, HEAD))
    return layers


def _to_own_layout(kind: str, name: str, array: np.ndarray) -> np.ndarray:
    if name == "gain":
        return array.reshape(-1)
    if name != "w":
        return array
    if kind == "conv":
        return array.transpose(2, 3, 1, 0)
    if kind == "eca":
        return array.transpose(2, 1, 0)
    return array.reshape(array.shape[:2]).T


def _to_timm_layout(kind: str, name: str, array: np.ndarray) -> np.ndarray:
    if name == "gain":
        return array.reshape(-1, 1, 1, 1)
    if name != "w":
        return array
    if kind == "conv":
        return array.transpose(3, 2, 0, 1)
    if kind == "eca":
        return array.transpose(2, 1, 0)
    return array.T[:, :, None, None] if kind == "gate" else array.T
