"""The optimizer of normalizer-free networks: clipping, weight decay, momentum, rate."""

from collections.abc import Sequence

import jax
import optax

from nfnets.optim import agc, rules

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
    clip_classifier: bool = False,
    clip_norm: float | None = None,
    per_layer: bool = False,
    head_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Creates the paper's optimizer, or another one of optax, with or without AGC.

    In this order: clipping by global norm, adaptive gradient clipping, weight decay, the
    optimizer's own rule, the learning rate. Weight decay is added to the gradient (L2),
    but is decoupled in adamw and lamb. It applies to weights, not to gains, biases and
    skip gains; AGC applies to everything but the classifier's weight. Both go by
    parameter path (`nfnets.optim.rules`).

    Args:
      learning_rate: a number or an optax schedule.
      clipping: AGC's largest gradient / weight ratio, > 0; None: no AGC.
      eps: AGC's lower bound of the weight norm.
      weight_decay: coefficient, >= 0.
      momentum: of sgd and rmsprop, in [0, 1).
      nesterov: of sgd and rmsprop.
      name: one of `OPTIMIZERS`.
      b1: decay of the first moment (adam, adamw, lamb).
      b2: decay of the second moment (adam, adamw, lamb, rmsprop).
      epsilon: added to the denominator (adam, adamw, lamb, rmsprop).
      clip_classifier: apply AGC to the classifier's weight too (the paper advises not to).
      clip_norm: largest global norm of the gradient; None: no such clipping.
      per_layer: keep AGC's figures for each array (see `AdaptiveGradClipState`).
      head_multiplier: of the classifier's learning rate, >= 0.
      layer_decay: factor on the learning rate per block below the classifier, in (0, 1].
      frozen: regular expressions; parameters whose path one of them finds stay as they are.

    Returns:
      An `optax.GradientTransformation` for the parameter trees of `Model.init`.

    Raises:
      ValueError: at once for an unknown name or a value out of range; in `init` for a
        parameter without a rule.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}"
        )
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")

    def decayed(params: optax.Params) -> optax.Params:
        labels = rules.label_parameters(params)
        return jax.tree.map(lambda rule: rule != "gain_or_bias", labels)

    def clipped(params: optax.Params) -> optax.Params:
        labels = rules.label_parameters(params)
        return jax.tree.map(
            lambda rule: clip_classifier or rule != "classifier_weight", labels
        )

    steps = []
    if clip_norm is not None:
        if not clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, not {clip_norm}")
        steps.append(optax.clip_by_global_norm(clip_norm))
    if clipping is not None:
        steps.append(
            agc.adaptive_grad_clip(clipping, eps, mask=clipped, per_layer=per_layer)
        )
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    nesterov_momentum = optax.trace(decay=momentum, nesterov=nesterov)
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)
    steps += {
        "sgd": [decay, nesterov_momentum],
        "adam": [decay, adam],
        "adamw": [adam, decay],
        "rmsprop": [
            decay,
            optax.scale_by_rms(decay=b2, eps=epsilon),
            nesterov_momentum,
        ],
        "lamb": [adam, decay, optax.scale_by_trust_ratio()],
    }[name]
    steps.append(optax.scale_by_learning_rate(learning_rate))
    if head_multiplier != 1 or layer_decay != 1 or frozen:
        steps.append(
            rules.scale_by_path(
                head_multiplier=head_multiplier,
                layer_decay=layer_decay,
                frozen=tuple(frozen),
            )
        )
    return optax.chain(*steps)


def clipping_state(opt_state: optax.OptState) -> agc.AdaptiveGradClipState | None:
    """Returns AGC's figures from the state of any optax chain, None if there are none."""
    is_clipping = lambda node: isinstance(node, agc.AdaptiveGradClipState)  # noqa: E731
    found = [
        node
        for node in jax.tree.leaves(opt_state, is_leaf=is_clipping)
        if is_clipping(node)
    ]
    return found[0] if found else None
