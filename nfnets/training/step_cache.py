"""The compiled train step, kept for the next start.

JAX's compilation cache keeps programs by their text, so that a second start has to trace
and lower the step again to find it: NFNet-F0 takes 4 s for that on a CPU. Here the step is
kept under a digest of all that its text depends on, and is read while the initial state is
drawn.
"""

from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import pickle
import sys
import threading
from typing import Any

import jax
from jax.experimental import serialize_executable
import ml_collections

import nfnets
from nfnets.training import distributed
from nfnets.training.fingerprint import fingerprint
from nfnets.training.step import TrainStep

FOLDER = "train_steps"

_TRAIN_PY = pathlib.Path(nfnets.__file__).resolve().parents[1] / "train.py"

# Files of steps that are kept, the last used ones (F0: 12 MB each).
_KEPT = 16

# What JAX calls it when its own cache has a program.
_HIT = "/jax/compilation_cache/cache_hits"

_DIGEST_BYTES = hashlib.sha256().digest_size


class StepCache:
    """Finds the compiled step of a run among those of earlier starts, or adds it.

    Its construction starts to read the step in a thread, where one is kept. That is in the
    folder of JAX's compilation cache if that is a local one, in runs of a single process,
    and only by `train.py` itself: another program may have changed what is computed. In
    all other cases the step is just compiled.

    Such a file is as good as a program: whoever can write to the folder can have the next
    start execute what they like. So it is with JAX's own cache.
    """

    def __init__(self, config: ml_collections.FrozenConfigDict) -> None:
        """Looks for the step.

        Args:
          config: resolved, with a number or None for `train.microbatch`.
        """
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "step-cache")
        self._path: pathlib.Path | None = None
        self._read: concurrent.futures.Future[TrainStep | None] | None = None
        folder = jax.config.jax_compilation_cache_dir
        if not folder or "://" in folder or not _is_train_py() or jax.process_count() > 1:
            return
        try:
            name = fingerprint(config)
            if name is None:
                return
            path = pathlib.Path(folder) / FOLDER / f"{name}.bin"
            if path.exists():
                self._read = self._pool.submit(self._load, path)
        # A file went while it was looked at, a folder is closed to us, a package is not
        # installed as packages are.
        except (OSError, ImportError) as error:
            distributed.say(f"WARNING   the compiled step is not kept: {error}")
            return
        self._path = path

    def prepare(
        self, step: jax.stages.Wrapped, state: Any, batch: Mapping[str, Any]
    ) -> TrainStep:
        """Traces the step and begins to compile it in a thread, unless it is kept.

        Args:
          step: from `map_train_step`.
          state: a `TrainState` of arrays or `jax.ShapeDtypeStruct`.
          batch: name -> array or `jax.ShapeDtypeStruct`, as the step takes them.

        Returns:
          The compiled step, for arguments of these shapes only. Its first call waits for
          the thread and for its own results: a program that does not work shows only
          there. In several processes: `step` itself.
        """
        if jax.process_count() > 1:
            return step
        ready = self._read
        if ready is None:
            ready = self._pool.submit(self._compile, step.lower(state, batch))
        return _PreparedStep(
            ready, lambda *args: self._compile(step.lower(*args)), self._path
        )

    def _load(self, path: pathlib.Path) -> TrainStep | None:
        """The step in a file; None, and a line that says why, if it is not usable."""
        try:
            data = path.read_bytes()
            digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("it is damaged")
            step = serialize_executable.deserialize_and_load(
                *pickle.loads(content), execution_devices=jax.devices()
            )
            with contextlib.suppress(OSError):  # others' folder: good for reading
                os.utime(path)
        # Whatever an XLA that cannot use it says: then the step is compiled, as ever.
        except Exception as error:
            reason = str(error).partition("\n")[0]
            distributed.say(f"WARNING   {path} is not usable ({reason}); compiling again")
            _remove(path)
            return None
        return step

    def _compile(self, lowered: jax.stages.Lowered) -> TrainStep:
        """Compiles a step, and keeps it unless JAX's cache had it.

        XLA's CPU backend cannot write a program that it has read: some of its functions
        would be missing. Starts with such a step trace it and read it from JAX's cache, as
        all do with `train.microbatch=auto`, which has compiled it before.
        """
        with _jax_cache_hits() as hits:
            compiled = lowered.compile()
        if self._path is not None and not hits:
            try:
                content = pickle.dumps(serialize_executable.serialize(compiled))
                _write(self._path, hashlib.sha256(content).digest() + content)
            # The disk is full, or the backend's programs cannot be written: whatever it is,
            # the run has its step.
            except Exception as error:
                distributed.say(f"WARNING   the compiled step is not kept: {error}")
        return compiled


class _PreparedStep:
    """A step that another thread reads or compiles."""

    def __init__(
        self,
        ready: concurrent.futures.Future[TrainStep | None],
        compile_now: Callable[..., TrainStep],
        path: pathlib.Path | None,
    ) -> None:
        """Takes what the thread gives, and what to do instead.

        Args:
          ready: gives the step, or None where the file was not usable.
          compile_now: (state, batch) -> the step compiled for them; called after a None.
          path: where the step is kept, or None; removed if the first call fails.
        """
        self._ready = ready
        self._compile_now = compile_now
        self._path = path
        self._step: TrainStep | None = None

    def __call__(self, state: Any, batch: Mapping[str, jax.Array]) -> Any:
        if self._step is not None:
            return self._step(state, batch)
        self._step = self._ready.result() or self._compile_now(state, batch)
        try:
            return jax.block_until_ready(self._step(state, batch))
        except jax.errors.JaxRuntimeError:
            if self._path is not None:  # the next start is not to fail, too
                _remove(self._path)
            raise


@contextlib.contextmanager
def _jax_cache_hits() -> Iterator[list[str]]:
    """Collects what JAX's own cache gives this thread in the meantime."""
    hits: list[str] = []
    thread = threading.get_ident()

    def listen(event: str, **_: Any) -> None:
        if event == _HIT and threading.get_ident() == thread:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _is_train_py() -> bool:
    """Whether Python was started with this project's train.py."""
    program = ""
    for argument in sys.orig_argv[1:]:
        if argument.startswith(("-c", "-m")):
            return False
        if not argument.startswith("-"):
            program = argument
            break
    return pathlib.Path(program).resolve() == _TRAIN_PY


def _write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file as a whole, and removes those that were used longest ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    files = []
    with os.scandir(path.parent) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another start removes them, too
                files.append((entry.stat().st_mtime, entry.path))
    for _, old in sorted(files)[:-_KEPT]:
        _remove(pathlib.Path(old))


def _remove(path: pathlib.Path) -> None:
    """Removes a file, if it is there and may be removed."""
    with contextlib.suppress(OSError):
        path.unlink()
