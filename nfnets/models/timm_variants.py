"""Tables of timm's normalizer-free networks, other than its copies of the published ones.

They consist of the published networks' blocks, with the differences listed in `_block` and
`_spec`. Names that the published networks have taken get the prefix `timm_`. Structure,
image sizes and normalization are those of timm 1.0, accuracies those of timm's
`results-imagenet.csv` at test size. timm leaves dropout, stochastic depth and weight decay
to its training script; see `configs/eca_nfnet_l0.py`.
"""

import dataclasses
from typing import Any

from nfnets.models.spec import (
    NFNET_DEPTHS,
    NFNET_WIDTHS,
    BlockSpec,
    ModelSpec,
    Recipe,
    StemConv,
    nfnet_stem,
)

# "l0" to "l3" of eca_nfnet -> (train px, test px, width of final_conv, top-1 %).
_LIGHT_VARIANTS: dict[int, tuple[int, int, int, float | None]] = {
    0: (224, 288, 2304, 82.6),
    1: (256, 320, 3072, 84.0),
    2: (320, 384, 3072, 84.7),
    3: (352, 448, 3072, None),
}
_LIGHT: dict[str, Any] = {"bottleneck_ratio": 0.25, "group_width": 64}
# Train and test px of nfnet_f0 to f7.
_NFNET_SIZES = (
    (192, 256),
    (224, 320),
    (256, 352),
    (320, 416),
    (384, 512),
    (416, 544),
    (448, 576),
    (480, 608),
)
# "b0" to "b5" -> (widths before the factor 3/4, depths, train px, test px, top-1 %).
_REGNET_VARIANTS: dict[
    int, tuple[tuple[int, ...], tuple[int, ...], int, int, float | None]
] = {
    0: ((48, 104, 208, 440), (1, 3, 6, 6), 192, 256, None),
    1: ((48, 104, 208, 440), (2, 4, 7, 7), 256, 288, 79.3),
    2: ((56, 112, 232, 488), (2, 4, 8, 8), 240, 272, None),
    3: ((56, 128, 248, 528), (2, 5, 9, 9), 288, 320, None),
    4: ((64, 144, 288, 616), (2, 6, 11, 11), 320, 384, None),
    5: ((80, 168, 336, 704), (3, 7, 14, 14), 384, 456, None),
}
_RESNET_DEPTHS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Prefix of the name -> fields of the block.
_RESNET_FAMILIES: dict[str, dict[str, float]] = {
    "nf_resnet": {},
    "nf_seresnet": {"se_ratio": 1 / 16},
    "nf_ecaresnet": {"eca_gamma": 2.0},
}
# Published networks of these names differ.
_TAKEN = ("nf_resnet50", "nf_resnet101", "nf_seresnet50", "nf_seresnet101")


def all_specs() -> list[ModelSpec]:
    """Returns the descriptions of all of timm's networks."""
    specs = [
        _nfnet(
            "nfnet_l0",
            _recipe(224, 288, 82.8, crop_fraction=1.0),
            final_width=2304,
            **_LIGHT,
            se_ratio=0.25,
        )
    ]
    for number, (train_size, test_size, width, top1) in _LIGHT_VARIANTS.items():
        spec = _nfnet(
            f"eca_nfnet_l{number}",
            _recipe(train_size, test_size, top1, crop_fraction=1.0),
            depths=_scaled_depths(number),
            final_width=width,
            **_LIGHT,
            eca_gamma=2.0,
        )
        specs.append(spec)
    for number, sizes in enumerate(_NFNET_SIZES):
        spec = _nfnet(
            f"timm_nfnet_f{number}",
            _recipe(*sizes),
            depths=_scaled_depths(number),
            final_width=3072,
            activation="gelu_exact",
            bottleneck_ratio=0.5,
            group_width=128,
            se_ratio=0.5,
        )
        specs.append(spec)
    specs += [_regnet(number) for number in _REGNET_VARIANTS]
    specs += [
        _resnet(prefix, depth) for prefix in _RESNET_FAMILIES for depth in _RESNET_DEPTHS
    ]
    test_recipe = _recipe(160, 160, crop_fraction=0.95)
    gray = (0.5 * 255,) * 3
    specs.append(
        _nfnet(
            "test_nfnet",
            dataclasses.replace(test_recipe, mean_rgb=gray, stddev_rgb=gray),
            widths=(32, 64, 96, 128),
            depths=(1, 1, 1, 1),
            final_width=192,
            bottleneck_ratio=0.25,
            group_width=8,
            se_ratio=0.25,
        )
    )
    return specs


