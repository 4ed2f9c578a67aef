"""Weights of any format, as parameters and metadata of this project."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from nfnets.errors import UserError
from nfnets.models import Model, Params, State, create_model
from nfnets.models.names import head_module
from nfnets.weights import timm
from nfnets.weights.files import (
    METADATA_KEY,
    SEPARATOR,
    checksum,
    identify_format,
    open_safetensors,
    read_safetensors,
)
from nfnets.weights.fitting import Arrays, fit_weights
from nfnets.weights.hub import CONFIG_FILE, find_weights, model_of_architecture
from nfnets.weights.info import WeightsInfo, describe_model, model_of
from nfnets.weights.published import count_classes, identify_model, read_published

_IMAGENET = 1000  # classes


def from_pretrained(
    reference: str | os.PathLike[str], num_classes: int | None = None, **overrides: Any
) -> tuple[Model, Params, State]:
    """Creates a model with published weights, or those of a file.

    Example:

        model, params, state = nfnets.from_pretrained("nfnet_f0")
        model, params, state = nfnets.from_pretrained("hf://me/flowers@v2", num_classes=10)

    Args:
      reference: a name that `nfnets models --pretrained` lists, `hf://OWNER/REPOSITORY`,
        a URL, a file or a folder; see `nfnets.weights.hub`.
      num_classes: the classifier is re-initialized if the weights are for another number,
        with a message; None: that of the weights.
      **overrides: as in `nfnets.create_model`, such as `compute_dtype` or `drop_rate`.

    Returns:
      (model, params, state).

    Raises:
      UserError: the weights are not found, cannot be downloaded, or fit no model.
    """
    params, state, info = read_weights(reference)
    own = model_of(info, reference)
    classes = num_classes or own.num_classes
    model = create_model(own.name, classes, **{**(info.overrides or {}), **overrides})
    return model, *_adapt(reference, params, state, model, seed=0)


def read_weights(
    reference: str | os.PathLike[str],
    *,
    source: str | None = None,
    model_name: str | None = None,
    ema: bool = False,
) -> tuple[Params, State, WeightsInfo]:
    """Reads weights of any format.

    Args:
      reference: a file, or another reference; see `nfnets.weights.hub`.
      source: format, `nfnets`, `timm` or `haiku`; None: by the content.
      model_name: None: by the metadata, or the parameters' names and shapes.
      ema: take the averaged weights of a training checkpoint of timm.

    Returns:
      (params, state, info): module -> name -> array; metadata, as far as they are known.

    Raises:
      UserError: the weights are not found, damaged, or fit no model.
    """
    path = find_weights(reference)
    source = source or identify_format(path)
    if source == "nfnets":
        return _read_own(path)
    # Without the folder of a local file.
    origin = path.name if path == pathlib.Path(reference) else str(reference)
    known = WeightsInfo()
    loaded: Arrays
    state: Arrays = {}
    if source == "timm":
        tensors, entry = timm.read_timm(path, ema=ema)
        loaded = timm.from_timm(tensors, reference)
        origin += f" ({entry})" * bool(entry)
        known = _read_timm_config(path)
    else:
        loaded, state = read_published(path)
    name = model_name or known.model or identify_model(reference, loaded)
    is_timm_copy = source == "timm" and name not in timm.OWN
    overrides = {"timm_compat": True} if is_timm_copy else {}
    model = create_model(name, count_classes(reference, loaded), **overrides)
    params, state = fit_weights(reference, loaded, state, model)
    if source == "haiku" and name in timm.PUBLISHED and model.num_classes == _IMAGENET:
        known = WeightsInfo(class_names=imagenet_classes())  # DeepMind's
    info = dataclasses.asdict(describe_model(model, overrides))
    info |= {k: v for k, v in dataclasses.asdict(known).items() if v is not None}
    info["source"] = f"{source} checkpoint {origin}"
    return *jax.tree.map(jnp.asarray, (params, state)), WeightsInfo(**info)


def load_weights(
    path: str | os.PathLike[str], model: Model | None = None, skip: Sequence[str] = ()
) -> tuple[Params, State]:
    """Reads weights that `save_weights` wrote, or of another format.

    Args:
      path: of the file, or another reference; see `nfnets.weights.hub`.
      model: that the weights must fit; None: any.
      skip: see `nfnets.weights.fit_weights`; ignored without a model.

    Returns:
      (params, state): module -> name -> array.

    Raises:
      UserError: the file is missing, damaged, of an unknown format, or does not fit.
    """
    params, state, _ = read_weights(path)
    if model is None:
        return params, state
    return fit_weights(path, params, state, model, skip)


def read_weights_info(path: str | os.PathLike[str]) -> WeightsInfo:
    """Reads the metadata of weights, without the tensors of files of `save_weights`.

    Args:
      path: of the file, or another reference; see `nfnets.weights.hub`.

    Raises:
      UserError: the file is missing or of an unknown format.
    """
    file = find_weights(path)
    if identify_format(file) != "nfnets":
        return read_weights(path)[2]
    with open_safetensors(file) as content:
        return _parse_info(file, content.metadata())


def initial_weights(
    path: str | os.PathLike[str] | None,
    model: Any,
    seed: int,
    skip: Sequence[str] = (),
    image_size: int = 32,
) -> tuple[Params, State] | None:
    """Returns the weights that a run starts from.

    The classifier of an nfnets model is re-initialized, with a message, if the file's is
    for another number of classes.

    Args:
      path: of a weights file, or another reference; None: start from random weights.
      model: from `create_model`, or any object with Haiku's `init`.
      seed: of parameters that are initialized.
      skip: patterns as in `fit_weights`.
      image_size: side of the images that `model.init` gets, pixels.

    Returns:
      (params, state) in the model's dtypes; None without a path.

    Raises:
      UserError: the file does not fit the model.
    """
    if path is None:
        return None
    params, state, _ = read_weights(path)
    return _adapt(path, params, state, model, seed, skip, image_size)


def _adapt(
    path: str | os.PathLike[str],
    params: Params,
    state: State,
    model: Any,
    seed: int,
    skip: Sequence[str] = (),
    image_size: int = 32,
) -> tuple[Params, State]:
    """Returns weights in a model's dtypes, with a new classifier for other classes."""
    if isinstance(model, Model):
        head = head_module(model.spec.module_name)
        weight = params.get(head, {}).get("w")
        if weight is not None and weight.shape[-1] != model.num_classes:
            print(
                f"init      {path} has {weight.shape[-1]} classes, this run has "
                f"{model.num_classes}: the classifier is re-initialized",
                flush=True,
            )
            skip = (*skip, f"{head}:*")
    return fit_weights(
        path, params, state, model, skip, seed=seed, image_size=image_size, cast=True
    )


