"""Images per second of the augmentation alone, stage by stage.

    python benchmarks/augment.py [--device=cpu] [--size=192 --size=224] [--batch=32]

prints a Markdown table: what each stage adds to the cost of an empty pipeline (a
conversion to float32), and what the whole recipe costs, with the time to compile it.
"""

import os
import platform
import sys
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import AugmentOptions, augment

_DEVICE = flags.DEFINE_string("device", None, "cpu, gpu or tpu; default: JAX's own choice.")
_SIZES = flags.DEFINE_multi_integer("size", [192, 224], "Side of the images, pixels.")
_BATCHES = flags.DEFINE_multi_integer("batch", [32, 64], "Images per batch.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time to spend on each figure.")

_CLASSES = 1000
_NOTHING = AugmentOptions(order=())
_RECIPES = {
    "conversion to float32": _NOTHING,
    "mix (MixUp and CutMix, half each)": AugmentOptions(order=("mix",)),
    "RandAugment, 1 layer": AugmentOptions(order=("distort",), randaugment_layers=1),
    "RandAugment, 2 layers": AugmentOptions(order=("distort",), randaugment_layers=2),
    "RandAugment, 4 layers": AugmentOptions(order=("distort",), randaugment_layers=4),
    "AutoAugment": AugmentOptions(
        order=("distort",), autoaugment=True, randaugment_layers=0
    ),
    "Cutout": AugmentOptions(order=("cutout",), cutout_size=60),
    "the paper's recipe: mix, then 4 layers": AugmentOptions(),
}


def measure(
    options: AugmentOptions, size: int, batch: int, seconds: float
) -> tuple[float, float]:
    """Times `augment` under `jax.jit`.

    Args:
      options: what to apply.
      size: side of the images, pixels.
      batch: images per call.
      seconds: to spend on running.

    Returns:
      (seconds to trace and compile, median seconds per call); every call has its own key.
    """
    rng = np.random.default_rng(0)
    # Smooth images: noise would spread the gathers and histograms more than photographs do.
    coarse = rng.uniform(0, 255, (batch, 8, 8, 3)).astype(np.float32)
    shape = (batch, size, size, 3)
    images = jax.image.resize(jnp.asarray(coarse), shape, "linear").astype(jnp.uint8)
    labels = jax.nn.one_hot(rng.integers(0, _CLASSES, batch), _CLASSES)
    index = jnp.arange(batch)
    keys = list(jax.random.split(jax.random.key(0), 64))
    jax.block_until_ready((images, labels, keys))

    start = time.perf_counter()
    lowered = jax.jit(augment, static_argnames="options").lower(
        keys[0], images, labels, index, options=options
    )
    run = lowered.compile()
    compile_seconds = time.perf_counter() - start

    jax.block_until_ready(run(keys[0], images, labels, index))
    times = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(times) < 3:
        key = keys[len(times) % len(keys)]
        start = time.perf_counter()
        jax.block_until_ready(run(key, images, labels, index))
        times.append(time.perf_counter() - start)
    return compile_seconds, float(np.median(times))


def machine() -> str:
    """Returns the machine and the versions that the figures hold for."""
    device = jax.devices()[0]
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line for line in file if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return (
        f"{device.device_kind} ({device.platform}); {os.cpu_count()} x {cpu}; "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        sys.exit(f"unexpected argument {argv[1]!r}")
    if _DEVICE.value:
        platforms = {"gpu": "cuda"}.get(_DEVICE.value, _DEVICE.value)
        jax.config.update("jax_platforms", platforms)
    print(f"{machine()}\n")
    print("| size | batch | stage | images/s | ms per image | compile s |")
    print("|---:|---:|---|---:|---:|---:|")
    for size in _SIZES.value:
        for batch in _BATCHES.value:
            for name, options in _RECIPES.items():
                compiling, running = measure(options, size, batch, _SECONDS.value)
                print(
                    f"| {size} | {batch} | {name} | {batch / running:,.0f} "
                    f"| {1e3 * running / batch:.3f} | {compiling:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
