"""Tables of variants: sizes, rates and recipes of all models by name.

NFNet: "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
tables 1 and 6 and section 5. Other families and their recipes: the published code of
"Characterizing signal propagation to close the performance gap in unnormalized ResNets"
(2021). timm's networks: `nfnets.models.timm_variants`.
"""

import dataclasses
import difflib

from nfnets.errors import UserError
from nfnets.models import timm_variants
from nfnets.models.spec import (
    NFNET_DEPTHS,
    NFNET_WIDTHS,
    BlockSpec,
    ModelSpec,
    Recipe,
    StemConv,
    nfnet_stem,
)

# suffix -> (train px, test px, dropout, RandAugment magnitude, top-1 %). The depth of Fn
# is (n + 1) times that of F0.
_NFNET_VARIANTS: dict[str, tuple[int, int, float, int, float | None]] = {
    "f0": (192, 256, 0.2, 5, 83.6),
    "f1": (224, 320, 0.3, 10, 84.7),
    "f2": (256, 352, 0.4, 10, 85.1),
    "f3": (320, 416, 0.4, 15, 85.7),
    "f4": (384, 512, 0.5, 15, 85.9),
    "f5": (416, 544, 0.5, 15, 86.0),
    "f6": (448, 576, 0.5, 15, None),  # 86.5 with SAM
    "f7": (480, 608, 0.5, 15, None),
}
_NFNET_PLUS_WIDTHS = (384, 768, 2048, 2048)


def _nfnet(
    name: str, widths: tuple[int, ...], depths: tuple[int, ...], group_width: int = 128
) -> ModelSpec:
    """Returns an NFNet with the recipe of F0."""
    return ModelSpec(
        name=name,
        module_name="NFNet",
        stem=nfnet_stem(widths[0] // 2),
        widths=widths,
        depths=depths,
        strides=(1, 2, 2, 2),
        block=BlockSpec(
            module_name="nf_block",
            alpha=0.2,
            bottleneck_ratio=0.5,
            group_width=group_width,
            spatial_convs=("conv1", "conv1b"),
            se_ratio=0.5,
        ),
        final_width=2 * widths[-1],
        activation="gelu",
        drop_rate=0.2,
        stochdepth_rate=0.25,
        recipe=Recipe(
            train_size=192,
            test_size=256,
            randaugment_layers=4,
            randaugment_magnitude=5,
            weight_decay=2e-5,
        ),
    )


def _nfnet_variant(suffix: str, plus: bool) -> ModelSpec:
    train_size, test_size, drop_rate, magnitude, top1 = _NFNET_VARIANTS[suffix]
    scale = int(suffix[1:]) + 1
    spec = _nfnet(
        f"nfnet_{suffix}_plus" if plus else f"nfnet_{suffix}",
        _NFNET_PLUS_WIDTHS if plus else NFNET_WIDTHS,
        tuple(scale * depth for depth in NFNET_DEPTHS),
    )
    recipe = Recipe(
        train_size=train_size,
        test_size=test_size,
        randaugment_layers=4,
        randaugment_magnitude=magnitude,
        weight_decay=2e-5,
        top1=None if plus else top1,
    )
    return spec.override({"drop_rate": drop_rate, "recipe": recipe})


def _nfnet_tiny() -> ModelSpec:
    """Returns a small NFNet for tests and the built-in digits."""
    spec = _nfnet("nfnet_tiny", (32, 64, 96, 96), (1, 1, 2, 1), group_width=16)
    recipe = Recipe(
        train_size=32,
        test_size=32,
        randaugment_layers=0,
        randaugment_magnitude=0,
        weight_decay=2e-5,
    )
    return spec.override({"drop_rate": 0.0, "stochdepth_rate": 0.0, "recipe": recipe})


# suffix -> (widths before the factor 3/4, depths, train px, test px, dropout).
_NF_REGNET_VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, float]] = {
    "b0": ((48, 104, 208, 440), (1, 3, 6, 6), 192, 224, 0.2),
    "b1": ((48, 104, 208, 440), (2, 4, 7, 7), 224, 256, 0.2),
    "b2": ((56, 112, 232, 488), (2, 4, 8, 8), 240, 272, 0.3),
    "b3": ((56, 128, 248, 528), (2, 5, 9, 9), 288, 320, 0.3),
    "b4": ((64, 144, 288, 616), (2, 6, 11, 11), 320, 384, 0.4),
    "b5": ((80, 168, 336, 704), (3, 7, 14, 14), 384, 456, 0.4),
    "b6": ((88, 184, 376, 792), (3, 8, 16, 16), 448, 528, 0.5),
    "b7": ((96, 208, 416, 880), (4, 10, 19, 19), 512, 600, 0.5),
    "b8": ((104, 232, 456, 968), (4, 11, 22, 22), 600, 672, 0.5),
}


