"""The training step's speed, side by side with timm's in the same process.

    python benchmarks/train_step.py --device=cpu --forward --baseline
    python benchmarks/train_step.py --device=cpu --overhead
    python benchmarks/train_step.py --device=gpu --profile

prints images/s, milliseconds per step (medians of turns), the share of the machine's own
measured speed in matrix products (MFU: three times the forward multiply-adds) and peak
memory. GPU: F0 to F3 at their training sizes in bfloat16; timm is compiled, channels last,
under autocast. CPU: F0 in float32; timm is eager, or compiled with --compile_timm.

Needs nfnets.models, nfnets.optim and nfnets.augment only.
"""

import argparse
from collections.abc import Callable, Mapping
import glob
import os
import re
import statistics
import sys
import tempfile
import time
from typing import Any
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room, too
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contenders
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nfnets
from nfnets.augment import AugmentOptions, augment
from nfnets.cpu import memory
from nfnets.models import Model, count_multiply_adds, layers, normalize_images
from nfnets.optim import clipping_state, update_ema

CLASSES = 1000
PARTS = ("update", "AGC", "EMA", "metrics", "augmentation")
_RATE = 0.01


def ceiling(dtype: str, side: int) -> float:
    """Returns the FLOP/s of products of square matrices, the best of ten."""
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.dot)
    times = contenders.in_turns({"": lambda: product(matrix, matrix)}, 10)[""]
    return 2 * side**3 / min(times)


def make_step(model: Model, parts: tuple[str, ...]) -> tuple[Callable, Callable]:
    """Returns (init, step) with the given ones of `PARTS` beyond forward and backward.

    init(params) -> state; step(state, images uint8 [N, H, W, 3], labels) -> (state,
    metrics). Without "update" the state stays and the gradients are among the metrics.
    """
    optimizer = nfnets.create_optimizer(_RATE, clipping=0.01 if "AGC" in parts else None)
    recipe = model.spec.recipe
    options = AugmentOptions(
        randaugment_layers=recipe.randaugment_layers,
        randaugment_magnitude=recipe.randaugment_magnitude,
    )

    def init(params: Any) -> dict[str, Any]:
        def copy() -> Any:  # the state is donated
            return jax.tree.map(jnp.array, params)

        state = {"step": jnp.zeros((), jnp.int32), "params": copy()}
        if "update" in parts:
            state["optimizer"] = optimizer.init(params)
        if "EMA" in parts:
            state["ema"] = copy()
        return state

    def step(
        state: dict[str, Any], images: jax.Array, labels: jax.Array
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(0), state["step"])
        index = jnp.arange(len(labels))
        targets = jax.nn.one_hot(labels, CLASSES)
        if "augmentation" in parts:
            images, targets = augment(key, images, targets, index, options)

        def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
            outputs, _ = model.apply(params, {}, key, normalize_images(images), True, index)
            loss = jnp.mean(optax.softmax_cross_entropy(outputs["logits"], targets))
            return loss, outputs["logits"]

        params = state["params"]
        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        metrics = {"loss": loss}
        new = {"step": state["step"] + 1, "params": params}
        if "update" in parts:
            updates, new["optimizer"] = optimizer.update(grads, state["optimizer"], params)
            new["params"] = optax.apply_updates(params, updates)
        else:
            metrics["gradients"] = grads
        if "EMA" in parts:
            new["ema"] = update_ema(state["ema"], new["params"], 0.99999, state["step"])
        if "metrics" in parts:
            metrics["top1"] = jnp.mean(logits.argmax(-1) == targets.argmax(-1))
            metrics["gradient_norm"] = optax.tree.norm(grads)
            clipping = clipping_state(new["optimizer"])
            metrics |= {} if clipping is None else {"clipped": clipping.clipped_fraction}
        return new, metrics

    return init, step


class Ours:
    """Our compiled step with some of `PARTS`; a call makes one step."""

    def __init__(
        self, model: Model, params: Any, batch: tuple[Any, Any], parts: tuple[str, ...]
    ) -> None:
        init, step = make_step(model, parts)
        self._state, self._batch = init(params), batch
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self._state, *batch)
        self.compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start

    def __call__(self) -> Any:
        self._state, metrics = self.compiled(self._state, *self._batch)
        return metrics

    def memory_gib(self) -> float:
        """Returns the memory that XLA plans."""
        plan = self.compiled.memory_analysis()
        held = plan.temp_size_in_bytes + plan.argument_size_in_bytes
        return (held + plan.output_size_in_bytes - plan.alias_size_in_bytes) / 2**30


