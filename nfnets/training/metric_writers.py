"""Metric writers: metrics.jsonl, TensorBoard, console, Weights & Biases.

`config.train.writers` names them. A writer of one's own, "package.module:Class", is a class
with the three methods of `MetricWriter`.
"""

from collections import deque
from collections.abc import Mapping
import errno
import json
import math
import pathlib
import time
from typing import Any, Protocol

import jax

from nfnets import imports
from nfnets.data import Dataset
from nfnets.errors import UserError
from nfnets.files import write_text_atomically
from nfnets.models import Model, count_multiply_adds, count_parameters
from nfnets.training.config import Config, flatten
from nfnets.training.distributed import log
from nfnets.training.state import (
    REFERENCE_BATCH,
    Network,
    compute_dtype,
    initial_shapes,
)

METRICS_FILE = "metrics.jsonl"

# Images of which a translation by the published 100 px leaves little, pixels.
_SMALL_IMAGE = 128

_SAM_SCOPE = {"global": "over all devices", "replica": "on each device"}


class MetricWriter(Protocol):
    """Writes the metrics of a run to one destination."""

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int) -> None:
        """Opens the destination.

        Args:
          config: resolved.
          workdir: folder of the run.
          first_step: updates made before; what was written for later steps, by a run that
            did not end well, is to be dropped or replaced.
        """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step: `train/NAME` or `eval/NAME` -> value.

        Raises:
          OSError: nothing was written; the same metrics are passed again later.
        """

    def close(self) -> None:
        """Flushes and closes the destination."""


class JsonWriter:
    """One JSON object a line: `step` and the metrics, null for non-finite values."""

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int) -> None:
        """See `MetricWriter`."""
        del config
        self._path = workdir / METRICS_FILE
        if self._path.exists():
            kept = [e for e in read_metrics(self._path) if e["step"] <= first_step]
            text = "".join(json.dumps(entry) + "\n" for entry in kept)
            write_text_atomically(self._path, text)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter`; writes a whole line or nothing."""
        numbers = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        data = json.dumps({"step": step, **numbers}).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            size = file.seek(0, 2)
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, "no space left", str(self._path))
            except OSError:
                file.truncate(size)
                raise

    def close(self) -> None:
        """See `MetricWriter`."""


class TensorBoardWriter:
    """TensorBoard event files in the workdir.

    Not by tensorboardX's SummaryWriter, whose thread dies of a full disk and then blocks
    the training.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int) -> None:
        """See `MetricWriter`."""
        del config
        self._workdir = workdir
        self._first_step = first_step
        self._events: Any = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        # Imported late: tensorboardX imports PyTorch if installed, which takes a second.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        try:
            if self._events is None:
                self._events = EventsWriter(str(self._workdir / f"events.{time.time_ns()}"))
                if self._first_step:  # TensorBoard drops older events of later steps
                    session = SessionLog(status=SessionLog.START)
                    self._events.write_event(
                        Event(step=self._first_step + 1, session_log=session)
                    )
            for key, value in metrics.items():
                summary = Summary(value=[Summary.Value(tag=key, simple_value=value)])
                event = Event(step=step, summary=summary, wall_time=time.time())
                self._events.write_event(event)
            self._events.flush()
        except OSError:
            self._events = None  # the file may be cut off; the next attempt starts another
            raise

    def close(self) -> None:
        """See `MetricWriter`."""
        if self._events is not None:
            self._events.close()


class ConsoleWriter:
    """One line for each report of training and for each evaluation."""

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int) -> None:
        """See `MetricWriter`."""
        del workdir
        self._total = config.train.steps
        self._first, self._start = first_step, time.monotonic()
        self._is_first_report = True

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        if "eval/examples" in metrics:
            values = "  ".join(
                f"{key.removeprefix('eval/')} {value:.4f}"
                for key, value in metrics.items()
                if key != "eval/examples"
            )
            log(f"eval at step {step}: {values}  ({metrics['eval/examples']} images)")
        if "train/loss" in metrics:
            top1 = f"top1 {metrics['train/top1']:.3f}  " if "train/top1" in metrics else ""
            log(
                f"step {step}/{self._total}  loss {metrics['train/loss']:.4f}  {top1}"
                f"lr {metrics['train/learning_rate']:.3g}  "
                f"{metrics['train/images_per_sec']:.1f} images/s  "
                f"ETA {self._time_left(step)}"
            )
            if self._is_first_report:  # compilation is not part of the remaining time
                self._is_first_report = False
                self._first, self._start = step, time.monotonic()

    def _time_left(self, step: int) -> str:
        done = max(1, step - self._first)
        seconds = (time.monotonic() - self._start) / done * (self._total - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"

    def close(self) -> None:
        """See `MetricWriter`."""


class WandbWriter:
    """Weights & Biases, in the project `nfnets`; needs `pip install wandb`."""

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int) -> None:
        """See `MetricWriter`."""
        del first_step
        try:
            import wandb
        except ImportError:
            raise UserError(
                "config.train.writers: wandb is not installed; pip install wandb"
            ) from None
        self._run = wandb.init(
            project="nfnets",
            name=workdir.name,
            dir=str(workdir),
            config=flatten(config),
            resume="auto",
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriter`."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """See `MetricWriter`."""
        self._run.finish()


WRITERS: dict[str, type[MetricWriter]] = {
    "json": JsonWriter,
    "tensorboard": TensorBoardWriter,
    "console": ConsoleWriter,
    "wandb": WandbWriter,
}


class MetricWriters:
    """Passes metrics to several writers; keeps and retries what one cannot write."""

    def __init__(self, config: Config, workdir: pathlib.Path, first_step: int) -> None:
        """Opens the writers of `config.train.writers`; see `MetricWriter`.

        Raises:
          UserError: the writer is unknown, or metrics.jsonl is damaged.
        """
        classes = {
            name: imports.find(name, WRITERS, "config.train.writers")
            for name in config.train.writers
        }
        self._writers: dict[str, MetricWriter] = {
            name: writer(config, workdir, first_step) for name, writer in classes.items()
        }
        self._pending: dict[str, deque[tuple[int, dict[str, float]]]] = {
            name: deque() for name in classes
        }
        self._failing: set[str] = set()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step; a writer that fails is retried at the next one."""
        for name in self._writers:
            self._pending[name].append((step, dict(metrics)))
            self._flush(name)

    def _flush(self, name: str) -> None:
        pending = self._pending[name]
        try:
            while pending:
                self._writers[name].write(*pending[0])
                pending.popleft()
        except BrokenPipeError:  # stdout was closed
            raise
        except OSError as error:
            if name not in self._failing:
                log(f"WARNING   cannot write metrics ({name}): {error}; trying again later")
            self._failing.add(name)
            return
        if name in self._failing:
            self._failing.remove(name)
            log(f"metrics   are written again ({name}); none is missing")

    def close(self) -> None:
        """Writes pending metrics and closes the writers.

        Raises:
          OSError: of a writer that cannot be closed.
        """
        for name, writer in self._writers.items():
            if self._pending[name]:
                self._flush(name)
            writer.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, but for a last line cut off by a crash.

    Raises:
      UserError: another line is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is not valid JSON ({error}); delete the line "
                    "or the file"
                ) from None
    return entries


