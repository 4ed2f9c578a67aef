"""Images per second of the input pipeline and of an equivalent tf.data pipeline.

    python benchmarks/input_pipeline.py [--rounds=5] [--images=1500] [--no-workers]
    python benchmarks/input_pipeline.py --rounds=0    (the ceilings alone)

Measures decoding, cropping, bicubic resizing and mirroring of synthetic JPEGs of about
500x375 pixels. The pipelines take turns; the medians form a Markdown table. tf.data takes
part if TensorFlow is installed. CPU time includes the worker processes.

Then come the ceilings, whatever the number of cores: images/s of one process where images
are so small that nearly all is overhead, and the training process's own CPU time for each
image that a worker makes.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from nfnets import data

BATCH = 128
TRAIN_SIZES = (192, 224, 320)
EVAL_SIZE = 256
TINY = 16  # height and width of the images that measure overhead, pixels
TINY_BATCH = 1024
WARM_UP_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class JpegSource:
    """Cycles through a few JPEGs."""

    jpegs: tuple[bytes, ...]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> data.Record:
        return data.Record(
            self.jpegs[index % len(self.jpegs)], index % 1000, f"jpeg {index}"
        )


def make_jpegs(count: int, seed: int = 0) -> tuple[bytes, ...]:
    """Returns JPEGs of smooth noise at several scales, 35 to 65 kB, near 500x375 pixels."""
    rng = np.random.default_rng(seed)
    jpegs = []
    for _ in range(count):
        height, width = rng.integers(330, 400), rng.integers(480, 520)
        image = np.full((height, width, 3), 128.0, np.float32)
        for cells, strength in ((4, 60), (16, 35), (64, 18), (200, 14)):
            noise = rng.normal(0, strength, (cells * 3 // 4, cells, 3)).astype(np.float32)
            image += cv2.resize(
                noise, (int(width), int(height)), interpolation=cv2.INTER_CUBIC
            )
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        jpegs.append(
            cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        )
    return tuple(jpegs)


@contextlib.contextmanager
def ours(
    jpegs: tuple[bytes, ...],
    size: int,
    is_training: bool,
    workers: int,
    threads: int | None,
    batch_size: int = BATCH,
) -> Iterator[Iterator[np.ndarray]]:
    """Yields an iterator over the image batches of nfnets."""
    source = JpegSource(jpegs, 2**20)
    read = {"threads": threads, "workers": workers, "batch_size": batch_size}
    if is_training:
        crop = data.CropOptions(image_size=size)
        batches = data.train_batches(source, seed=0, crop=crop, **read)
    else:
        batches = data.eval_batches(source, image_size=size, **read)
    with batches:
        yield (batch.images for batch in batches)


@contextlib.contextmanager
def tf_data(
    jpegs: tuple[bytes, ...], size: int, is_training: bool
) -> Iterator[Iterator[np.ndarray]]:
    """Yields an iterator over the image batches of tf.data, as in the published code."""
    import tensorflow as tf

    def train_image(jpeg: "tf.Tensor") -> "tf.Tensor":
        shape = tf.image.extract_jpeg_shape(jpeg)
        start, extent, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4]),
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([start[0], start[1], extent[0], extent[1]])
        image = tf.image.decode_and_crop_jpeg(jpeg, window, channels=3)
        return tf.image.random_flip_left_right(resize(image, size))

    def eval_image(jpeg: "tf.Tensor") -> "tf.Tensor":
        image = resize(tf.image.decode_jpeg(jpeg, channels=3), size + 32)
        return image[16 : 16 + size, 16 : 16 + size]

    def resize(image: "tf.Tensor", side: int) -> "tf.Tensor":
        resized = tf.image.resize(image, [side, side], "bicubic")
        return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(list(jpegs)).repeat()
    dataset = dataset.map(
        train_image if is_training else eval_image, num_parallel_calls=tf.data.AUTOTUNE
    )
    dataset = dataset.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    yield dataset.with_options(options).as_numpy_iterator()


Pipeline = contextlib.AbstractContextManager[Iterator[np.ndarray]]


def measure(
    make: Callable[[], Pipeline], images: int, cpu_seconds: Callable[[], float]
) -> tuple[float, float]:
    """Returns images per second and CPU milliseconds per image."""
    with make() as batches:
        for _ in range(WARM_UP_BATCHES):
            next(batches)
        count = 0
        started, cpu_started = time.perf_counter(), cpu_seconds()
        while count < images:
            count += math.prod(next(batches).shape[:-3])
        seconds = time.perf_counter() - started
        cpu = cpu_seconds() - cpu_started
    return count / seconds, 1e3 * cpu / count


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and its running children."""
    total = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    tick = os.sysconf("SC_CLK_TCK")
    for child in os.listdir("/proc"):
        if not child.isdecimal():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{child}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
            if int(fields[1]) == os.getpid():
                total += (int(fields[11]) + int(fields[12])) / tick
    return total


