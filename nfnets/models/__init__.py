"""Networks: tables of variants, layers, and one residual network for all of them."""

from nfnets.models.model import Model, Params, State, create_model
from nfnets.models.variants import get_spec, list_models

__all__ = ["Model", "Params", "State", "create_model", "get_spec", "list_models"]
