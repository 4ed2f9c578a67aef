"""Models as pairs of pure functions, `init` and `apply`, created by name."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any
import zlib

import haiku as hk
import jax
import jax.numpy as jnp
import jmp
import numpy as np

from nfnets.errors import UserError
from nfnets.models import activations, variants
from nfnets.models.network import ResidualNet
from nfnets.models.spec import REMAT, ModelSpec, Remat

# module name -> parameter name -> array.
Params = Mapping[str, Mapping[str, jax.Array]]
State = Params
Outputs = Mapping[str, jax.Array]

# (module, parameter) -> shape, dtype, initializer.
_Recipes = dict[tuple[str, str], tuple[Any, Any, Callable]]

# NumPy's functions are not compiled for each shape.
_CONSTANTS = {jnp.zeros: np.zeros, jnp.ones: np.ones}

# How timm's NFNets differ from the published ones.
_TIMM = {"activation": "gelu_exact", "weight_eps": 1e-5, "weight_eps_rule": "added"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions of its parameters.

    Attributes:
      name: name given to `create_model`.
      num_classes: number of logits.
      spec: description from which the network is built.
      policy: dtypes of parameters, computation and outputs.
      remat: the unit whose activations the backward pass recomputes, one of `REMAT`.
    """

    name: str
    num_classes: int
    spec: ModelSpec
    policy: jmp.Policy
    remat: Remat
    _forward: Callable[..., Outputs]

    def init(
        self, rng: jax.Array, images: jax.Array, is_training: bool = True
    ) -> tuple[Params, State]:
        """Draws initial parameters.

        Each array depends only on `rng` and its own name. The forward pass is traced once
        per model and never computed.

        Args:
          rng: random key.
          images: [N, H, W, 3], an array or a `jax.ShapeDtypeStruct`; its values and dtype
            are not used.
          is_training: not used; part of Haiku's usual signature.

        Returns:
          (params, state): float32 arrays by module and parameter name. `state` is empty
          unless the network has batch normalization.

        Raises:
          UserError: `images` has another shape.
        """
        del is_training
        self._check_shape(images)
        params, state = self._recipes
        return _draw(rng, params), _draw(rng, state)

    def shapes(self) -> tuple[Params, State]:
        """Returns the result of `init` with `jax.ShapeDtypeStruct` leaves."""
        params, state = self._recipes
        return _shapes(params), _shapes(state)

    def apply(
        self,
        params: Params,
        state: State,
        rng: jax.Array | None,
        images: jax.Array,
        is_training: bool = False,
        example_index: jax.Array | None = None,
    ) -> tuple[Outputs, State]:
        """Runs the network; see `ResidualNet.__call__`.

        Args:
          params: parameters from `init` or from a file.
          state: state from `init` or from a file.
          rng: random key for dropout and stochastic depth; None if neither is applied.
          images: float [N, H, W, 3], normalized to zero mean and unit variance as by
            `nfnets.models.normalize_images`: about -2.1 to 2.6, not 0 to 255 or 0 to 1.
          is_training: apply dropout and stochastic depth; batch normalization uses and
            records the statistics of the batch.
          example_index: int [N], position of each example in the global batch.

        Returns:
          (outputs, state): `outputs` has `logits` [N, classes], `pool` [N, features] and
          the end points of the stages.

        Raises:
          UserError: `images` has another shape or an integer dtype.
        """
        self._check_shape(images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f"{self.name} takes normalized float images, not {images.dtype}; "
                "use nfnets.models.normalize_images"
            )
        return hk.transform_with_state(self._forward).apply(
            params, state, rng, images, is_training, example_index
        )

    def _check_shape(self, images: jax.Array | jax.ShapeDtypeStruct) -> None:
        if len(images.shape) != 4 or images.shape[-1] != 3:
            raise UserError(
                f"{self.name} takes images [N, H, W, 3], not {list(images.shape)}"
            )

    @functools.cached_property
    def _recipes(self) -> tuple[_Recipes, _Recipes]:
        """Shape, dtype and initializer of all parameters and of all state."""
        params: _Recipes = {}
        state: _Recipes = {}

        def record_in(recipes: _Recipes) -> Callable:
            def create(
                creator: Callable,
                shape: Any,
                dtype: Any,
                init: Callable,
                context: hk.GetterContext,
            ) -> jax.Array:
                recipes[context.module_name, context.name] = (shape, dtype, init)
                return creator(shape, dtype, jnp.zeros)  # faster to trace than `init`

            return create

        def forward(images: jax.Array) -> None:
            with (
                hk.custom_creator(record_in(params), params=True, state=False),
                hk.custom_creator(record_in(state), params=False, state=True),
            ):
                self._forward(images, False)

        # Shapes do not depend on the image size.
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        jax.eval_shape(hk.transform_with_state(forward).init, None, images)
        return params, state


