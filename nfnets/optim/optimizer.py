"""The optimizer of normalizer-free networks as an optax chain."""

from collections.abc import Mapping, Sequence
import inspect
from typing import Any

import jax
import optax

from nfnets import imports
from nfnets.errors import UserError
from nfnets.optim import agc, rules
from nfnets.optim.ranges import check_range

# Built here from parts of optax; their arguments are those of `create_optimizer`.
OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "lamb")


def create_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clipping: float | None = 0.01,
    eps: float = 1e-3,
    weight_decay: float = 2e-5,
    momentum: float = 0.9,
    nesterov: bool = True,
    name: str = "sgd",
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    kwargs: Mapping[str, Any] | None = None,
    clip_classifier: bool = False,
    clip_norm: float | None = None,
    per_layer: bool = False,
    head_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
    label_fn: rules.LabelFn | None = None,
) -> optax.GradientTransformation:
    """Creates the paper's optimizer, or any optimizer of optax, with or without AGC.

    In this order: clipping by global norm, adaptive gradient clipping, weight decay, the
    optimizer's own rule, the learning rate. Weight decay is added to the gradient (L2),
    except in optimizers that decouple it (adamw, lamb, lion, ...). It applies to weights,
    not to gains and biases; AGC applies to all but the classifier's weight.

    Example:

        from nfnets import optim
        schedule = optim.create_schedule("cosine", 0.1, 10_000, 500)
        optimizer = nfnets.create_optimizer(schedule, clipping=0.01)
        model = nfnets.create_model("nfnet_tiny")
        images = jnp.zeros((2, 32, 32, 3))
        params, _ = model.init(jax.random.key(0), images, is_training=True)
        opt_state = optimizer.init(params)
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, opt_state = jax.jit(optimizer.update)(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)

    Args:
      learning_rate: a number or an optax schedule.
      clipping: largest ratio of gradient to weight norm in AGC, > 0; None: no AGC.
      eps: lower bound of the weight norm in AGC, > 0.
      weight_decay: coefficient, >= 0.
      momentum: of sgd and rmsprop, in [0, 1).
      nesterov: of sgd and rmsprop.
      name: one of `OPTIMIZERS`, another optimizer of optax (`lion`, `adabelief`, ...), or
        `package.module:function`, called as `function(learning_rate, **kwargs)`. If these
        have the arguments `weight_decay` and `mask`, they get both.
      b1: decay of the first moment (adam, adamw, lamb), in [0, 1).
      b2: decay of the second moment (adam, adamw, lamb, rmsprop), in [0, 1).
      epsilon: added to the denominator (adam, adamw, lamb, rmsprop), >= 0.
      kwargs: further arguments of an optimizer outside of `OPTIMIZERS`.
      clip_classifier: apply AGC to the classifier's weight too; the paper advises not to.
      clip_norm: largest global norm of the gradient, > 0; None: no such clipping.
      per_layer: record AGC's statistics for each array (see `AdaptiveGradClipState`).
      head_multiplier: factor on the classifier's learning rate, >= 0.
      layer_decay: factor on the learning rate per block below the classifier, in (0, 1].
      frozen: regular expressions; parameters in whose path one is found do not change.
      label_fn: function from parameters to a tree of "classifier_weight", "weight" and
        "gain_or_bias", for other models; None: by the paths of this package's networks.

    Returns:
      An `optax.GradientTransformation`; its `update` needs `params`.

    Raises:
      UserError: at once for an unknown name or argument and for numbers out of range; in
        `init` for a parameter without a label or a pattern that matches none.
    """
    check_range("[0, inf)", weight_decay=weight_decay, epsilon=epsilon)
    check_range("[0, inf)", head_multiplier=head_multiplier)
    check_range("[0, 1)", momentum=momentum, b1=b1, b2=b2)
    check_range("(0, inf)", clip_norm=clip_norm)
    check_range("(0, 1]", layer_decay=layer_decay)
    label_fn = label_fn or rules.label_parameters
    decayed = rules.mask(label_fn, "gain_or_bias")
    clipped = rules.mask(label_fn, *(() if clip_classifier else ("classifier_weight",)))
    steps = []
    if clip_norm is not None:
        steps.append(optax.clip_by_global_norm(clip_norm))
    if clipping is not None:
        steps.append(
            agc.adaptive_grad_clip(clipping, eps, mask=clipped, per_layer=per_layer)
        )
    if name not in OPTIMIZERS:
        steps += _find_optimizer(name, learning_rate, weight_decay, decayed, kwargs or {})
    elif kwargs:
        raise UserError(f"kwargs are not for {', '.join(OPTIMIZERS)}; got {dict(kwargs)}")
    else:
        decay = optax.add_decayed_weights(weight_decay, decayed)
        trace = optax.trace(momentum, nesterov)
        adam = optax.scale_by_adam(b1, b2, epsilon)
        steps += {
            "sgd": [decay, trace],
            "adam": [decay, adam],
            "adamw": [adam, decay],
            "rmsprop": [decay, optax.scale_by_rms(b2, epsilon), trace],
            "lamb": [adam, decay, optax.scale_by_trust_ratio()],
        }[name]
        steps.append(optax.scale_by_learning_rate(learning_rate))
    if frozen or _differs_from_1(head_multiplier) or _differs_from_1(layer_decay):
        steps.append(rules.scale_by_path(head_multiplier, layer_decay, tuple(frozen)))
    return optax.chain(*steps)


def _find_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    decayed: rules.Mask,
    kwargs: Mapping[str, Any],
) -> list[optax.GradientTransformation]:
    """Returns weight decay and an optimizer of optax, or of one's own, in their order."""
    what = f"optimizer {name!r}"
    factory = imports.find(name, optax, "optimizer")
    parameters = inspect.signature(factory).parameters
    if ":" not in name and "learning_rate" not in parameters:
        raise UserError(f"optax.{name} is not an optimizer: it takes no learning_rate")
    decays = {"weight_decay", "mask"} <= parameters.keys()
    if decays and kwargs.keys() & {"weight_decay", "mask"}:
        raise UserError(f"{what}: weight_decay and mask do not belong in kwargs")
    decay = {"weight_decay": weight_decay, "mask": decayed} if decays else {}
    optimizer = imports.call(factory, what, learning_rate, **decay, **kwargs)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"{what} returned {optimizer!r}, not a GradientTransformation")
    before = [] if decays else [optax.add_decayed_weights(weight_decay, decayed)]
    return [*before, optimizer]


def _differs_from_1(multiplier: float) -> bool:
    """True for tracers, too: the chain must not depend on their values."""
    return not isinstance(multiplier, int | float) or multiplier != 1


def clipping_state(opt_state: optax.OptState) -> agc.AdaptiveGradClipState | None:
    """Returns AGC's statistics from the state of an optimizer, None without AGC."""

    def is_clipping(node: Any) -> bool:
        return isinstance(node, agc.AdaptiveGradClipState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_clipping)
    return next(filter(is_clipping, nodes), None)
