"""Several processes as one run: joining, agreeing, and giving up together.

Every function also works in a single process, where it does next to nothing.
"""

from collections.abc import Iterator, Mapping
import contextlib
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

from nfnets import command
from nfnets.errors import UserError
from nfnets.training.last_words import LastWords

# A process that is gone is noticed after this many seconds, at the latest.
_HEARTBEAT_SECONDS = 30
_ADVICE = "start all of them again to go on from the newest checkpoint"
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@contextlib.contextmanager
def session(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the run's other processes, if there are any, for the length of a context.

    What the arguments leave open comes from the environment: JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, or a Slurm step of several tasks, or a Cloud TPU.
    To be entered before anything else touches a device.

    An error in one process of several ends this process at once: the others could not go
    on, and waiting for them would hang. They notice within `_HEARTBEAT_SECONDS` and end
    with a line of their own.

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
    last_words = LastWords(
        f"error: {_who()} was killed, or lost another one and was ended (see above); "
        f"{_ADVICE}"
    )
    try:
        yield
    except BaseException as error:
        code = _explain(error)
        last_words.farewell()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    last_words.farewell()


def _join(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> bool:
    given = _from_environment(
        {
            "coordinator": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
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
    # On CPU devices, which otherwise see their own process only.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the other processes: {str(error).splitlines()[0]}; start the "
            "same command on every host, each with its own --process_id"
        ) from error
    return jax.process_count() > 1


def _from_environment(given: Mapping[str, Any]) -> dict[str, Any]:
    """The three values, from flags or variables; empty where none is given."""
    values = {
        name: value if value is not None else os.environ.get(_VARIABLES[name])
        for name, value in given.items()
    }
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return {}
    if missing:
        raise UserError(
            f"several processes need --coordinator, --num_processes and --process_id; "
            f"missing: {', '.join(f'--{name}' for name in missing)}"
        )
    for name in ("num_processes", "process_id"):
        if not str(values[name]).isdigit():
            raise UserError(f"--{name} must be a number, not {values[name]!r}")
    if int(values["process_id"]) >= int(values["num_processes"]):
        raise UserError(
            f"--process_id={values['process_id']} is not below "
            f"--num_processes={values['num_processes']}"
        )
    return values


def _in_slurm_step() -> bool:
    """Whether srun started several tasks (in a batch script itself it has not)."""
    return (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        and "SLURM_STEP_NODELIST" in os.environ
    )


def _on_cloud_tpu() -> bool:
    has_device = any(pathlib.Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))
    return has_device and importlib.util.find_spec("libtpu") is not None


def _explain(error: BaseException) -> int:
    """Says why this process ends; returns its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UserError):
        return command.complain(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and _is_lost_process(error):
        reason = str(error).splitlines()[0]
        line = f"{_who()} lost another one ({reason}); {_ADVICE}"
        return command.complain(UserError(line, exit_code=1))
    traceback.print_exception(error)
    return 1


def _who() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _is_lost_process(error: Exception) -> bool:
    signs = ("gloo", "connection", "heartbeat", "coordination", "nccl", "timed out")
    return any(sign in str(error).lower() for sign in signs)


def is_primary() -> bool:
    """Whether this process writes what the run leaves behind."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line once, whatever the number of processes."""
    if is_primary():
        print(line, flush=True)


def broadcast_object(value: Any) -> Any:
    """Returns process 0's value, something that JSON can hold, in every process."""
    if jax.process_count() == 1:
        return value
    data = json.dumps(value).encode() if is_primary() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.frombuffer(data.ljust(size, b"\0"), np.uint8)[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def broadcast_arrays(tree: Any) -> Any:
    """Returns process 0's arrays in every process, as numpy arrays.

    Args:
      tree: in process 0 of arrays; in the others of anything with their shape and dtype.
    """
    if jax.process_count() == 1:
        return tree
    if not is_primary():
        tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    return multihost_utils.broadcast_one_to_all(tree)


def _gather(value: int) -> np.ndarray:
    """The integers of all processes; two halves, because devices count with 32 bits."""
    halves = np.array(divmod(value, 2**31), np.int32)
    high, low = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64).T
    return high * 2**31 + low


def total(value: int) -> int:
    """Returns the sum of all processes' integers, each below 2^62."""
    return value if jax.process_count() == 1 else int(_gather(value).sum())


def minimum(value: int) -> int:
    """Returns the smallest of all processes' integers, each in [0, 2^62)."""
    return value if jax.process_count() == 1 else int(_gather(value).min())