def _read_own(path: pathlib.Path) -> tuple[Params, State, WeightsInfo]:
    """Reads a file of `save_weights`."""
    tensors, metadata = read_safetensors(path)
    trees: dict[str, dict[str, dict[str, jax.Array]]] = {"params": {}, "state": {}}
    for key, array in tensors.items():
        kind, *names = key.split(SEPARATOR)
        if kind not in trees or len(names) != 2:
            raise UserError(
                f"{path} was not written by nfnets.save_weights: it has a tensor {key!r}; "
                "`nfnets info` shows its format"
            )
        trees[kind].setdefault(names[0], {})[names[1]] = jnp.asarray(array)
    info, found = _parse_info(path, metadata), checksum(tensors)
    expected = info.checksum
    if expected is not None and expected != found:
        raise UserError(
            f"{path} is damaged: its tensors have the checksum {found[:12]}..., but "
            f"{expected[:12]}... was recorded; copy or download it again"
        )
    return trees["params"], trees["state"], info


def _parse_info(
    path: str | pathlib.Path, metadata: Mapping[str, str] | None
) -> WeightsInfo:
    try:
        return WeightsInfo.from_json((metadata or {}).get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise UserError(f"{path} has invalid metadata: {error}") from None


def _read_timm_config(path: pathlib.Path) -> WeightsInfo:
    """Returns what timm's config.json beside a file says; nothing if there is none."""
    file = path.with_name(CONFIG_FILE)
    if not file.is_file():
        return WeightsInfo()
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if "architecture" not in config:
            return WeightsInfo()
        return _parse_timm_config(config)
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file} is not a config.json of timm: {error!r}") from None


def _parse_timm_config(config: Mapping[str, Any]) -> WeightsInfo:
    settings = config.get("pretrained_cfg", config)
    mode, interpolation = settings.get("crop_mode", "center"), settings["interpolation"]
    if mode not in ("center", "squash") or interpolation != "bicubic":
        raise ValueError(f"crop_mode {mode}, interpolation {interpolation}")
    size, fraction = settings["input_size"], settings["crop_pct"]
    if settings.get("test_input_size"):
        size = settings["test_input_size"]
        fraction = settings.get("test_crop_pct") or fraction
    names = config.get("label_names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if not names and str(settings.get("tag")).endswith("in1k"):
        names = imagenet_classes() if config["num_classes"] == _IMAGENET else None
    return WeightsInfo(
        model=model_of_architecture(config["architecture"]),
        class_names=tuple(names) if names else None,
        image_size=size[-1],
        mean_rgb=tuple(255 * value for value in settings["mean"]),
        stddev_rgb=tuple(255 * value for value in settings["std"]),
        preprocessing=mode,
        crop_fraction=fraction,
    )


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1000 classes: WordNet's first word for each."""
    text = pathlib.Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8")
    return tuple(re.split(r",\s+", text.strip()))
