"""The tables of variants, the single source of what follows from a model's name.

NFNet: "High-Performance Large-Scale Image Recognition Without Normalization" (2021),
tables 1 and 6 and section 5.
"""

import difflib

from nfnets.models.spec import BlockSpec, ModelSpec, Recipe, StemConv

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
_NFNET_DEPTHS = (1, 2, 6, 3)
_NFNET_WIDTHS = (256, 512, 1536, 1536)
_NFNET_PLUS_WIDTHS = (384, 768, 2048, 2048)


def _nfnet(
    name: str, widths: tuple[int, ...], depths: tuple[int, ...], group_width: int = 128
) -> ModelSpec:
    """An NFNet with F0's recipe; the ends' widths follow from the stages'."""
    return ModelSpec(
        name=name,
        module_name="NFNet",
        stem=(
            StemConv(name="stem_conv0", channels=16, stride=2),
            StemConv(name="stem_conv1", channels=32),
            StemConv(name="stem_conv2", channels=64),
            StemConv(name="stem_conv3", channels=widths[0] // 2, stride=2),
        ),
        widths=widths,
        depths=depths,
        strides=(1, 2, 2, 2),
        block=BlockSpec(
            module_name="nf_block",
            bottleneck_ratio=0.5,
            group_width=group_width,
            spatial_convs=("conv1", "conv1b"),
            se_ratio=0.5,
            se_scale=2.0,
            alpha=0.2,
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
        _NFNET_PLUS_WIDTHS if plus else _NFNET_WIDTHS,
        tuple(scale * depth for depth in _NFNET_DEPTHS),
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
    """F0's block at widths and sizes for tests and the built-in digits."""
    spec = _nfnet("nfnet_tiny", (32, 64, 96, 96), (1, 1, 2, 1), group_width=16)
    recipe = Recipe(
        train_size=32,
        test_size=32,
        randaugment_layers=0,
        randaugment_magnitude=0,
        weight_decay=2e-5,
    )
    return spec.override({"drop_rate": 0.0, "stochdepth_rate": 0.0, "recipe": recipe})


def _all_specs() -> dict[str, ModelSpec]:
    specs = [_nfnet_tiny()]
    specs += [_nfnet_variant(suffix, plus=False) for suffix in _NFNET_VARIANTS]
    specs += [_nfnet_variant(suffix, plus=True) for suffix in _NFNET_VARIANTS]
    return {spec.name: spec for spec in specs}


_SPECS = _all_specs()


def list_models() -> tuple[str, ...]:
    """Returns the names that `nfnets.create_model` accepts."""
    return tuple(_SPECS)


def get_spec(name: str) -> ModelSpec:
    """Returns the description of a model.

    Raises:
      ValueError: the name is unknown; the message gives the nearest ones.
    """
    if name not in _SPECS:
        close = difflib.get_close_matches(name, _SPECS, n=3) or list(_SPECS)[:3]
        raise ValueError(
            f"unknown model {name!r}; did you mean {' or '.join(close)}? "
            "nfnets.list_models() gives all names"
        )
    return _SPECS[name]
