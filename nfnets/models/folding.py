"""The inference form: everything that depends on weights alone, computed once.

A normalizer-free network spends part of every forward pass on its weights and on
constants. All of that is linear in a convolution next to it, so that a network of plain
convolutions with biases is left, which the same `ResidualNet` builds:

| factor | goes into |
|---|---|
| weight standardisation, gain | the convolution's own weight |
| gamma of an activation, 1 / beta | the weights of the convolutions after it |
| gamma of the last activation | the classifier's weight |
| alpha, skip gain | the branch's last weight and bias |

Where squeeze-and-excite follows the branch's last convolution and so sees what leaves it,
alpha, skip gain and the factor on the gates become one scalar on the branch instead.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets.models import activations, layers
from nfnets.models.counting import observe_forward
from nfnets.models.model import Model, Outputs, Params
from nfnets.models.network import ResidualNet
from nfnets.models.residual import ResidualBlock
from nfnets.models.spec import BlockSpec, ModelSpec

_LAST_CONV = "conv2"


def fold(model: Model, params: Params) -> tuple[Model, Params]:
    """Turns a trained network into one of plain convolutions, for inference.

    Example:

        folded, folded_params = nfnets.fold(model, params)
        outputs, _ = folded.apply(folded_params, {}, None, images)

    Args:
      model: of a family without batch normalisation and FixUp's scalars.
      params: module -> name -> array.

    Returns:
      (model, params), which give the same outputs up to rounding when not training.

    Raises:
      ValueError: the family cannot be folded.
    """
    spec = model.spec
    if spec.block.normalization != "none" or not spec.block.preactivation:
        raise ValueError(
            f"{model.name} has no folded form: only families without normalisation have"
        )
    gamma = activations.gamma(spec.activation) if spec.scaled_activation else 1.0
    betas = _expected_stds(model)
    scales = _input_scales(spec, betas, gamma)
    folded = {
        module: _fold_layer(spec, arrays, scales.get(module, 1.0))
        for module, arrays in params.items()
    }
    for block in betas:
        _fold_branch(spec.block, params.get(block, {}), folded, block)
    folded_spec = _folded_spec(spec)

    def forward(
        images: jax.Array,
        is_training: bool,
        example_index: jax.Array | None = None,
        *,
        outline: bool,
    ) -> Outputs:
        network = ResidualNet(folded_spec, model.num_classes, model.policy, outline=outline)
        outputs = network(images, is_training, example_index)
        return {**outputs, "pool": outputs["pool"] * gamma}

    return dataclasses.replace(model, spec=folded_spec, _forward=forward), folded


def _gates_last(block: BlockSpec) -> bool:
    return block.se_ratio is not None and not block.se_before_last


def _folded_spec(spec: ModelSpec) -> ModelSpec:
    """The description of what is left."""
    block = dataclasses.replace(
        spec.block,
        alpha=1.0,
        skip_gain=_gates_last(spec.block),
        scale_inputs=False,
        weight_standardization=False,
        conv_bias=spec.block.conv_bias or spec.block.weight_standardization,
        stem_bias=spec.block.weight_standardization,
        se_scale=1.0 if _gates_last(spec.block) else spec.block.se_scale,
    )
    return dataclasses.replace(spec, scaled_activation=False, block=block)


def _expected_stds(model: Model) -> dict[str, float]:
    """Each residual block's beta, by the block's Haiku path."""
    found = {}

    def record(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: hk.MethodContext,
    ) -> Any:
        if isinstance(context.module, ResidualBlock) and context.method_name == "__call__":
            found[context.module.module_name] = context.module.expected_std
        return call(*args, **kwargs)

    observe_forward(model, 32, record)
    return found


def _input_scales(
    spec: ModelSpec, betas: Mapping[str, float], gamma: float
) -> dict[str, float]:
    """What was multiplied onto the inputs of the layers, by their Haiku paths."""
    network = f"{spec.module_name}/~"
    scales = {f"{network}/{conv.name}": gamma for conv in spec.stem[1:]}
    scales[f"{network}/linear"] = gamma
    for block, beta in betas.items():
        for name in ("conv0", *spec.block.spatial_convs, _LAST_CONV, "conv_shortcut"):
            first = spec.block.scale_inputs and name in ("conv0", "conv_shortcut")
            scales[f"{block}/~/{name}"] = gamma / beta if first else gamma
    return scales


def _fold_layer(
    spec: ModelSpec, arrays: Mapping[str, jax.Array], scale: float
) -> dict[str, jax.Array]:
    if "gain" in arrays:
        weight = layers.standardize_weight(
            arrays["w"], arrays["gain"], spec.block.weight_eps, spec.block.weight_eps_rule
        )
        return {"w": weight * scale, "b": arrays["bias"]}
    return {k: v * scale if k == "w" else v for k, v in arrays.items()}


def _fold_branch(
    block: BlockSpec,
    own: Mapping[str, jax.Array],
    folded: dict[str, dict[str, jax.Array]],
    path: str,
) -> None:
    """Puts what multiplies a residual branch where it belongs, in `folded`."""
    scale = block.alpha * own.get("skip_gain", 1.0)
    if _gates_last(block):
        folded[path] = {"skip_gain": jnp.asarray(scale * block.se_scale, jnp.float32)}
        return
    folded.pop(path, None)
    last = f"{path}/~/{_LAST_CONV}"
    folded[last] = {name: array * scale for name, array in folded[last].items()}
