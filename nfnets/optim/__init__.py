"""Optimization: adaptive gradient clipping, the optimizer, schedules, averages."""

from nfnets.optim.agc import AdaptiveGradClipState, adaptive_grad_clip, unitwise_norm
from nfnets.optim.ema import update_ema
from nfnets.optim.norm import global_norm
from nfnets.optim.optimizer import OPTIMIZERS, clipping_state, create_optimizer
from nfnets.optim.sam import sam_perturbation
from nfnets.optim.schedules import warmup_cosine

__all__ = [
    "OPTIMIZERS",
    "AdaptiveGradClipState",
    "adaptive_grad_clip",
    "clipping_state",
    "create_optimizer",
    "global_norm",
    "sam_perturbation",
    "unitwise_norm",
    "update_ema",
    "warmup_cosine",
]