class Timm:
    """timm's step with AGC and Nesterov momentum; a call makes one step."""

    def __init__(
        self, model: Model, images: np.ndarray, labels: np.ndarray, compiled: bool
    ) -> None:
        import torch

        self._torch = torch
        self._gpu = jax.default_backend() == "gpu"
        device = "cuda" if self._gpu else "cpu"
        spec = model.spec
        rates = {"drop_rate": spec.drop_rate, "drop_path_rate": spec.stochdepth_rate}
        network = contenders.timm_network(model.name, **rates).to(device).train()
        self._images = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(device)
        if self._gpu:
            network = network.to(memory_format=torch.channels_last)
            layout = {"memory_format": torch.channels_last}
        else:
            layout = {"memory_format": torch.contiguous_format}
        self._images = self._images.float().contiguous(**layout) / 128 - 1
        self._labels = torch.from_numpy(np.array(labels)).long().to(device)
        self._clipped = [p for n, p in network.named_parameters() if "head.fc" not in n]
        self._optimizer = torch.optim.SGD(
            network.parameters(), _RATE, momentum=0.9, nesterov=True, weight_decay=2e-5
        )
        self._network = torch.compile(network) if compiled else network

    def __call__(self) -> None:
        from timm.utils.agc import adaptive_clip_grad

        torch = self._torch
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._gpu):
            logits = self._network(self._images)
        torch.nn.functional.cross_entropy(logits.float(), self._labels).backward()
        adaptive_clip_grad(self._clipped, 0.01)
        self._optimizer.step()
        if self._gpu:
            torch.cuda.synchronize()

    def forward(self) -> None:
        torch = self._torch
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=self._gpu):
            self._network(self._images)
        if self._gpu:
            torch.cuda.synchronize()

    def memory_gib(self) -> float | None:
        if not self._gpu:
            return None
        return self._torch.cuda.max_memory_allocated() / 2**30


def jitted_forward(model: Model, params: Any, images: Any) -> contenders.Contender:
    def forward(params: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, {}, None, normalize_images(images))[0]["logits"]

    compiled = jax.jit(forward).lower(params, images).compile()
    return lambda: compiled(params, images)


