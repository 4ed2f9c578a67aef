"""A model of two blocks with formula weights, and small forms of timm's networks."""

import hashlib

import jax
import numpy as np

import nfnets
from nfnets.models.counting import parameter_shapes
from nfnets.weights.timm import to_timm
from tests import reference

MICRO = {"widths": (16, 32), "depths": (1, 1), "strides": (1, 2), "group_width": 8}
CLASSES = 5


def micro_model(**overrides):
    return nfnets.create_model("nfnet_tiny", CLASSES, **{**MICRO, **overrides})


def micro_params(model=None):
    shapes = parameter_shapes(model or micro_model())
    return jax.tree.map(np.asarray, reference.formula_params(shapes))


# Case -> (model, overrides, the same as fields of timm's NfCfg). Two stages where timm's
# configuration allows it, and every kind of stem, activation and gate.
_SMALL = {"widths": (32, 48), "depths": (1, 2)}
GOLDEN_TIMM = {
    "test_nfnet": ("test_nfnet", {}, {}),
    "eca_nfnet": (
        "eca_nfnet_l0",
        {**_SMALL, "strides": (1, 2), "group_width": 8, "final_width": 64},
        {"channels": (32, 48), "depths": (1, 2), "group_size": 8, "num_features": 64},
    ),
    "nfnet_f": (
        "timm_nfnet_f0",
        {**_SMALL, "strides": (1, 2), "group_width": 8, "final_width": 64},
        {"channels": (32, 48), "depths": (1, 2), "group_size": 8, "num_features": 64},
    ),
    "nf_regnet": (
        "timm_nf_regnet_b1",
        {**_SMALL, "strides": (2, 2), "final_width": 64},
        {
            "channels": (32, 48),
            "depths": (1, 2),
            "stem_chs": 40,
            "num_features": 64,
            "width_factor": 1.0,
        },
    ),
    "nf_ecaresnet": (
        "nf_ecaresnet26",
        {**_SMALL, "strides": (1, 2)},
        {"channels": (32, 48), "depths": (1, 2)},
    ),
}


def golden_params(model):
    """Formula parameters with timm's names and layouts."""
    shapes = jax.tree.map(
        lambda x: np.broadcast_to(np.float32(0), x.shape), parameter_shapes(model)
    )
    return {key: golden_array(key, array.shape) for key, array in to_timm(shapes).items()}


def golden_array(key, shape):
    layer, _, name = key.rpartition(".")
    array = reference.formula_array(f"{layer}:{name}", shape)
    return 3 * array if name == "weight" else array


def timm_listing_hash(tensors):
    """SHA-256 of timm's names and shapes."""
    lines = sorted(f"{k}:{'x'.join(map(str, array.shape))}" for k, array in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