def describe(
    config: Config, model: Network, dataset: Dataset, workdir: pathlib.Path
) -> list[str]:
    """Returns the lines that a run starts with.

    Args:
      config: resolved.
      model: from `build_model`.
      dataset: of the run.
      workdir: folder of the run.
    """
    devices, train, batch_size = jax.devices(), config.train, config.data.batch_size
    num_train = len(dataset.train)
    peak = train.learning_rate * batch_size / REFERENCE_BATCH
    lines = [
        f"model     {_describe_model(config, model)}",
        f"data      {dataset.name}: {num_train:,} training and "
        f"{len(dataset.evaluation):,} evaluation images, {dataset.num_classes} classes",
        f"training  {train.steps:,} steps of {batch_size} images "
        f"({train.steps * batch_size / num_train:.4g} epochs)",
        f"optimizer {config.optimizer.name}, peak learning rate {peak:.4g} "
        f"({train.schedule} after {train.warmup_steps:,} steps of warm-up), "
        f"AGC {config.optimizer.clipping}",
        f"devices   {len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
        + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else "")
        + f", {compute_dtype(config)}",
        f"workdir   {workdir} (config.json, metrics.jsonl, checkpoints)",
    ]
    is_batch_norm = isinstance(model, Model) and model.spec.block.normalization == "batch"
    if isinstance(train.microbatch, int):
        passes = batch_size // len(devices) // train.microbatch
        lines.append(f"passes    {passes} of {train.microbatch} images per device and step")
        if is_batch_norm:
            lines.append(
                "WARNING   batch normalization takes its statistics from "
                f"{train.microbatch} images at a time: unlike a normalizer-free network, "
                "this one does not train as it would on the whole batch"
            )
    if config.sam.rho is not None:
        lines.append(
            f"SAM       rho {config.sam.rho:g}, ascent on {config.sam.batch_fraction:.0%} "
            f"of the batch, normalized {_SAM_SCOPE[config.sam.normalize]}"
        )
    augment, size = config.augment, config.data.image_size
    distorts = augment.randaugment_layers > 0 or augment.autoaugment
    if distorts and size < _SMALL_IMAGE and not augment.scale_translation:
        lines.append(
            f"WARNING   translations of up to 100 px move most of a {size} px image out of "
            "sight; config.augment.scale_translation=True scales them"
        )
    if dataset.is_fake:
        lines.append("WARNING   the data is synthetic: accuracies mean nothing")
    return lines


def _describe_model(config: Config, model: Network) -> str:
    params, _ = initial_shapes(config, model)
    text = f"{config.model.name}: {count_parameters(params):,} parameters"
    if isinstance(model, Model):
        for size in sorted({config.data.image_size, config.eval.image_size}):
            count = count_multiply_adds(model, size)
            text += f", {count / 1e9:.4g} B multiply-adds at {size} px"
    return text
