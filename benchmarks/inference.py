"""Classifying photographs: this project, timm (PyTorch) and the ONNX file in onnxruntime.

    pip install -e '.[onnx]'
    python benchmarks/inference.py --timm-python=OTHER/bin/python [nfnet_f0 eca_nfnet_l0]

Prints two tables: seconds of a process that classifies one photograph, and images per
second over a folder, decoding included; writes benchmarks/results/inference/MODEL.json.
Every contender runs in a process of its own, in turns; the tables hold medians. Weights are
random, the same for all contenders. The photographs are JPEG files made of those that
scikit-learn and, if installed, scikit-image ship.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import contenders
import cv2
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import nfnets
from nfnets.tools import convert, export
from nfnets.weights import describe_model, save_weights

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKER = str(ROOT / "benchmarks" / "inference_workers.py")
RESULTS = ROOT / "benchmarks" / "results" / "inference"
CONTENDERS = ("nfnets", "timm", "timm-compiled", "onnx")
PHOTOGRAPHS = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "skimage": ("data/astronaut.png", "data/chelsea.png", "data/coffee.png"),
}


def write_photographs(folder: pathlib.Path, count: int) -> None:
    """Writes `count` JPEG files, repetitions of the photographs that packages ship."""
    images = []
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            images += [cv2.imread(str(pathlib.Path(spec.origin).parent / n)) for n in names]
    folder.mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:03}.jpg"), images[index % len(images)])


def write_files(name: str, folder: pathlib.Path) -> None:
    """Writes weights drawn at random, for this project and for timm, and the ONNX file.

    Arrays that start at zero, such as the skip gains, get noise: a branch that is
    multiplied by zero could be left out.
    """
    model = nfnets.create_model(name, timm_compat=name.startswith("nfnet_f"))
    size = model.spec.recipe.test_size
    params, state = model.init(jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: np.float32(a + 0.1 * (np.std(a) + 0.1) * rng.standard_normal(a.shape)),
        params,
    )
    weights = str(folder / "weights.safetensors")
    save_weights(weights, params, state, describe_model(model))
    convert.main([weights, "--to=timm", f"--out={folder / 'timm.safetensors'}"])
    export.main([f"--weights={weights}", f"--out={folder}", "--format=onnx"])


def seconds_of(command: list[str], cache: str) -> float:
    """Returns the seconds from the command to its end."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(
        command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    return time.perf_counter() - start


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Returns medians of the seconds that the contenders return, called alternately."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(contender())
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def first_answers(
    commands: dict[str, list[str]], cache: str, rounds: int
) -> dict[str, float]:
    """Times whole processes, of which the first turn fills the caches."""
    photo = commands["nfnets"]
    for command in commands.values():
        seconds_of(command, cache)

    def nothing_cached() -> float:
        with tempfile.TemporaryDirectory() as empty:
            return seconds_of(photo, empty)

    runs: dict[str, Callable[[], float]] = {
        name: functools.partial(seconds_of, command, cache)
        for name, command in commands.items()
    }
    return in_turns(runs | {"nfnets, nothing cached": nothing_cached}, rounds)


@contextlib.contextmanager
def worker(command: list[str], cache: str) -> Iterator[Callable[[int], float]]:
    """Starts a worker; yields a function from the batch size to the seconds of a turn."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    lines = iter(stdout.readline, "")
    ready = next((line for line in lines if line.startswith("ready")), "")
    if not ready:
        sys.exit(f"ended before it was ready: {' '.join(command)}")
    print(f"{command[2]}: classes {' '.join(ready.split()[1:6])} ...", file=sys.stderr)

    def turn(batch: int) -> float:
        print(batch, file=stdin, flush=True)
        return float(stdout.readline())

    try:
        yield turn
    finally:
        stdin.close()
        process.wait()


def folder_rates(
    commands: dict[str, list[str]], cache: str, batches: list[int], count: int, rounds: int
) -> dict[int, dict[str, float]]:
    """Returns images per second by batch size and contender."""
    with contextlib.ExitStack() as stack:
        extra = list(map(str, batches))
        turns = {
            name: stack.enter_context(worker([*command, *extra], cache))
            for name, command in commands.items()
        }
        rates = {}
        for batch in batches:
            found = in_turns(
                {name: functools.partial(turn, batch) for name, turn in turns.items()},
                rounds,
            )
            rates[batch] = {name: count / seconds for name, seconds in found.items()}
    return rates


def measure(
    name: str, root: pathlib.Path, options: argparse.Namespace
) -> dict[str, object]:
    """Returns all figures of one model."""
    folder, photographs, cache = root / name, root / "photographs", str(root / "cache")
    folder.mkdir()
    write_files(name, folder)
    pythons = dict.fromkeys(CONTENDERS, sys.executable)
    pythons |= {"timm": options.timm_python, "timm-compiled": options.timm_python}
    workers = {
        contender: [
            pythons[contender],
            WORKER,
            contender,
            name,
            *map(str, (folder, photographs)),
        ]
        for contender in options.contenders
    }
    predict = [sys.executable, "-m", "nfnets", "predict"]
    photo = str(photographs / "000.jpg")
    once = workers | {
        "nfnets": [*predict, f"--model={folder / 'weights.safetensors'}", photo]
    }
    once.pop("timm-compiled", None)
    first = first_answers(once, cache, options.rounds)
    print(f"{name}: {first}", file=sys.stderr)
    rates = folder_rates(workers, cache, options.batch, options.photographs, options.rounds)
    return {"first_answer_seconds": first, "images_per_second": rates}


def print_tables(results: dict[str, dict]) -> None:
    """Prints the results as Markdown."""
    for key, title in (("first_answer_seconds", "s to the first answer"), ("", "images/s")):
        rows = {}
        for name, found in results.items():
            if key:
                rows[name] = found[key]
            else:
                for batch, rates in found["images_per_second"].items():
                    rows[f"{name}, batch {batch}"] = rates
        columns = list(next(iter(rows.values())))
        print(f"\n| {title} | {' | '.join(columns)} |")
        print("|---|" + "---:|" * len(columns))
        for row, cells in rows.items():
            print(f"| {row} | {' | '.join(f'{cells[column]:.2f}' for column in columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["nfnet_f0", "eca_nfnet_l0"])
    parser.add_argument("--timm-python", default=sys.executable, help="with torch and timm")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--photographs", type=int, default=64, help="files in the folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    versions = "from importlib.metadata import version as v; print(v('torch'), v('timm'))"
    timm = subprocess.check_output([options.timm_python, "-c", versions], text=True)
    facts = {
        "date": str(datetime.date.today()),
        "machine": contenders.machine(),
        "torch and timm": timm.strip(),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        write_photographs(root / "photographs", options.photographs)
        for name in options.models:
            results[name] = measure(name, root, options)
            text = json.dumps(facts | results[name], indent=1) + "\n"
            (options.out / f"{name}.json").write_text(text)
    print_tables(results)


if __name__ == "__main__":
    main()
