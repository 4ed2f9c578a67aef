"""Parts that configs of the tests name by their dotted paths."""

import os
import sys

import jax.numpy as jnp

from nfnets.training import loss

# Step -> function to call when it is reported, in this process.
AT_STEP = {}


class StepHook:
    """A metric writer that calls `AT_STEP` and pauses at the steps of PAUSE."""

    def __init__(self, config, workdir, first_step):
        self.pauses = [int(s) for s in os.environ.get("PAUSE", "").split(",") if s]

    def write(self, step, metrics):
        if "train/loss" not in metrics:
            return
        AT_STEP.get(step, lambda: None)()
        if step in self.pauses:
            print(f"paused at {step}", flush=True)
            sys.stdin.readline()

    def close(self):
        pass


class ListWriter:
    """A metric writer that keeps everything in memory."""

    written = []  # noqa: RUF012

    def __init__(self, config, workdir, first_step):
        self.written.append(("open", first_step))

    def write(self, step, metrics):
        self.written.append((step, dict(metrics)))

    def close(self):
        self.written.append(("close", None))


def poisoned_loss(config, model, params, net_state, keys, batch):
    """The loss, NaN if a label is negative."""
    is_poison = jnp.min(batch["labels"]) < 0
    value, rest = loss.softmax_cross_entropy(config, model, params, net_state, keys, batch)
    value = jnp.where(is_poison, jnp.nan, value)
    net_state, metrics = rest
    return value, (net_state, {**metrics, "loss": value})


def squared_error(config, model, params, net_state, keys, batch):
    """Squared error between logits and targets, with a metric of its own."""
    logits, targets, net_state = loss.forward(config, model, params, net_state, keys, batch)
    value = loss.weighted_mean(jnp.mean((logits - targets) ** 2, axis=-1), batch)
    return value, (net_state, {"loss": value, "logit_mean": jnp.mean(logits)})


def top2(logits, labels):
    """Whether the label is among the two likeliest classes."""
    order = jnp.argsort(-logits, axis=-1)[:, :2]
    return jnp.any(order == labels[:, None], axis=-1)
