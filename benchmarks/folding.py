"""What the inference form saves: images per second with and without it.

    python benchmarks/folding.py nfnet_f0 --size=256 --batch 1 32

Times the compiled forward pass alone, on the first device, the median of several calls.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

import nfnets
from nfnets.models import Model, Params


def seconds(model: Model, params: Params, images: jax.Array, repeats: int) -> float:
    """Median time of a forward pass."""
    forward = jax.jit(lambda p, x: model.apply(p, {}, None, x)[0]["logits"])
    jax.block_until_ready(forward(params, images))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(params, images))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["nfnet_f0"])
    parser.add_argument("--size", type=int, help="pixels; default: the model's test size")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--compute_dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {options.compute_dtype}")
    print(f"{'model':<16} {'px':>4} {'batch':>6} {'plain ms':>9} {'folded ms':>9}   gain")
    for name in options.models:
        model = nfnets.create_model(name, compute_dtype=options.compute_dtype)
        size = options.size or model.spec.recipe.test_size
        params, _ = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        folded, folded_params = nfnets.fold(model, params)
        for batch in options.batch:
            images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
            plain = seconds(model, params, images, options.repeats)
            fast = seconds(folded, folded_params, images, options.repeats)
            print(
                f"{name:<16} {size:>4} {batch:>6} {plain * 1e3:>9.1f} {fast * 1e3:>9.1f} "
                f"{plain / fast:>5.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
