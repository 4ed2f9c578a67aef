"""Weights in files: safetensors, the published checkpoints, timm."""

from nfnets.weights.files import (
    initial_weights,
    load_weights,
    read_weights_info,
    save_weights,
)
from nfnets.weights.fitting import fit_weights
from nfnets.weights.info import WeightsInfo, describe_model, model_of

__all__ = [
    "WeightsInfo",
    "describe_model",
    "fit_weights",
    "initial_weights",
    "load_weights",
    "model_of",
    "read_weights_info",
    "save_weights",
]