def choose_pipelines(
    with_workers: bool, threads: int | None
) -> dict[str, Callable[..., Pipeline]]:
    """Returns the pipelines by name, as functions of (jpegs, size, is_training)."""
    pipelines: dict[str, Callable[..., Pipeline]] = {
        name: functools.partial(ours, workers=workers, threads=threads)
        for workers, name in enumerate(
            ("ours, threads", "ours, 1 worker", "ours, 2 workers")
        )
        if with_workers or not workers
    }
    if importlib.util.find_spec("tensorflow") is not None:
        pipelines["tf.data"] = tf_data
    else:
        print("TensorFlow is not installed; skipping tf.data.")
    return pipelines


def print_ceilings(jpegs: tuple[bytes, ...], images: int, with_workers: bool) -> None:
    """Measures overhead and prints a table; the medians of three rounds."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, TINY, TINY, 3), np.uint8)
    tiny = tuple(cv2.imencode(".jpg", one)[1].tobytes() for one in pixels)
    tasks = [
        (f"{TINY} px, {threads} threads", tiny, TINY, 0, threads, TINY_BATCH)
        for threads in (1, 4, 16)
    ]
    size = TRAIN_SIZES[0]
    if with_workers:
        tasks += [(f"{size} px, {n} workers", jpegs, size, n, None, BATCH) for n in (1, 2)]
    print("\n| ceiling | images/s | CPU ms/image of this process |\n|---|---|---|")
    for task, files, size, workers, threads, batch in tasks:
        make = functools.partial(ours, files, size, True, workers, threads, batch)
        count = images if workers else 10 * images
        rounds = [measure(make, count, time.process_time) for _ in range(3)]
        speed, cpu = map(statistics.median, zip(*rounds, strict=True))
        print(f"| {task} | {speed:,.0f} | {cpu:.3f} |", flush=True)


def main() -> None:
    """Measures all pipelines and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="0: only the ceilings")
    parser.add_argument("--images", type=int, default=1500, help="per round and pipeline")
    parser.add_argument("--threads", type=int, help="default: see nfnets.data")
    parser.add_argument("--no-workers", action="store_true")
    options = parser.parse_args()

    jpegs = make_jpegs(200)
    pipelines = choose_pipelines(not options.no_workers, options.threads)
    tasks = [(f"train {size}", size, True) for size in TRAIN_SIZES]
    tasks.append((f"evaluate {EVAL_SIZE}", EVAL_SIZE, False))
    mean_size = statistics.mean(map(len, jpegs)) / 1000
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, OpenCV {cv2.__version__}; "
        f"JPEGs of {mean_size:.0f} kB; batches of {BATCH}; medians of {options.rounds}"
    )
    if options.rounds:
        print(
            "| task | pipeline | images/s | range | CPU ms/image |\n|---|---|---|---|---|"
        )
    for task, size, is_training in tasks if options.rounds else ():
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
        for _ in range(options.rounds):
            for name, make in pipelines.items():
                work = functools.partial(make, jpegs, size, is_training)
                results[name].append(measure(work, options.images, _cpu_seconds))
        for name, rounds in results.items():
            speeds, cpu = zip(*rounds, strict=True)
            median, spread = statistics.median(speeds), (min(speeds), max(speeds))
            cells = [task, name, f"{median:,.0f}", "{:,.0f} to {:,.0f}".format(*spread)]
            cells.append(f"{statistics.median(cpu):.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    print_ceilings(jpegs, options.images, not options.no_workers)


if __name__ == "__main__":
    main()
