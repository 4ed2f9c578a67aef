"""Images per second of the augmentation alone, stage by stage.

    python benchmarks/augment.py [--device=cpu] [--size 192 224] [--batch 32]

prints a Markdown table: what each stage adds to the cost of an empty pipeline (a
conversion to float32), and what the whole recipe costs, with the time to compile it.
"""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contenders
import jax
import jax.numpy as jnp
import numpy as np

from nfnets.augment import AugmentOptions, augment

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cpu, gpu or tpu; default: JAX's own choice")
    parser.add_argument("--size", type=int, nargs="+", default=[192, 224], help="pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row")
    arguments = parser.parse_args()
    if arguments.device:
        platforms = {"gpu": "cuda"}.get(arguments.device, arguments.device)
        jax.config.update("jax_platforms", platforms)
    print(f"{contenders.machine()}\n")
    print("| size | batch | stage | images/s | ms per image | compile s |")
    print("|---:|---:|---|---:|---:|---:|")
    for size in arguments.size:
        for batch in arguments.batch:
            for name, options in _RECIPES.items():
                compiling, running = measure(options, size, batch, arguments.seconds)
                print(
                    f"| {size} | {batch} | {name} | {batch / running:,.0f} "
                    f"| {1e3 * running / batch:.3f} | {compiling:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