def _block(module_name: str = "nf_block", **fields: Any) -> BlockSpec:
    """Returns a block with timm's differences from the published ones.

    timm has no skip gains (the gains of the branches' last convolutions start at 0
    instead), adds its epsilon to the variance of the weights, pads on both sides, and
    rounds widths to multiples of 8.
    """
    return BlockSpec(
        module_name=module_name,
        alpha=0.2,
        skip_gain=False,
        zero_last_gain=True,
        weight_eps=1e-5,
        weight_eps_rule="added",
        padding="symmetric",
        channel_divisor=8,
        **fields,
    )


def _spec(**fields: Any) -> ModelSpec:
    """Returns a network with the gammas in the weights instead of the activations."""
    return ModelSpec(gamma_in_weights=True, drop_rate=0.0, stochdepth_rate=0.0, **fields)


def _recipe(
    train_size: int,
    test_size: int,
    top1: float | None = None,
    crop_fraction: float = 0.9,
) -> Recipe:
    """Returns a recipe with the augmentation of timm's RandAugment recipes."""
    return Recipe(
        train_size=train_size,
        test_size=test_size,
        randaugment_layers=2,
        randaugment_magnitude=9,
        weight_decay=1e-5,
        top1=top1,
        preprocessing="center",
        crop_fraction=crop_fraction,
    )


def _scaled_depths(number: int) -> tuple[int, ...]:
    return tuple((number + 1) * depth for depth in NFNET_DEPTHS)


def _nfnet(
    name: str,
    recipe: Recipe,
    *,
    widths: tuple[int, ...] = NFNET_WIDTHS,
    depths: tuple[int, ...] = NFNET_DEPTHS,
    final_width: int,
    activation: str = "silu",
    **block: Any,
) -> ModelSpec:
    return _spec(
        name=name,
        module_name="NFNet",
        stem=nfnet_stem(128),
        widths=widths,
        depths=depths,
        strides=(1, 2, 2, 2),
        block=_block(spatial_convs=("conv1", "conv1b"), **block),
        final_width=final_width,
        activation=activation,
        recipe=recipe,
    )


def _regnet(number: int) -> ModelSpec:
    base_widths, depths, train_size, test_size, top1 = _REGNET_VARIANTS[number]
    block = _block(
        bottleneck_ratio=2.25,
        ratio_of_input=True,
        group_width=8,
        se_ratio=0.5,
        se_before_last=True,
    )
    widths = tuple(block.round_channels(width * 0.75) for width in base_widths)
    return _spec(
        name=f"timm_nf_regnet_b{number}",
        module_name="NF_RegNet",
        stem=(StemConv(name="initial_conv", channels=widths[0], stride=2),),
        widths=widths,
        depths=depths,
        strides=(2, 2, 2, 2),
        block=block,
        final_width=block.round_channels(1280 * base_widths[-1] // 440 * 0.75),
        activation="silu",
        recipe=_recipe(train_size, test_size, top1),
    )


def _resnet(prefix: str, depth: int) -> ModelSpec:
    name = f"{prefix}{depth}"
    has_weights = name == "nf_resnet50"
    return _spec(
        name=f"timm_{name}" if name in _TAKEN else name,
        module_name="NF_ResNet",
        stem=(StemConv(name="initial_conv", channels=64, kernel_size=7, stride=2),),
        stem_pool=True,
        widths=(256, 512, 1024, 2048),
        depths=_RESNET_DEPTHS[depth],
        strides=(1, 2, 2, 2),
        block=_block("nf_res_block", bottleneck_ratio=0.25, **_RESNET_FAMILIES[prefix]),
        final_width=None,
        activation="relu",
        # test_input_size is given for the network with pretrained weights only.
        recipe=_recipe(256, 288, 80.6, 0.94) if has_weights else _recipe(224, 224),
    )
