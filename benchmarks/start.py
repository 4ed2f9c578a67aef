"""Time to the first step, and the cost of a step in Python.

    python benchmarks/start.py --size=192

starts `train.py` with NFNet-F0 on synthetic images twice, first with an empty compilation
cache, and prints the seconds from the command to the first step; then, in a run of its own,
the main thread's CPU time per step: batches, transfers, dispatch, metrics. (There XLA
computes in other threads.) Then the time of `Model.init` in a new process.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = {
    "data.source": "synthetic",
    "data.batch_size": 8,
    "data.workers": 0,
    "model.compute_dtype": "float32",
}

# Counts the main thread's time from step to step and stops after the last one.
_LOOP = """
import runpy, statistics, sys, time
from nfnets.training import metrics

times = []
add = metrics.StepMetrics.add

def timed(self, step, values):
    add(self, step, values)
    times.append(time.thread_time())
    if len(times) == 40:
        steps = [1e3 * (b - a) for a, b in zip(times[5:], times[6:])]
        print("median", statistics.median(steps), "most", max(steps), flush=True)
        raise SystemExit

metrics.StepMetrics.add = timed
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""

_INIT = """
import sys, time
start = time.perf_counter()
import jax, jax.numpy as jnp, nfnets
jax.devices()
imported = time.perf_counter()
images = jax.ShapeDtypeStruct((1, 192, 192, 3), jnp.float32)
jax.block_until_ready(nfnets.create_model(sys.argv[1]).init(jax.random.key(0), images))
print(imported - start, time.perf_counter() - imported)
"""


def arguments(model: str, size: int, steps: int, workdir: str, log_every: int) -> list[str]:
    """Returns the command line of train.py, its name first."""
    settings = SETTINGS | {
        "data.image_size": size,
        "train.steps": steps,
        "train.log_every": log_every,
    }
    return [
        "train.py",
        f"--config=configs/{model}.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def time_to_first_step(model: str, size: int, cache: str) -> float:
    """Seconds from the command to the line of step 1."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments(model, size, 4, f"{folder}/run", 1)],
            cwd=ROOT,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 1/"):
                seconds = time.perf_counter() - start
                process.kill()
                process.wait()
                return seconds
    sys.exit("train.py ended before its first step:\n" + "".join(lines))


def run_python(script: str, *argv: str, cache: str = "") -> list[float]:
    """Returns the numbers in the last line that a script prints."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONPATH": str(ROOT),
        # Otherwise XLA's work would count as the main thread's.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "true",
    }
    ended = subprocess.run(
        [sys.executable, "-c", script, *argv],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(n) for n in re.findall(r"\d+\.\d+", ended.stdout.splitlines()[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nfnet_f0")
    parser.add_argument("--size", type=int, default=192, help="pixels")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of starts")
    options = parser.parse_args()
    print("| | seconds | range |\n|---|---|---|")
    starts: dict[str, list[float]] = {"nothing cached": [], "cached": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for times in starts.values():
                times.append(time_to_first_step(options.model, options.size, cache))
    for name, times in starts.items():
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(
            f"| {options.model}, command to first step, {name} "
            f"| {statistics.median(times):.1f} | {spread} |",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        argv = arguments(options.model, 32, 50, f"{folder}/run", 50)
        median, most = run_python(_LOOP, *argv)
    print(
        f"| {options.model}, Python in one step of 32 px | {median / 1e3:.4f} "
        f"| to {most / 1e3:.4f} |"
    )
    for model in ("nfnet_f0", "nfnet_f6"):
        imported, drawn = run_python(_INIT, model)
        print(f"| {model}: Model.init, after {imported:.1f} s of imports | {drawn:.1f} | |")


if __name__ == "__main__":
    main()
