"""Optimization: AGC, the optimizer, learning-rate schedules, EMA and SAM."""

from nfnets.optim.agc import AdaptiveGradClipState, adaptive_grad_clip, unitwise_norm
from nfnets.optim.ema import update_ema
from nfnets.optim.optimizer import OPTIMIZERS, clipping_state, create_optimizer
from nfnets.optim.sam import sam_perturbation
from nfnets.optim.schedules import create_schedule, warmup_cosine

__all__ = [
    "OPTIMIZERS",
    "AdaptiveGradClipState",
    "adaptive_grad_clip",
    "clipping_state",
    "create_optimizer",
    "create_schedule",
    "sam_perturbation",
    "unitwise_norm",
    "update_ema",
    "warmup_cosine",
]
