"""Weights in files."""

from nfnets.weights.files import (
    WeightsInfo,
    initial_weights,
    load_weights,
    read_weights_info,
    save_weights,
)

__all__ = [
    "WeightsInfo",
    "initial_weights",
    "load_weights",
    "read_weights_info",
    "save_weights",
]
