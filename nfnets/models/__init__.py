"""Networks: tables of variants, layers, and one residual network for all of them."""

from typing import TYPE_CHECKING

from nfnets import lazy

if TYPE_CHECKING:
    from nfnets.models.counting import (
        count_activations,
        count_multiply_adds,
        count_parameters,
        listing_hash,
    )
    from nfnets.models.folding import fold
    from nfnets.models.model import Model, Params, State, create_model
    from nfnets.models.preprocessing import normalize_images
    from nfnets.models.spec import REMAT
    from nfnets.models.variants import get_spec, list_models

__all__ = [
    "REMAT",
    "Model",
    "Params",
    "State",
    "count_activations",
    "count_multiply_adds",
    "count_parameters",
    "create_model",
    "fold",
    "get_spec",
    "list_models",
    "listing_hash",
    "normalize_images",
]

# Imported on first use: the command line needs names and specs, but not JAX and Haiku.
__getattr__, __dir__ = lazy.attach(
    __name__,
    {
        "nfnets.models.counting": (
            "count_activations",
            "count_multiply_adds",
            "count_parameters",
            "listing_hash",
        ),
        "nfnets.models.folding": ("fold",),
        "nfnets.models.model": ("Model", "Params", "State", "create_model"),
        "nfnets.models.preprocessing": ("normalize_images",),
        "nfnets.models.spec": ("REMAT",),
        "nfnets.models.variants": ("get_spec", "list_models"),
    },
)
