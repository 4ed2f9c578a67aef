"""What to choose when fine-tuning: learning rate, AGC, layer decay and freezing.

    pip install --no-deps scikit-image    # for its photographs; nothing of it is imported
    python benchmarks/finetuning.py [--images 10 100 1000] [--seeds 0 1 2] [--folder=DIR]

The classes are gray photographs that scikit-image and scikit-learn ship, the images 48x48
pixels cut from them. Each photograph is divided into tiles of 64x64; training images come
from the black tiles of the chessboard, evaluation images from the white ones. Pretrains
nfnet_tiny on ten photographs, then fine-tunes it on nine others with
`configs/finetune.py` and the differences of `SETTINGS`, one at a time.

Writes benchmarks/results/finetuning/N.json for N images per class, in which finished runs
are found when the script is started again, and prints the table of all of them.
"""

import argparse
from collections.abc import Sequence
import importlib.util
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import cv2
import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import finetune
from nfnets.training import loop
from nfnets.training.metric_writers import read_metrics
from nfnets.training.workdir import read_run
from nfnets.weights import save_weights

RESULTS = pathlib.Path(__file__).parent / "results" / "finetuning"
KNOWN = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
NEW = (
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/cell.png",
    "skimage/data/coins.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/moon.png",
    "skimage/data/page.png",
    "skimage/data/text.png",
)
TILE, CROP = 64, 48
EVAL_IMAGES = 100  # per class

# Images per class -> steps of 32 images.
STEPS = {10: 150, 100: 300, 1000: 600}
# The rates are per 256 images: 0.04 is 0.005 for 32.
SETTINGS: dict[str, dict[str, Any]] = {
    "recipe (0.04, AGC 0.1, decay 0.9)": {},
    "learning rate 0.01": {"train.learning_rate": 0.01},
    "learning rate 0.16": {"train.learning_rate": 0.16},
    "learning rate 0.64": {"train.learning_rate": 0.64},
    "no AGC": {"optimizer.clipping": None},
    "AGC 0.01": {"optimizer.clipping": 0.01},
    "layer decay 0.7": {"optimizer.layer_decay": 0.7},
    "no layer decay": {"optimizer.layer_decay": 1.0},
    "stem and first block frozen": {"optimizer.frozen": ("stem", "nf_block/", "nf_block:")},
    "all but the classifier frozen": {"optimizer.frozen": ("stem", "block", "final_conv")},
    "from scratch, 0.16": {
        "init_from": None,
        "train.learning_rate": 0.16,
        "optimizer.head_multiplier": 1.0,
        "optimizer.layer_decay": 1.0,
    },
    "from scratch, 0.64": {
        "init_from": None,
        "train.learning_rate": 0.64,
        "optimizer.head_multiplier": 1.0,
        "optimizer.layer_decay": 1.0,
    },
}


def find_photograph(name: str) -> str:
    """Returns the path of a file that a package ships."""
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is missing: pip install --no-deps scikit-image")
    return str(pathlib.Path(spec.origin).parent / inside)


def write_images(photographs: Sequence[str], folder: pathlib.Path, per_class: int) -> None:
    """Writes folder/{train,val}/CLASS/*.png."""
    for seed, name in enumerate(photographs):
        photograph = cv2.imread(find_photograph(name), cv2.IMREAD_GRAYSCALE)
        rows, columns = (side // TILE for side in photograph.shape)
        tiles = [(row, column) for row in range(rows) for column in range(columns)]
        for split, color, count in (("train", 0, per_class), ("val", 1, EVAL_IMAGES)):
            rng = np.random.default_rng((seed, color))
            own = [tile for tile in tiles if sum(tile) % 2 == color]
            out = folder / split / pathlib.Path(name).stem
            out.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                row, column = own[index % len(own)]
                top, left = rng.integers(0, TILE - CROP, 2, endpoint=True)
                top, left = row * TILE + top, column * TILE + left
                crop = photograph[top : top + CROP, left : left + CROP]
                cv2.imwrite(str(out / f"{index}.png"), crop)


def make_config(
    folder: pathlib.Path, steps: int, **changes: Any
) -> ml_collections.ConfigDict:
    """Returns `configs/finetune.py` for nfnet_tiny, with other changes by dotted name."""
    config = finetune.get_config()
    config.update_from_flattened_dict(
        {
            "model.name": "nfnet_tiny",
            "model.compute_dtype": "float32",
            "model.stochdepth_rate": 0.0,
            "data.source": f"folder:{folder}",
            "train.steps": steps,
            "train.warmup_steps": steps // 20,
            "train.log_every": max(1, steps // 5),
            "train.writers": ("json",),
            "eval.every_epochs": None,
            "eval.batch_size": 100,
            "checkpoint.every_epochs": None,
        }
    )
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(changes)
    return config


def accuracy(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains, and returns the top-1 of the weights and of their average."""
    loop.train(config, str(workdir))
    jax.clear_caches()
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    return {"top1": last["eval/top1"], "ema_top1": last["eval/ema_top1"]}


def pretrain(root: pathlib.Path) -> pathlib.Path:
    """Returns the weights file of nfnet_tiny trained on the known photographs."""
    weights = root / "pretrained.safetensors"
    if not weights.exists():
        write_images(KNOWN, root / "known", 1000)
        changes = SETTINGS["from scratch, 0.16"] | {"data.batch_size": 64}
        config = make_config(root / "known", 2000, **changes)
        print("pretraining:", accuracy(config, root / "pretraining"), flush=True)
        save_weights(weights, *read_run(root / "pretraining").weights["ema"])
    return weights


def fine_tune(root: pathlib.Path, images: int, seeds: list[int], names: list[str]) -> None:
    """Adds the missing runs to the results file of this number of images per class."""
    weights = pretrain(root)
    write_images(NEW, root / f"new-{images}", images)
    path = RESULTS / f"{images}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    done = {(row["setting"], row["seed"]) for row in rows}
    for name in names:
        for seed in seeds:
            if (name, seed) in done:
                continue
            changes = {"init_from": str(weights), **SETTINGS[name], "seed": seed}
            config = make_config(root / f"new-{images}", STEPS[images], **changes)
            with tempfile.TemporaryDirectory() as workdir:
                top1 = accuracy(config, pathlib.Path(workdir))
            rows.append({"setting": name, "images": images, "seed": seed, **top1})
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
            print(rows[-1], flush=True)


def print_table() -> None:
    """Prints means and ranges of all results as Markdown."""
    counts = [count for count in STEPS if (RESULTS / f"{count}.json").exists()]
    print("\n| | " + " | ".join(f"{count} images" for count in counts) + " |")
    print("|---|" + "---|" * len(counts))
    results = {c: json.loads((RESULTS / f"{c}.json").read_text()) for c in counts}
    for name in SETTINGS:
        cells = []
        for rows in results.values():
            top1 = [100 * row["top1"] for row in rows if row["setting"] == name]
            spread = f" ({min(top1):.1f} to {max(top1):.1f})" if top1 else ""
            cells.append(f"{statistics.mean(top1):.1f}{spread}" if top1 else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=list(STEPS), choices=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--folder", type=pathlib.Path, help="keep images and weights here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or pathlib.Path(temporary)
        for images in options.images:
            fine_tune(root, images, options.seeds, options.settings)
    print_table()


if __name__ == "__main__":
    main()
