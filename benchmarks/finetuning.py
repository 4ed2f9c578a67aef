"""Gain of fine-tuning: pretrained on half of the digits, ten images each of the others.

    python benchmarks/finetuning.py [--folder=DIR]

Pretrains nfnet_tiny on the digits 0 to 4, then trains on ten images of each of the digits
5 to 9, from those weights and from scratch, with the same steps, and prints the test
accuracies.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import cv2
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from configs import digits
from nfnets.data import open_dataset
from nfnets.training import loop
from nfnets.training.metric_writers import read_metrics
from nfnets.training.workdir import read_run
from nfnets.weights import save_weights

IMAGES_PER_CLASS = 10
SEEDS = (0, 1, 2)


def write_folders(root: pathlib.Path) -> None:
    """Writes root/{known,new}/{train,val}/DIGIT/*.png; `new` has few training images."""
    dataset = open_dataset("digits")
    for split, records in (("train", dataset.train), ("val", dataset.evaluation)):
        counts = np.zeros(10, int)
        for index in range(len(records)):
            record = records[index]
            part = "known" if record.label < 5 else "new"
            is_enough = counts[record.label] >= IMAGES_PER_CLASS
            if part == "new" and split == "train" and is_enough:
                continue
            counts[record.label] += 1
            folder = root / part / split / str(record.label)
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{index}.png"), record.image[..., ::-1])


def make_config(folder: pathlib.Path, batch: int, steps: int) -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.data.source = f"folder:{folder}"
    config.data.eval_split = "val"
    config.data.batch_size = batch
    config.train.steps = steps
    config.train.warmup_steps = steps // 20
    config.eval.every_epochs = None
    config.checkpoint.every_epochs = None
    config.train.log_every = max(1, steps // 5)
    return config


def accuracy(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> float:
    loop.train(config, str(workdir))
    return read_metrics(workdir / "metrics.jsonl")[-1]["eval/top1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, help="keep the runs here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or pathlib.Path(temporary)
        write_folders(root / "images")
        known, new = root / "images" / "known", root / "images" / "new"
        pretrained = accuracy(make_config(known, 64, 400), root / "pretrained")
        weights = root / "pretrained.safetensors"
        save_weights(weights, *read_run(root / "pretrained").weights["ema"])
        rows = []
        for seed in SEEDS:
            row = {"seed": seed}
            for name, init_from in (("scratch", None), ("fine-tuned", str(weights))):
                config = make_config(new, 50, 100)
                config.seed = seed
                config.init_from = init_from
                row[name] = accuracy(config, root / f"{name}-{seed}")
            rows.append(row)
    print(f"\npretrained on digits 0 to 4: {pretrained:.1%}")
    print("| seed | from scratch | fine-tuned |\n|---|---|---|")
    for row in rows:
        print(f"| {row['seed']} | {row['scratch']:.1%} | {row['fine-tuned']:.1%} |")
    means = [np.mean([row[name] for row in rows]) for name in ("scratch", "fine-tuned")]
    print(f"| mean | {means[0]:.1%} | {means[1]:.1%} |")
    print(json.dumps({"gain": float(means[1] - means[0])}))


if __name__ == "__main__":
    main()
