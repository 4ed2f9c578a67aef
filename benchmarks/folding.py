"""Inference with folded weights, as trained, and by timm, in the same process.

    python benchmarks/folding.py nfnet_f0 --size=256 --batch 1 8 32

Times the compiled forward pass alone, on the first device, in turns with the folded one
and, where timm is installed and the device is the CPU, with timm's (eager) in evaluation.
Medians.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contenders
import jax
import jax.numpy as jnp
import numpy as np

import nfnets
from nfnets.models import Model, Params


def our_forward(model: Model, params: Params, images: jax.Array) -> contenders.Contender:
    def forward(params: Params, images: jax.Array) -> jax.Array:
        return model.apply(params, {}, None, images)[0]["logits"]

    compiled = jax.jit(forward).lower(params, images).compile()
    return lambda: compiled(params, images)


def timm_forward(name: str, images: jax.Array) -> contenders.Contender:
    import torch

    network = contenders.timm_network(name).eval()
    inputs = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous()

    def forward() -> None:
        with torch.inference_mode():
            network(inputs)

    return forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["nfnet_f0"])
    parser.add_argument("--size", type=int, help="pixels; default: the model's test size")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--compute_dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with_timm = contenders.has_timm() and jax.default_backend() == "cpu"
    print(f"{contenders.machine()}; {options.compute_dtype}")
    print("| model | px | batch | as trained, ms | folded, ms | gain | timm, ms |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        model = nfnets.create_model(name, compute_dtype=options.compute_dtype)
        size = options.size or model.spec.recipe.test_size
        example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        params, _ = model.init(jax.random.key(0), example)
        folded, folded_params = nfnets.fold(model, params)
        for batch in options.batch:
            images = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
            found = {
                "plain": our_forward(model, params, images),
                "folded": our_forward(folded, folded_params, images),
            }
            if with_timm:
                found["timm"] = timm_forward(name, images)
            times = contenders.in_turns(found, options.rounds)
            ms = {key: contenders.median_ms(seconds) for key, seconds in times.items()}
            of_timm = f"{ms['timm']:,.1f}" if with_timm else ""
            print(
                f"| {name} | {size} | {batch} | {ms['plain']:,.1f} | {ms['folded']:,.1f} "
                f"| {ms['plain'] / ms['folded']:.2f}x | {of_timm} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