def create_model(name: str, num_classes: int = 1000, **overrides: Any) -> Model:
    """Creates a model by name.

    Example:

        model = nfnets.create_model("nfnet_f0", num_classes=10, drop_rate=0.1)
        params, state = model.init(jax.random.key(0), jnp.zeros([1, 192, 192, 3]))
        outputs, _ = model.apply(params, state, None, images, is_training=False)
        outputs["logits"]  # [N, 10]

    Args:
      name: one of `nfnets.list_models()`.
      num_classes: number of logits, at least 1.
      **overrides: fields of `ModelSpec` or `BlockSpec`, such as `drop_rate`,
        `stochdepth_rate`, `activation` and `alpha`, or

        - `compute_dtype`: dtype of the feature maps, float32 by default. Parameters and
          logits are always float32.
        - `remat`: one of `nfnets.models.REMAT`. With `block` or `stage` the backward pass
          recomputes the activations of each block or stage, which saves memory.
        - `timm_compat`: True for `nfnet_f0` to `f6` with weights trained in timm (its
          `dm_nfnet_f0` to `f6`), which uses the exact GELU and adds 1e-5 to the variance of
          the weights.

    Raises:
      UserError: the name or an override is unknown, or a value is out of range.
    """
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1, not {num_classes}")
    compute_dtype = overrides.pop("compute_dtype", "float32")
    try:
        is_floating = jnp.issubdtype(jnp.dtype(compute_dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise UserError(
            f"compute_dtype must be a dtype such as bfloat16, not {compute_dtype!r}"
        )
    policy = jmp.Policy(
        param_dtype=jnp.float32,
        compute_dtype=jnp.dtype(compute_dtype),
        output_dtype=jnp.float32,
    )
    remat = overrides.pop("remat", "none")
    if remat not in REMAT:
        raise UserError(f"remat must be one of {', '.join(REMAT)}, not {remat!r}")
    spec = variants.get_spec(name)
    if overrides.pop("timm_compat", False):
        if spec.module_name != "NFNet" or spec.block.weight_eps_rule == "added":
            raise UserError(f"timm_compat is for the published NFNets, not for {name}")
        overrides |= _TIMM
    spec = spec.override(overrides)
    activations.gamma(spec.activation)  # raises for unknown names

    def forward(
        images: jax.Array, is_training: bool, example_index: jax.Array | None = None
    ) -> Outputs:
        network = ResidualNet(spec, num_classes, policy, remat)
        return network(images, is_training, example_index)

    return Model(name, num_classes, spec, policy, remat, forward)


def _draw(rng: jax.Array, recipes: _Recipes) -> dict[str, dict[str, jax.Array]]:
    arrays: dict[str, dict[str, jax.Array]] = {}
    for (module, name), (shape, dtype, init) in recipes.items():
        if hasattr(init, "draw"):
            stream = zlib.crc32(f"{module}:{name}".encode())
            value = init.draw(rng, shape, dtype, stream)
        elif init in _CONSTANTS and not isinstance(rng, jax.core.Tracer):
            value = jax.device_put(_CONSTANTS[init](shape, dtype), may_alias=False)
        else:
            value = init(shape, dtype)
        arrays.setdefault(module, {})[name] = value
    return arrays


def _shapes(recipes: _Recipes) -> Any:
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for (module, name), (shape, dtype, _) in recipes.items():
        shapes.setdefault(module, {})[name] = jax.ShapeDtypeStruct(shape, dtype)
    return shapes