def _nf_regnet(suffix: str) -> ModelSpec:
    base_widths, depths, train_size, test_size, drop_rate = _NF_REGNET_VARIANTS[suffix]
    widths = tuple(width * 3 // 4 for width in base_widths)
    return ModelSpec(
        name=f"nf_regnet_{suffix}",
        module_name="NF_RegNet",
        stem=(StemConv(name="initial_conv", channels=widths[0], stride=2),),
        widths=widths,
        depths=depths,
        strides=(2, 2, 2, 2),
        block=BlockSpec(
            module_name="nf_block",
            alpha=0.2,
            bottleneck_ratio=2.25,
            ratio_of_input=True,
            group_width=8,
            se_ratio=0.5,
            se_before_last=True,
        ),
        final_width=1280 * widths[-1] // 440,
        activation="silu",
        classifier_stddev=0.0,
        drop_rate=drop_rate,
        stochdepth_rate=0.1,
        recipe=Recipe(
            train_size=train_size,
            test_size=test_size,
            randaugment_layers=0,
            randaugment_magnitude=0,
            # Published up to B5; increases by 1e-5 per variant.
            weight_decay=(5 + int(suffix[1:])) * 1e-5,
        ),
    )


_RESNET_DEPTHS = {
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
    "288": (24, 24, 24, 24),
}
# ResNets without weight standardization, whose activations are not scaled and whose
# classifiers are initially zero.
_PLAIN_BLOCK = BlockSpec(
    module_name="",
    alpha=1.0,
    skip_gain=False,
    scale_inputs=False,
    weight_standardization=False,
    bottleneck_ratio=0.25,
    pool_shortcut=False,
)
_NF_RESNET_BLOCK = BlockSpec(
    module_name="nf_res_block", alpha=0.2, bottleneck_ratio=0.25, pool_shortcut=False
)
# (prefix, suffix) of the name around the depth -> (Haiku name, stochastic depth, block).
_RESNET_FAMILIES: dict[tuple[str, str], tuple[str, float, BlockSpec]] = {
    ("nf_resnet", ""): ("NF_ResNet", 0.1, _NF_RESNET_BLOCK),
    ("nf_seresnet", ""): (
        "NF_ResNet",
        0.1,
        dataclasses.replace(_NF_RESNET_BLOCK, se_ratio=0.25),
    ),
    ("resnet", ""): (
        "ResNet",
        0.0,
        dataclasses.replace(
            _PLAIN_BLOCK, module_name="res_block_v2", normalization="batch", se_scale=1.0
        ),
    ),
    ("resnet", "_v1"): (
        "ResNet",
        0.0,
        dataclasses.replace(
            _PLAIN_BLOCK,
            module_name="res_block_v1",
            normalization="batch",
            preactivation=False,
            se_scale=1.0,
        ),
    ),
    ("fixup_resnet", ""): (
        "FixUp_ResNet",
        0.1,
        dataclasses.replace(
            _PLAIN_BLOCK,
            module_name="res_block",
            normalization="fixup",
            preactivation=False,
            conv_init="fixup",
        ),
    ),
    ("skipinit_resnet", ""): (
        "SkipInit_ResNet",
        0.1,
        dataclasses.replace(
            _PLAIN_BLOCK, module_name="nf_res_block", skip_gain=True, conv_bias=True
        ),
    ),
}


def _resnet(prefix: str, depth: str, suffix: str) -> ModelSpec:
    module_name, stochdepth_rate, block = _RESNET_FAMILIES[prefix, suffix]
    is_plain = not block.weight_standardization
    return ModelSpec(
        name=f"{prefix}{depth}{suffix}",
        module_name=module_name,
        stem=(StemConv(name="initial_conv", channels=64, kernel_size=7, stride=2),),
        stem_pool=True,
        widths=(256, 512, 1024, 2048),
        depths=_RESNET_DEPTHS[depth],
        strides=(1, 2, 2, 2),
        block=block,
        final_width=None,
        activation="relu",
        scaled_activation=not is_plain,
        classifier_stddev=0.0 if is_plain else 0.01,
        drop_rate=0.0,
        stochdepth_rate=stochdepth_rate,
        recipe=Recipe(
            train_size=224,
            test_size=224,
            randaugment_layers=0,
            randaugment_magnitude=0,
            weight_decay=1e-4,
            preprocessing="crop_resize",
        ),
    )


def _all_specs() -> dict[str, ModelSpec]:
    specs = [_nfnet_tiny()]
    specs += [_nfnet_variant(suffix, plus=False) for suffix in _NFNET_VARIANTS]
    specs += [_nfnet_variant(suffix, plus=True) for suffix in _NFNET_VARIANTS]
    specs += [_nf_regnet(suffix) for suffix in _NF_REGNET_VARIANTS]
    specs += [
        _resnet(prefix, depth, suffix)
        for prefix, suffix in _RESNET_FAMILIES
        for depth in _RESNET_DEPTHS
    ]
    specs += timm_variants.all_specs()
    return {spec.name: spec for spec in specs}


_SPECS = _all_specs()


def list_models() -> tuple[str, ...]:
    """Returns the names that `nfnets.create_model` accepts."""
    return tuple(_SPECS)


def get_spec(name: str) -> ModelSpec:
    """Returns the description of a model.

    Raises:
      UserError: the name is unknown; the message lists similar ones.
    """
    if name not in _SPECS:
        close = difflib.get_close_matches(name, _SPECS, n=3) or list(_SPECS)[:3]
        raise UserError(
            f"unknown model {name!r}; did you mean {' or '.join(close)}? "
            "nfnets.list_models() lists all names"
        )
    return _SPECS[name]
