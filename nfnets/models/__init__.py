"""Networks: tables of variants, layers, and one residual network for all of them."""

from nfnets.models.counting import (
    count_activations,
    count_multiply_adds,
    count_parameters,
    listing_hash,
)
from nfnets.models.folding import fold
from nfnets.models.model import Model, Params, State, create_model
from nfnets.models.network import REMAT
from nfnets.models.preprocessing import normalize_images
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
