"""Weights: safetensors files, the published checkpoints, timm, the Hugging Face Hub."""

from nfnets.weights.files import save_weights
from nfnets.weights.fitting import fit_weights
from nfnets.weights.folders import save_pretrained
from nfnets.weights.hub import find_weights
from nfnets.weights.info import WeightsInfo, describe_model, model_of
from nfnets.weights.reading import (
    from_pretrained,
    initial_weights,
    load_weights,
    read_weights,
    read_weights_info,
)

__all__ = [
    "WeightsInfo",
    "describe_model",
    "find_weights",
    "fit_weights",
    "from_pretrained",
    "initial_weights",
    "load_weights",
    "model_of",
    "read_weights",
    "read_weights_info",
    "save_pretrained",
    "save_weights",
]
