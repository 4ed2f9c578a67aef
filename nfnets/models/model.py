"""Models as pairs of pure functions."""

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

from nfnets.models import variants
from nfnets.models.network import REMAT, Remat, ResidualNet, check_images
from nfnets.models.spec import ModelSpec

# module name -> parameter name -> array.
Params = Mapping[str, Mapping[str, jax.Array]]
State = Params
Outputs = Mapping[str, jax.Array]

# (module, parameter) -> shape, dtype, initializer.
_Recipes = Mapping[tuple[str, str], tuple[Any, Any, Callable]]

# NumPy's take no compilation of each shape.
_CONSTANTS = {jnp.zeros: np.zeros, jnp.ones: np.ones}

# What timm computes in another way than the published code.
_TIMM = {"activation": "gelu_exact", "weight_eps": 1e-5, "weight_eps_rule": "added"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as pure functions of its parameters.

    Attributes:
      name: as given to `create_model`.
      num_classes: number of logits.
      spec: the description that the network was built from.
      policy: dtypes of parameters, computation and outputs.
      remat: one of `REMAT`.
      outline: residual blocks are functions of their own, see `create_model`.
    """

    name: str
    num_classes: int
    spec: ModelSpec
    policy: jmp.Policy
    remat: Remat
    outline: bool
    _forward: Callable[..., Outputs]

    def init(
        self, rng: jax.Array, images: jax.Array, is_training: bool = True
    ) -> tuple[Params, State]:
        """Draws initial parameters.

        Each array is a function of `rng` and its own name, and nothing is computed but
        the arrays themselves: the forward pass is only traced.

        Args:
          rng: random key.
          images: [N, H, W, 3], of which only the shape is looked at; an array or a
            `jax.ShapeDtypeStruct`.
          is_training: as in `apply`; makes no difference here.

        Returns:
          (params, state): float32 arrays by module and parameter name. `state` is empty
          for networks without batch normalisation.

        Raises:
          ValueError: `images` has another shape.
        """
        del is_training
        check_images(self.name, images)
        params, state = self._recipes
        return _draw(rng, params), _draw(rng, state)

    def shapes(self) -> tuple[Params, State]:
        """Returns what `init` does with `jax.ShapeDtypeStruct` leaves."""
        params, state = self._recipes
        return _shapes(params), _shapes(state)

    @functools.cached_property
    def _recipes(self) -> tuple[_Recipes, _Recipes]:
        """How parameters and state are drawn, found by tracing the forward pass once."""
        recipes: dict[str, dict[tuple[str, str], tuple[Any, Any, Callable]]] = {
            "params": {},
            "state": {},
        }

        def recorder(kind: str) -> Callable:
            def create(
                creator: Callable,
                shape: Any,
                dtype: Any,
                init: Callable,
                context: hk.GetterContext,
            ) -> jax.Array:
                recipes[kind][context.module_name, context.name] = (shape, dtype, init)
                return creator(shape, dtype, jnp.zeros)  # quicker to trace than draws

            return create

        def record(images: jax.Array) -> None:
            with (
                hk.custom_creator(recorder("params"), params=True, state=False),
                hk.custom_creator(recorder("state"), params=False, state=True),
            ):
                self._forward(images, False, outline=False)

        # Shapes do not depend on the image size; the smallest one traces fastest.
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        jax.eval_shape(hk.transform_with_state(record).init, None, images)
        return recipes["params"], recipes["state"]

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
          params: from `init` or from a file.
          state: likewise.
          rng: random key for dropout and stochastic depth; None where neither applies.
          images: float [N, H, W, 3], normalised.
          is_training: apply dropout and stochastic depth; batch normalisation uses and
            records the batch's statistics.
          example_index: int [N], each example's position in the global batch.

        Returns:
          (outputs, state): `outputs` holds `logits` [N, classes], `pool` [N, features] and
          the end points of the stages.
        """
        return hk.transform_with_state(self._forward).apply(
            params, state, rng, images, is_training, example_index, outline=self.outline
        )


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
        `stochdepth_rate`, `activation`, `alpha`; and `compute_dtype`, the dtype of the
        feature maps (float32 by default; parameters and logits are always float32);
        and `remat`, one of `REMAT`: what the backward pass computes again instead of
        keeping it (`none`, all of a `block`, all of a `stage`), which saves memory.
        `outline=True` makes residual blocks functions of their own, of which equal ones
        are traced and compiled once: on CPU F6's step compiles in half the time, and
        `remat` saves memory there. Haiku's interceptors (`hk.intercept_methods`) and
        getters then see nothing of what is in them. Not for batch normalisation.
        `timm_compat=True` computes an NFNet as timm does, for weights trained there: the
        exact GELU, and 1e-5 added to the variance of the weights.

    Returns:
      A `Model`.

    Raises:
      ValueError: the name or an override is unknown, or a value is out of range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    compute_dtype = jnp.dtype(overrides.pop("compute_dtype", jnp.float32))
    policy = jmp.Policy(
        param_dtype=jnp.float32, compute_dtype=compute_dtype, output_dtype=jnp.float32
    )
    remat = overrides.pop("remat", "none")
    if remat not in REMAT:
        raise ValueError(f"remat must be one of {', '.join(REMAT)}, not {remat!r}")
    outline = bool(overrides.pop("outline", False))
    spec = variants.get_spec(name)
    if overrides.pop("timm_compat", False):
        if spec.module_name != "NFNet":
            raise ValueError(f"timm_compat is for NFNets, not for {name}")
        overrides = {**overrides, **_TIMM}
    spec = spec.override(overrides)

    def forward(
        images: jax.Array,
        is_training: bool,
        example_index: jax.Array | None = None,
        *,
        outline: bool,
    ) -> Outputs:
        network = ResidualNet(spec, num_classes, policy, remat, outline)
        return network(images, is_training, example_index)

    return Model(name, num_classes, spec, policy, remat, outline, forward)


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


def _shapes(recipes: _Recipes) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for (module, name), (shape, dtype, _) in recipes.items():
        shapes.setdefault(module, {})[name] = jax.ShapeDtypeStruct(shape, dtype)
    return shapes
