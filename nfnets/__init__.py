"""Normalizer-free networks in JAX and Haiku.

The public names are imported on first use, so that `nfnets.adaptive_grad_clip` needs only
jax and optax, and a mistake on a command line is reported before jax is imported.
"""

from typing import TYPE_CHECKING

from nfnets import lazy

if TYPE_CHECKING:
    from nfnets.errors import UserError
    from nfnets.models.folding import fold
    from nfnets.models.model import create_model
    from nfnets.models.variants import list_models
    from nfnets.optim.agc import adaptive_grad_clip
    from nfnets.optim.optimizer import create_optimizer
    from nfnets.optim.sam import sam_perturbation
    from nfnets.weights.files import save_weights
    from nfnets.weights.folders import save_pretrained
    from nfnets.weights.info import WeightsInfo
    from nfnets.weights.reading import from_pretrained, load_weights, read_weights_info

__version__ = "0.2.0"

__all__ = [
    "UserError",
    "WeightsInfo",
    "adaptive_grad_clip",
    "create_model",
    "create_optimizer",
    "fold",
    "from_pretrained",
    "list_models",
    "load_weights",
    "read_weights_info",
    "sam_perturbation",
    "save_pretrained",
    "save_weights",
]

__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "nfnets.errors": ("UserError",),
        "nfnets.models.folding": ("fold",),
        "nfnets.models.model": ("create_model",),
        "nfnets.models.variants": ("list_models",),
        "nfnets.optim.agc": ("adaptive_grad_clip",),
        "nfnets.optim.optimizer": ("create_optimizer",),
        "nfnets.optim.sam": ("sam_perturbation",),
        "nfnets.weights.files": ("save_weights",),
        "nfnets.weights.folders": ("save_pretrained",),
        "nfnets.weights.info": ("WeightsInfo",),
        "nfnets.weights.reading": ("from_pretrained", "load_weights", "read_weights_info"),
    },
)
