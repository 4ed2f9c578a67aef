"""Normalizer-free networks in JAX and Haiku.

Importing this package needs jax, haiku, optax, chex, jmp and numpy only; what reads data
or files is in `nfnets.data`, `nfnets.training` and `nfnets.weights`.
"""

import importlib
import time
from typing import Any

# Before the imports: files that change later are not what this process has read.
IMPORTED_NS = time.time_ns()

from nfnets.models import create_model, fold, list_models  # noqa: E402
from nfnets.optim import (  # noqa: E402
    adaptive_grad_clip,
    create_optimizer,
    sam_perturbation,
)

__version__ = "0.1.0"

# Imported when first used: they need safetensors.
_FROM_WEIGHTS = ("WeightsInfo", "load_weights", "read_weights_info", "save_weights")

__all__ = [
    "adaptive_grad_clip",
    "create_model",
    "create_optimizer",
    "fold",
    "list_models",
    "sam_perturbation",
    *_FROM_WEIGHTS,
]


def __getattr__(name: str) -> Any:
    if name in _FROM_WEIGHTS:
        return getattr(importlib.import_module("nfnets.weights"), name)
    raise AttributeError(f"module 'nfnets' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_WEIGHTS})