def build(model: Model, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the contenders by name."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.batch, size, size, 3), np.uint8)
    labels = np.arange(options.batch, dtype=np.int32) % CLASSES
    batch = (jnp.asarray(images), jnp.asarray(labels))
    example = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    params, _ = model.init(jax.random.key(0), example)
    if options.overhead:
        names = ["forward and backward", *(f"+ {part}" for part in PARTS)]
        return {
            name: Ours(model, params, batch, PARTS[:count])
            for count, name in enumerate(names)
        }
    found: dict[str, Any] = {"ours": Ours(model, params, batch, PARTS[:2])}
    if not options.no_augment:
        found["ours, augmented"] = Ours(model, params, batch, (*PARTS[:2], PARTS[-1]))
    if options.forward:
        found["forward: ours"] = jitted_forward(model, params, batch[0])
    if options.baseline:
        # XLA's own lowering, in place of our forms for the CPU.
        with mock.patch.object(layers, "conv2d", default_conv2d):
            found["ours, XLA's convolutions"] = Ours(model, params, batch, PARTS[:2])
    if contenders.has_timm() and not options.no_timm:
        found["timm"] = Timm(model, images, labels, options.compile_timm)
        if options.forward:
            found["forward: timm"] = found["timm"].forward
    return found


def default_conv2d(
    inputs: jax.Array, weight: jax.Array, stride: int = 1, groups: int = 1
) -> jax.Array:
    """`layers.conv2d` as XLA lowers it."""
    return jax.lax.conv_general_dilated(
        inputs,
        weight,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def print_table(
    model: Model,
    size: int,
    batch: int,
    found: Mapping[str, Any],
    times: Mapping[str, list[float]],
    peak: float,
) -> None:
    flop = 2 * count_multiply_adds(model, size) * batch
    for name, seconds in times.items():
        median = statistics.median(seconds)
        contender = found[name]
        work = flop * (1 if name.startswith("forward: ") else 3)
        memory = contender.memory_gib() if hasattr(contender, "memory_gib") else None
        compiling = getattr(contender, "compile_s", None)
        spread = f"{1e3 * min(seconds):,.1f} to {1e3 * max(seconds):,.1f}"
        print(
            f"| {model.name} | {size} | {batch} | {name} | {batch / median:,.1f} "
            f"| {1e3 * median:,.1f} | {spread} "
            f"| {work / median / peak:.0%} | {'' if memory is None else f'{memory:.2f}'} "
            f"| {'' if compiling is None else f'{compiling:.1f}'} |",
            flush=True,
        )


def print_profile(contender: Ours, rows: int = 30) -> None:
    """Prints the operations that take longest in one step, with where they come from."""
    source = {}
    for line in contender.compiled.as_text().splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+)", line)
        if match:
            scope = re.search(r'op_name="([^"]*)"', line)
            source[match[1]] = (match[2], scope[1] if scope else "")
    totals: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(contender())
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    name = str(dict(event.stats).get("hlo_op", event.name))
                    if name in source:
                        totals[name] = totals.get(name, 0) + event.duration_ns / 1e6
    print(f"\nsum of all operations {sum(totals.values()):.1f} ms (they may overlap)")
    print("| ms | operation | shape | from |\n|---:|---|---|---|")
    for name, spent in sorted(totals.items(), key=lambda item: -item[1])[:rows]:
        shape, scope = source[name]
        print(f"| {spent:.2f} | {name} | {shape} | {scope[-90:]} |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--models", type=lambda names: names.split(","))
    parser.add_argument("--batch", type=int, help="default: 8 on CPU, 32 on GPU")
    parser.add_argument("--size", type=int, help="pixels; default: the training size")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--steps", type=int, help="per turn; default: 1 on CPU, 10 on GPU")
    parser.add_argument("--no_timm", action="store_true")
    parser.add_argument("--compile_timm", action="store_true", help="always on GPU")
    parser.add_argument("--no_augment", action="store_true")
    parser.add_argument("--forward", action="store_true", help="time inference as well")
    parser.add_argument("--baseline", action="store_true", help="XLA's own convolutions")
    parser.add_argument(
        "--overhead", action="store_true", help="parts of our step, one more in each row"
    )
    parser.add_argument("--profile", action="store_true", help="table of operations")
    options = parser.parse_args()
    on_gpu = options.device == "gpu"
    names = [f"nfnet_f{number}" for number in range(4)] if on_gpu else ["nfnet_f0"]
    options.models = options.models or names
    options.batch = options.batch or (32 if on_gpu else 8)
    options.steps = options.steps or (10 if on_gpu else 1)
    options.dtype = "bfloat16" if on_gpu else "float32"
    options.compile_timm = options.compile_timm or on_gpu
    return options


def main() -> None:
    options = parse()
    jax.config.update("jax_platforms", "cuda" if options.device == "gpu" else "cpu")
    memory.run_in_main_thread()  # as train.py does
    peak = ceiling(options.dtype, 8192 if options.device == "gpu" else 2048)
    heading = False
    for name in options.models:
        model = nfnets.create_model(name, CLASSES, compute_dtype=options.dtype)
        size = options.size or model.spec.recipe.train_size
        found = build(model, size, options)
        if not heading:
            print(f"{contenders.machine()}; {options.dtype}")
            print(f"matrix products reach {peak / 1e9:,.0f} GFLOP/s\n")
            print(
                "| model | px | batch | | images/s | ms | range | MFU | GiB | compile s |"
            )
            print("|---|---|---|---|---|---|---|---|---|---|")
            heading = True
        memory.keep_memory()
        times = contenders.in_turns(found, options.rounds, options.steps)
        print_table(model, size, options.batch, found, times, peak)
        if options.profile:
            print_profile(next(c for c in found.values() if isinstance(c, Ours)))


if __name__ == "__main__":
    main()
