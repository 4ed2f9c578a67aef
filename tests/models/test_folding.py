"""Folded networks have the outputs of the original ones."""

import dataclasses

import jax
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models.counting import parameter_shapes
from nfnets.models.standardization import standardize_weight
from tests import reference

# Small forms of each family: groups, strided and unstrided projections, plain blocks.
SMALL = {"widths": (32, 64), "depths": (2, 1), "strides": (2, 2)}
MODELS = {
    "nfnet_tiny": {"depths": (1, 2), "widths": (32, 64), "strides": (1, 2)},
    "nfnet_tiny timm": {
        "depths": (1, 2),
        "widths": (32, 64),
        "strides": (1, 2),
        "timm_compat": True,
    },
    "nf_regnet_b0": {**SMALL, "final_width": 48},
    "nf_resnet50": SMALL,
    "nf_seresnet50": SMALL,
    "skipinit_resnet50": SMALL,
    "eca_nfnet_l0": {**SMALL, "group_width": 8, "final_width": 48},
    "timm_nf_regnet_b0": {**SMALL, "final_width": 48},
}


def run(model, params, images):
    return jax.jit(lambda p, x: model.apply(p, {}, None, x)[0])(params, images)


def relative_difference(got, want):
    return np.max(np.abs(got - want)) / np.std(want)


@pytest.mark.parametrize("case", MODELS)
def test_all_outputs_are_the_same(case):
    model = nfnets.create_model(case.split()[0], 10, **MODELS[case])
    params = reference.formula_params(parameter_shapes(model))
    images = reference.formula_images(2, 32)
    folded, folded_params = nfnets.fold(model, params)
    want, got = run(model, params, images), run(folded, folded_params, images)
    assert got.keys() == want.keys()
    for name in want:
        assert relative_difference(got[name], want[name]) < 1e-4, name
    # Plain convolutions remain, and a scalar where gates follow the branch.
    names = {name for arrays in folded_params.values() for name in arrays}
    assert names <= {"w", "b", "skip_gain"}
    assert ("skip_gain" in names) == (case.startswith(("nfnet", "nf_se", "eca_nfnet")))
    shapes = parameter_shapes(folded)
    assert {m: set(a) for m, a in shapes.items()} == {
        m: set(a) for m, a in folded_params.items()
    }


def test_a_branch_without_gain_is_folded_too():
    model = nfnets.create_model("nfnet_tiny", 10, **MODELS["nfnet_tiny"])
    params = dict(reference.formula_params(parameter_shapes(model)))
    params["NFNet/~/nf_block"] = {"skip_gain": np.zeros((), np.float32)}
    _, folded = nfnets.fold(model, params)
    assert folded["NFNet/~/nf_block"]["skip_gain"] == 0
    block = "NFNet/~/nf_block_1"
    gain = params[block]["skip_gain"]
    np.testing.assert_allclose(folded[block]["skip_gain"], 0.2 * 2 * gain, rtol=1e-6)


def test_networks_with_normalization_cannot_be_folded():
    for name in ("resnet50", "fixup_resnet50", "resnet50_v1"):
        with pytest.raises(UserError, match=f"{name} cannot be folded"):
            nfnets.fold(nfnets.create_model(name), {})
    with pytest.raises(UserError, match="nf_resnet50 cannot be folded"):
        nfnets.fold(nfnets.create_model("nf_resnet50", preactivation=False), {})


def test_timm_compat_is_two_rules():
    model = nfnets.create_model("nfnet_tiny", timm_compat=True)
    assert model.spec.activation == "gelu_exact"
    assert model.spec.block.weight_eps == 1e-5
    assert model.spec.block.weight_eps_rule == "added"
    plain = nfnets.create_model("nfnet_tiny")
    block = dataclasses.replace(model.spec.block, weight_eps=1e-4, weight_eps_rule="floor")
    assert dataclasses.replace(model.spec, activation="gelu", block=block) == plain.spec
    with pytest.raises(
        UserError, match="timm_compat is for the published NFNets, not for resnet50"
    ):
        nfnets.create_model("resnet50", timm_compat=True)
    with pytest.raises(UserError, match="weight_eps_rule must be one of floor, added"):
        nfnets.create_model("nfnet_tiny", weight_eps_rule="none")


@pytest.mark.long
def test_f0_is_the_same():
    model = nfnets.create_model("nfnet_f0")
    params = reference.formula_params(parameter_shapes(model))
    images = reference.formula_images(2, 64)
    want, got = run(model, params, images), run(*nfnets.fold(model, params), images)
    for name in want:
        assert relative_difference(got[name], want[name]) < 1e-4, name


def test_the_eps_that_timm_adds_by_hand():
    # Mean 4, variance 5, fan-in 4: (w - 4) / sqrt((5 + 3) * 4), times the gain 2.
    weight = np.array([[1.0], [3.0], [5.0], [7.0]], np.float32)
    got = standardize_weight(weight, np.full(1, 2.0), 3.0, "added")
    np.testing.assert_allclose(got[:, 0], 2 * np.array([-3, -1, 1, 3]) / 32**0.5, rtol=1e-6)
