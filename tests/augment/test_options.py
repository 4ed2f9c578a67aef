"""Ranges of `AugmentOptions` and the messages for values outside of them."""

import dataclasses
import json
import subprocess
import sys

import pytest

import nfnets
from nfnets.augment import AugmentOptions


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("order", ("mix", "blur"), "order may contain mix, distort, cutout; got 'blur'"),
        ("order", ("mix", "mix"), "order may contain each stage once; got 'mix' again"),
        ("mixup_alpha", 0.0, r"mixup_alpha must be in \(0, 100\]; got 0.0"),
        ("cutmix_alpha", 101.0, r"cutmix_alpha must be in \(0, 100\]; got 101.0"),
        ("cutmix_alpha", float("nan"), "cutmix_alpha must be in"),
        ("mixup_fraction", -0.1, r"mixup_fraction must be in \[0, 1\]; got -0.1"),
        ("cutmix_fraction", 0.6, "must add up to at most 1; got 1.1"),
        ("randaugment_layers", -1, "randaugment_layers must be an integer, 0 or more"),
        ("randaugment_layers", None, "randaugment_layers .* got None"),
        ("randaugment_magnitude", 1.5, "randaugment_magnitude must be an integer"),
        ("randaugment_magnitude", 31, "randaugment_magnitude must be at most 30; got 31"),
        ("cutout_size", -1, "cutout_size must be an integer, 0 or more; got -1"),
        ("autoaugment", True, "randaugment_layers must be 0 if autoaugment is True"),
    ],
)
def test_values_out_of_range(field, value, message):
    with pytest.raises(nfnets.UserError, match=f"^augment..*{message}") as info:
        AugmentOptions(**{field: value})
    assert "\n" not in str(info.value)


def test_limits_are_inside():
    AugmentOptions(mixup_alpha=100.0, mixup_fraction=1.0, cutmix_fraction=0.0)
    AugmentOptions(mixup_fraction=0.1, cutmix_fraction=0.9, randaugment_magnitude=30)
    AugmentOptions(autoaugment=True, randaugment_layers=0, randaugment_magnitude=0)


def test_options_are_hashable_after_a_round_trip():
    options = AugmentOptions()
    again = AugmentOptions(**json.loads(json.dumps(dataclasses.asdict(options))))
    assert again == options and hash(again) == hash(options)


def test_mixes():
    assert AugmentOptions().mixes
    assert not AugmentOptions(order=("distort",)).mixes
    assert not AugmentOptions(mixup_fraction=0.0, cutmix_fraction=0.0).mixes
    assert AugmentOptions(mixup_fraction=0.0, cutmix_fraction=0.1).mixes


def test_options_need_neither_jax_nor_numpy():
    code = (
        "import sys; from nfnets.augment.options import AugmentOptions; AugmentOptions();"
        "assert not {'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
