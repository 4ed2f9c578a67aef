"""Activations scaled to map unit normal inputs to outputs of unit variance.

Source: "Characterizing signal propagation to close the performance gap in unnormalized
ResNets" (2021), section 4.3: an activation g is multiplied by
gamma = 1 / sqrt(Var[g(x)]), x ~ N(0, 1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nfnets.cpu import gelu as cpu_gelu
from nfnets.errors import UserError
from nfnets.models.spec import ModelSpec
from nfnets.platform import target_platform

Activation = Callable[[jax.Array], jax.Array]

# name -> (function, gamma). Published weights need the published constants, which were
# estimated by sampling and differ from the exact integral by up to 1e-3.
_ACTIVATIONS: dict[str, tuple[Activation, float]] = {
    "identity": (lambda x: x, 1.0),
    "celu": (jax.nn.celu, 1.270926833152771),
    "elu": (jax.nn.elu, 1.2716004848480225),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=True), 1.7015043497085571),
    "gelu_exact": (lambda x: jax.nn.gelu(x, approximate=False), 1.7015043497085571),
    "leaky_relu": (jax.nn.leaky_relu, 1.70590341091156),
    "log_sigmoid": (jax.nn.log_sigmoid, 1.9193484783172607),
    "relu": (jax.nn.relu, 1.7139588594436646),
    "relu6": (jax.nn.relu6, 1.7131484746932983),
    "selu": (jax.nn.selu, 1.0008515119552612),
    "sigmoid": (jax.nn.sigmoid, 4.803835391998291),
    "silu": (jax.nn.silu, 1.7881293296813965),
    "soft_sign": (jax.nn.soft_sign, 2.338853120803833),
    "softplus": (jax.nn.softplus, 1.9203323125839233),
    "tanh": (jnp.tanh, 1.5939117670059204),
}

_PIECEWISE_LINEAR = frozenset({"identity", "leaky_relu", "relu", "relu6"})


def names() -> tuple[str, ...]:
    """Returns the names of all activations."""
    return tuple(_ACTIVATIONS)


def gamma(name: str) -> float:
    """Returns the factor in `get(name)`.

    Raises:
      UserError: the name is unknown.
    """
    return _lookup(name)[1]


def get(name: str, scaled: bool = True) -> Activation:
    """Returns an element-wise activation.

    Args:
      name: one of `names()`.
      scaled: multiply by gamma; False for the plain function, as in networks with batch
        normalization.

    Returns:
      A function from an array to an array of the same shape and dtype.

    Raises:
      UserError: the name is unknown.
    """
    function, scale = _lookup(name)
    if not scaled:
        scale = 1.0

    def activation(x: jax.Array) -> jax.Array:
        if name == "gelu" and target_platform() == "cpu":
            return cpu_gelu.gelu(x, scale)
        return function(x) * scale

    # The gradients of smooth functions would store up to four arrays instead of x alone.
    return activation if name in _PIECEWISE_LINEAR else jax.checkpoint(activation)


def place_gamma(spec: ModelSpec) -> tuple[float, float]:
    """Returns the factors on a network's activations and on its standardized weights."""
    if not spec.scaled_activation:
        return 1.0, 1.0
    scale = gamma(spec.activation)
    return (1.0, scale) if spec.gamma_in_weights else (scale, 1.0)


def _lookup(name: str) -> tuple[Activation, float]:
    if name not in _ACTIVATIONS:
        raise UserError(
            f"unknown activation {name!r}; choose one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]
