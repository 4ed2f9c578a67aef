"""TensorBoard event files."""

from collections.abc import Mapping
import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class EventFile:
    """One event file of a workdir; what cannot be written raises an OSError.

    Not tensorboardX's SummaryWriter: its thread dies of a full disk, and its queue then
    blocks the training.
    """

    def __init__(self, workdir: pathlib.Path, purge_step: int | None) -> None:
        """Opens a new file.

        Args:
          workdir: of the run.
          purge_step: TensorBoard drops what earlier files say of this step and later
            ones; None: nothing.
        """
        self._writer = EventsWriter(str(workdir / f"events.{time.time_ns()}"))
        if purge_step is not None:
            session = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step, session_log=session))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        for key, value in metrics.items():
            summary = Summary(value=[Summary.Value(tag=key, simple_value=value)])
            self._write(Event(step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Writes out what is left."""
        self._writer.close()
