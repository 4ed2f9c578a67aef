"""The inference form of a network: everything that depends on weights alone, precomputed.

A normalizer-free network spends part of every forward pass on its weights and on
constant factors. Each factor is linear in a neighboring convolution, so that a network of
plain convolutions with biases remains, which `ResidualNet` builds as well:

| factor | moved into |
|---|---|
| weight standardization, gain | the convolution's own weight |
| gamma of an activation, 1 / beta | the weights of the convolutions after it |
| gamma of the last activation | the classifier's weight |
| gamma of standardized weights (timm) | the convolution's own weight |
| alpha, skip gain | the branch's last weight and bias |

Where gates follow the branch's last convolution, whose outputs they depend on, alpha, skip
gain and the factor on the gates are merged into the skip gain.
"""

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp

from nfnets.errors import UserError
from nfnets.models import activations
from nfnets.models.model import Model, Outputs, Params
from nfnets.models.names import block_name, head_module, module_path
from nfnets.models.network import ResidualNet
from nfnets.models.spec import BlockSpec, ModelSpec
from nfnets.models.standardization import standardize_weight

_LAST_CONV = "conv2"


def fold(model: Model, params: Params) -> tuple[Model, Params]:
    """Converts a trained network to one of plain convolutions, for inference.

    Example:

        folded, folded_params = nfnets.fold(model, params)
        outputs, _ = folded.apply(folded_params, {}, None, images)

    Args:
      model: a model of a family without batch normalization and without FixUp's scalars.
      params: module -> name -> array.

    Returns:
      (model, params) with the same outputs, up to rounding, in evaluation mode.

    Raises:
      UserError: the family cannot be folded.
    """
    spec = model.spec
    if not can_fold(model):
        raise UserError(
            f"{model.name} cannot be folded; only families without normalization can"
        )
    # As one program: operation by operation, compiling takes several times as long.
    folded = jax.jit(functools.partial(_fold_params, spec))(params)
    folded_spec = _folded_spec(spec)
    gamma, _ = activations.place_gamma(spec)

    def forward(
        images: jax.Array, is_training: bool, example_index: jax.Array | None = None
    ) -> Outputs:
        network = ResidualNet(folded_spec, model.num_classes, model.policy)
        outputs = network(images, is_training, example_index)
        return {**outputs, "pool": outputs["pool"] * gamma}

    return dataclasses.replace(model, spec=folded_spec, _forward=forward), folded


def can_fold(model: Model) -> bool:
    """Returns whether a model has neither normalization layers nor post-activations."""
    block = model.spec.block
    return block.normalization == "none" and block.preactivation


def _fold_params(spec: ModelSpec, params: Params) -> dict[str, dict[str, jax.Array]]:
    """Returns the parameters of the folded network."""
    gamma, weight_scale = activations.place_gamma(spec)
    betas = _expected_stds(spec)
    scales = _input_scales(spec, betas, gamma)
    folded = {
        module: _fold_layer(spec, arrays, scales.get(module, 1.0), weight_scale)
        for module, arrays in params.items()
    }
    for block in betas:
        _fold_branch(spec.block, params.get(block, {}), folded, block)
    return folded


def _folded_spec(spec: ModelSpec) -> ModelSpec:
    """Returns the description of the folded network."""
    block = dataclasses.replace(
        spec.block,
        alpha=1.0,
        skip_gain=spec.block.gates_last,
        scale_inputs=False,
        weight_standardization=False,
        conv_bias=spec.block.conv_bias or spec.block.weight_standardization,
        stem_bias=spec.block.weight_standardization,
        se_scale=1.0 if spec.block.gates_last else spec.block.se_scale,
    )
    return dataclasses.replace(spec, scaled_activation=False, block=block)


def _expected_stds(spec: ModelSpec) -> dict[str, float]:
    """Returns each block's beta by the block's path."""
    return {
        module_path(spec.module_name, block_name(spec.block.module_name, index)): std
        for index, std in enumerate(spec.expected_stds())
    }


def _input_scales(
    spec: ModelSpec, betas: Mapping[str, float], gamma: float
) -> dict[str, float]:
    """Returns the factors on the inputs of layers, by the layers' paths."""
    scales = {module_path(spec.module_name, conv.name): gamma for conv in spec.stem[1:]}
    scales[head_module(spec.module_name)] = gamma
    for block, beta in betas.items():
        for name in ("conv0", *spec.block.spatial_convs, _LAST_CONV, "conv_shortcut"):
            first = spec.block.scale_inputs and name in ("conv0", "conv_shortcut")
            scales[module_path(block, name)] = gamma / beta if first else gamma
    return scales


def _fold_layer(
    spec: ModelSpec, arrays: Mapping[str, jax.Array], scale: float, weight_scale: float
) -> dict[str, jax.Array]:
    if "gain" in arrays:
        weight = standardize_weight(
            arrays["w"], arrays["gain"], spec.block.weight_eps, spec.block.weight_eps_rule
        )
        return {"w": weight * (scale * weight_scale), "b": arrays["bias"]}
    return {k: v * scale if k == "w" else v for k, v in arrays.items()}


def _fold_branch(
    block: BlockSpec,
    own: Mapping[str, jax.Array],
    folded: dict[str, dict[str, jax.Array]],
    path: str,
) -> None:
    """Moves the factors on a residual branch, in `folded`."""
    scale = block.alpha * own.get("skip_gain", 1.0)
    if block.gates_last:
        folded[path] = {"skip_gain": jnp.asarray(scale * block.se_scale, jnp.float32)}
        return
    folded.pop(path, None)
    last = module_path(path, _LAST_CONV)
    folded[last] = {name: array * scale for name, array in folded[last].items()}
