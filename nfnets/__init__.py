"""Normalizer-free networks in JAX and Haiku.

Importing this package needs jax, haiku, optax, chex, jmp and numpy only; what reads data
or files is in `nfnets.data`, `nfnets.training` and `nfnets.weights`.
"""

from nfnets.models import create_model, list_models
from nfnets.optim import adaptive_grad_clip, create_optimizer

__version__ = "0.1.0"

__all__ = ["adaptive_grad_clip", "create_model", "create_optimizer", "list_models"]
