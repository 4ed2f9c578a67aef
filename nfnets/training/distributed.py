"""Processes: setup of each, joining several into one run, and exchanging values.

Every function also works in a single process, where nothing needs to be exchanged.
"""

from collections.abc import Iterator
import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import sys
import traceback
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from nfnets import cli
from nfnets.cpu import memory
from nfnets.errors import UserError

_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# A lost process is noticed after this time at the latest.
_HEARTBEAT_SECONDS = 30
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def prepare_process() -> None:
    """Sets up JAX in this process; to be called before a device is used.

    Compiled programs are cached in the folder of JAX_COMPILATION_CACHE_DIR, by default
    ~/.cache/nfnets/xla; not at all if that variable is empty. See also
    `nfnets.cpu.memory`.
    """
    memory.run_in_main_thread()
    folder = os.environ.get(_CACHE_VARIABLE, "~/.cache/nfnets/xla")
    if folder:
        # Not by pathlib, which turns gs://bucket into gs:/bucket.
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def session(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the other processes of the run, if there are any, for the length of a context.

    Missing arguments come from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, a Slurm step of several tasks, or a Cloud TPU. To be entered before
    a device is used.

    An error in one of several processes ends that process at once, without waiting for the
    others, which would hang. They notice within `_HEARTBEAT_SECONDS` and end, too.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: of the run.
      process_id: of this process, from 0.

    Raises:
      UserError: only some of the three are given, or the other processes do not answer.
    """
    if not _join(coordinator, num_processes, process_id):
        yield
        return
    try:
        yield
    except BaseException as error:
        code = _report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _join(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> bool:
    given = _from_environment(
        coordinator=coordinator, num_processes=num_processes, process_id=process_id
    )
    if not given and not _in_slurm_step() and not _on_cloud_tpu():
        return False
    options: dict[str, Any] = {"heartbeat_timeout_seconds": _HEARTBEAT_SECONDS}
    if given:
        options |= {
            "coordinator_address": given["coordinator"],
            "num_processes": int(given["num_processes"]),
            "process_id": int(given["process_id"]),
        }
    # CPU devices otherwise see only those of their own process.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the other processes: {str(error).splitlines()[0]}; start the "
            "same command on every host, each with its own --process_id"
        ) from error
    return jax.process_count() > 1


def _from_environment(**given: Any) -> dict[str, Any]:
    """Returns the three values, from options or variables; empty if none is given."""
    values = {
        name: os.environ.get(_VARIABLES[name]) if value is None else str(value)
        for name, value in given.items()
    }
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return {}
    if missing:
        raise UserError(
            "a run of several processes needs --coordinator, --num_processes and "
            f"--process_id; missing: {', '.join(f'--{name}' for name in missing)}"
        )
    found = {name: value for name, value in values.items() if value is not None}
    for name in ("num_processes", "process_id"):
        if not found[name].isdigit():
            raise UserError(f"--{name} must be a number, not {found[name]!r}")
    if int(found["process_id"]) >= int(found["num_processes"]):
        raise UserError(
            f"--process_id={values['process_id']} is not below "
            f"--num_processes={values['num_processes']}"
        )
    return values


def _in_slurm_step() -> bool:
    """Whether srun started several tasks, which is not so in a batch script itself."""
    return (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        and "SLURM_STEP_NODELIST" in os.environ
    )


def _on_cloud_tpu() -> bool:
    has_device = any(pathlib.Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))
    return has_device and importlib.util.find_spec("libtpu") is not None


def _report(error: BaseException) -> int:
    """Prints why this process of several ends; returns its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UserError):
        return cli.report_error(error)
    traceback.print_exception(error)
    process = f"process {jax.process_index()} of {jax.process_count()}"
    advice = "restart every process to resume from the newest checkpoint"
    return cli.report_error(UserError(f"{process} failed; {advice}", exit_code=1))


def is_primary() -> bool:
    """Whether this process is the one that writes the workdir."""
    return jax.process_index() == 0


def log(line: str) -> None:
    """Prints a line in process 0; a full disk that stdout goes to is not an error."""
    if not is_primary():
        return
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def broadcast_object(value: Any) -> Any:
    """Returns process 0's value, which JSON must be able to hold, in every process."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode() if is_primary() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.frombuffer(data.ljust(size, b"\0"), np.uint8)[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def broadcast_arrays(tree: Any) -> Any:
    """Returns process 0's arrays in every process, as numpy arrays.

    Args:
      tree: of arrays in process 0, of anything with their shapes and dtypes elsewhere.
    """
    if jax.process_count() == 1:
        return tree
    if not is_primary():
        tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    return multihost_utils.broadcast_one_to_all(tree)


def _gather(value: int) -> np.ndarray:
    """Returns the integers of all processes, sent as two halves of 32 bits each."""
    halves = np.array(divmod(value, 2**31), np.int32)
    high, low = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64).T
    return high * 2**31 + low


def total(value: int) -> int:
    """Returns the sum of all processes' integers, each below 2^62."""
    return value if jax.process_count() == 1 else int(_gather(value).sum())


def minimum(value: int) -> int:
    """Returns the smallest of all processes' integers, each in [0, 2^62)."""
    return value if jax.process_count() == 1 else int(_gather(value).min())
