"""Sources and files that several tests use."""

import dataclasses
import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np

from nfnets import data

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class NumberedSource:
    """Records whose label is their number; some of them unreadable.

    Attributes:
        length: number of records.
        unreadable: numbers of records that cannot be read.
        undecodable: numbers of records whose bytes are no image.
    """

    length: int
    unreadable: tuple[int, ...] = ()
    undecodable: tuple[int, ...] = ()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        name = f"record {index}"
        if index in self.unreadable:
            raise data.UnreadableRecordError(name, "no such file")
        if index in self.undecodable:
            return data.Record(b"nonsense", index, name)
        rng = np.random.default_rng(index)
        return data.Record(rng.integers(0, 256, (6, 9, 3), np.uint8), index, name)


@dataclasses.dataclass(frozen=True)
class DeadlySource(NumberedSource):
    """One of its records ends the process that reads it.

    Attributes:
        deadly: number of that record.
        signal: that the process sends itself.
    """

    deadly: int = 0
    signal: int = signal.SIGKILL

    def __getitem__(self, index):
        if index == self.deadly:
            os.kill(os.getpid(), self.signal)
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class FlakySource(NumberedSource):
    """Some of its records can be read only after a few failures.

    Attributes:
        failures: how often each of `flaky` fails, in all processes together; -1: always.
        flaky: numbers of these records.
        marks: a folder that has a file for each of them, a byte for each failure.
        code: of the OSError.
    """

    failures: int = 0
    flaky: tuple[int, ...] = ()
    marks: str = ""
    code: int = errno.EIO

    def __getitem__(self, index):
        if index in self.flaky:
            mark = pathlib.Path(self.marks, str(index))
            if (
                self.failures < 0
                or not mark.exists()
                or mark.stat().st_size < self.failures
            ):
                with mark.open("ab") as file:
                    file.write(b".")
                raise OSError(self.code, os.strerror(self.code), f"record {index}")
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class SlowSource(NumberedSource):
    """Takes its time over every record.

    Attributes:
        marks: a folder; every process that reads records leaves a file there.
        seconds: that a record takes.
    """

    marks: str = ""
    seconds: float = 0.02

    def __getitem__(self, index):
        pathlib.Path(self.marks, str(os.getpid())).touch()
        time.sleep(self.seconds)
        return super().__getitem__(index)


def picture(height=40, width=50, seed=0):
    """A smooth color image, uint8 [height, width, 3], RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def encoded(image, extension, *options):
    """The bytes of an image file; `image` is RGB or gray."""
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    ok, file = cv2.imencode(extension, image, list(options))
    assert ok
    return file.tobytes()


def write_folder(root, counts, extension=".jpg"):
    """Writes `counts[split][class]` images into root/split/class/."""
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / f"{split}_{name.replace('/', '_')}_{number}{extension}"
                path.write_bytes(encoded(picture(seed=number), extension.lower()))


def run_python(*arguments, timeout=60, **options):
    """Runs Python in the repository's root; returns the completed process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
