"""Runs one contender of `inference.py` in a process, which may be of another environment.

    python inference_workers.py CONTENDER MODEL FOLDER PHOTOGRAPHS [BATCH ...]

CONTENDER is nfnets, timm, timm-compiled or onnx. FOLDER has `weights.safetensors`,
`timm.safetensors`, `model.onnx` and `model.json`. Without BATCH, classifies the first
photograph, prints its class and ends. Otherwise classifies all once per batch size, prints
"ready", and then again for each batch size that it reads from stdin, printing the seconds.

Decoding, resizing and cropping are part of the work: by OpenCV in threads for nfnets and
ONNX, by Pillow in two processes of PyTorch's DataLoader for timm (its own default).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

# From paths and a batch size to probabilities or logits, [classes] each.
Classify = Callable[[list[str], int], Iterable[np.ndarray]]


def our_classifier(folder: pathlib.Path, model: str) -> Classify:
    """Returns what `nfnets predict` does, compiled once for each batch size."""
    from nfnets.cpu import memory
    from nfnets.inference import load_classifier
    from nfnets.tools import predict
    from nfnets.training.distributed import prepare_process

    prepare_process()
    classifier = load_classifier(str(folder / "weights.safetensors"))
    compiled = classifier.compile()
    object.__setattr__(classifier, "compile", lambda: compiled)
    memory.keep_memory()

    def classify(paths: list[str], batch: int) -> Iterator[np.ndarray]:
        for found in predict.predict(
            classifier, paths, top=1, batch_size=batch, on_error=print
        ):
            yield np.eye(1, 1000, found.classes[0])[0]

    return classify


def onnx_classifier(folder: pathlib.Path, model: str) -> Classify:
    """Returns a loop around onnxruntime that prepares the next batch meanwhile."""
    import cv2
    import onnxruntime

    info = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    size, crop_fraction = info["image_size"], info["crop_fraction"] or 1.0

    def load(path: str) -> np.ndarray:
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        scale = size / crop_fraction / min(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = ((side - size) // 2 for side in image.shape[:2])
        return image[top : top + size, left : left + size]

    def classify(paths: list[str], batch: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(2) as pool:
            chunks = [paths[i : i + batch] for i in range(0, len(paths), batch)]
            loading = [pool.submit(load, path) for path in chunks[0]]
            for following in [*chunks[1:], []]:
                images = np.stack([image.result() for image in loading])
                loading = [pool.submit(load, path) for path in following]
                yield from session.run(None, {"images": images})[0]

    return classify


def timm_classifier(folder: pathlib.Path, model: str, is_compiled: bool) -> Classify:
    """Returns what timm's inference script does, with Pillow in place of torchvision."""
    import contenders
    from PIL import Image
    import safetensors.torch
    import torch

    network = contenders.timm_network(model).eval()
    network.load_state_dict(safetensors.torch.load_file(folder / "timm.safetensors"))
    forward: Any = torch.compile(network) if is_compiled else network
    info = json.loads((folder / "model.json").read_text())
    size, crop_fraction = info["image_size"], info["crop_fraction"] or 1.0
    loaders: dict[int, Any] = {}

    class Photographs(torch.utils.data.Dataset):
        def __init__(self, paths: list[str]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            image = Image.open(self.paths[index]).convert("RGB")
            scale = size / crop_fraction / min(image.size)
            width, height = (max(size, round(scale * side)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - size) // 2, (height - size) // 2
            image = image.crop((left, top, left + size, top + size))
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
            mean, stddev = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            columns = [torch.tensor(values)[:, None, None] for values in (mean, stddev)]
            return (pixels - columns[0]) / columns[1]

    def classify(paths: list[str], batch: int) -> Iterator[np.ndarray]:
        if batch not in loaders:
            workers = 2 if len(paths) > 1 else 0
            loaders[batch] = torch.utils.data.DataLoader(
                Photographs(paths),
                batch,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
        for images in loaders[batch]:
            with torch.inference_mode():
                yield from forward(images).numpy()

    return classify


def main() -> None:
    contender, model, folder, photographs, *batches = sys.argv[1:]
    here = pathlib.Path(folder)
    classify: Classify
    if contender == "nfnets":
        classify = our_classifier(here, model)
    elif contender == "onnx":
        classify = onnx_classifier(here, model)
    else:
        classify = timm_classifier(here, model, contender == "timm-compiled")
    paths = sorted(str(path) for path in pathlib.Path(photographs).iterdir())
    if not batches:
        print("class", *(int(np.argmax(row)) for row in classify(paths[:1], 1)))
        return

    def run(batch: int) -> list[int]:
        return [int(np.argmax(row)) for row in classify(paths, batch)]

    for batch in map(int, batches):
        classes = run(batch)
    print("ready", *classes, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
