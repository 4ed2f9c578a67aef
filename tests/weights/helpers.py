"""A model of two blocks with formula weights."""

import jax
import numpy as np

import nfnets
from nfnets.models.counting import parameter_shapes
from tests import reference

MICRO = {"widths": (16, 32), "depths": (1, 1), "strides": (1, 2), "group_width": 8}
CLASSES = 5


def micro_model(**overrides):
    return nfnets.create_model("nfnet_tiny", CLASSES, **{**MICRO, **overrides})


def micro_params(model=None):
    shapes = parameter_shapes(model or micro_model())
    return jax.tree.map(np.asarray, reference.formula_params(shapes))


def assert_same_trees(got, want):
    assert {m: sorted(a) for m, a in got.items()} == {m: sorted(a) for m, a in want.items()}
    for module, arrays in want.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(got[module][name], array, f"{module}:{name}")
