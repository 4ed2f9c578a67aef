"""A digest of all that the compiled train step depends on, without tracing it."""

from collections.abc import Iterable, Iterator
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import sys
import sysconfig
from typing import Any

import jax
import ml_collections

import nfnets
from nfnets.training.config import flatten

# Packages that the step is traced through: their sources are looked at one by one, and
# the versions of those that are installed, because times can be set back.
_TRACED = ("nfnets", "jax", "jaxlib", "haiku", "optax", "chex", "jmp")
_VERSIONED = (
    *("jax", "jaxlib", "dm-haiku", "optax", "chex", "jmp"),
    *("numpy", "ml_dtypes", "ml_collections"),
)

# Variables that JAX, XLA and the accelerators' libraries read.
_VARIABLES = ("JAX_", "XLA_", "LIBTPU_", "NVIDIA_", "CUDA_", "TF_", "NPROC")
_IGNORED_SUFFIXES = ("cache_dir",)  # a folder's name changes no program

# By how much a file system's clock may be behind.
_CLOCK_NS = 1_000_000_000


def fingerprint(config: ml_collections.FrozenConfigDict) -> str | None:
    """Returns a hexadecimal digest of all that the compiled train step depends on.

    These are the config, the code that is traced, JAX's settings, the environment's and
    the devices. Code is nfnets, the libraries under it, whatever else has been imported
    and is not installed, and the Python files that the command line names.

    Args:
      config: resolved.

    Returns:
      The digest; None if code has changed since this process imported nfnets, so that
      what is on disk need not be what is traced.

    Raises:
      OSError: a file cannot be read.
      ImportError: a package is missing, or does not tell its version.
    """
    code, changed_ns = _code()
    if changed_ns > nfnets.IMPORTED_NS - _CLOCK_NS:
        return None
    parts = (
        flatten(config),
        [importlib.metadata.version(name) for name in _VERSIONED],
        sys.version,
        code,
        _settings(),
        {k: v for k, v in os.environ.items() if _matters(k) and k.startswith(_VARIABLES)},
        _devices(),
    )
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _settings() -> dict[str, str]:
    """JAX's settings, as they are in this thread where they can differ."""
    return {
        name: repr(getattr(jax.config, name, value))
        for name, value in jax.config.values.items()
        if _matters(name)
    }


def _matters(name: str) -> bool:
    """Whether a setting or variable may change the program."""
    return not name.lower().endswith(_IGNORED_SUFFIXES)


def _code() -> tuple[list[tuple[str, Any]], int]:
    """Files, each with what changes when it does, and when the last one changed (ns)."""
    entries: list[tuple[str, Any]] = []
    newest = 0

    def add(path: pathlib.Path, *, by_content: bool) -> None:
        nonlocal newest
        stat = path.stat()
        # Copying tools set the one time back, not the other.
        newest = max(newest, stat.st_mtime_ns, stat.st_ctime_ns)
        what: Any = (stat.st_size, stat.st_mtime_ns)
        if by_content:
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append((str(path), what))

    for package in _TRACED:
        root = pathlib.Path(importlib.util.find_spec(package).origin).parent
        for path in _sources(str(root)):
            add(pathlib.Path(path), by_content=package == "nfnets")
    for path in sorted({*_named_files(sys.argv), *_foreign_modules()}):
        add(path, by_content=True)
    return entries, newest


def _sources(root: str) -> list[str]:
    """The source files and libraries in a folder; not editors' lock files."""
    found = []
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.name.endswith((".py", ".so")) and entry.name[0] != ".":
                    found.append(entry.path)
    return sorted(found)


def _named_files(arguments: Iterable[str]) -> Iterator[pathlib.Path]:
    """The program and its config file."""
    for argument in arguments:
        path = pathlib.Path(argument.partition("=")[2] or argument)
        if path.suffix == ".py" and path.is_file():
            yield path.resolve()


def _foreign_modules() -> Iterator[pathlib.Path]:
    """Files of imported modules that are neither installed nor of this package."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders.append(str(pathlib.Path(nfnets.__file__).parent))
    folders += [str(pathlib.Path(folder).resolve()) for folder in folders]
    known = tuple(folder.rstrip(os.sep) + os.sep for folder in folders)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and not file.startswith(known):
            path = pathlib.Path(file).resolve()
            if path.is_file():  # some modules only say so
                yield path


def _devices() -> dict[str, Any]:
    """What the program is compiled for."""
    devices = jax.devices()
    described = {
        "kinds": [device.device_kind for device in devices],
        "platform": devices[0].platform,
        "runtime": devices[0].client.platform_version,
    }
    if devices[0].platform == "cpu":  # compiled for this processor, and so many threads
        described["processor"] = _processor()
        has_affinity = hasattr(os, "sched_getaffinity")
        described["threads"] = (
            len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        )
    return described


def _processor() -> list[str]:
    """The processor's model and instruction sets, as far as the system tells."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        uname = os.uname()
        return [uname.sysname, uname.machine, uname.version]
    lines = path.read_text().partition("\n\n")[0].splitlines()
    names = ("vendor_id", "model name", "flags", "Features", "CPU part")
    return [line for line in lines if line.startswith(names)]
