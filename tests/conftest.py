"""Four CPU devices, set before jax is imported, and limits of pytest's processes."""

import gc
import os
import pathlib
import shutil
import tempfile

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    # Most of the tests' time is compilation; the programs run for milliseconds.
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled once for all of pytest's processes; the first of them, whose environment the
# others inherit, removes the folder.
_CACHE = os.environ.get("NFNETS_TEST_CACHE")
_MADE_HERE = _CACHE is None
if _MADE_HERE:
    _CACHE = tempfile.mkdtemp(prefix="nfnets-tests-")
    os.environ["NFNETS_TEST_CACHE"] = _CACHE
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure() -> None:
    """Removes the compiled programs."""
    if _MADE_HERE:
        shutil.rmtree(_CACHE, ignore_errors=True)


# Linux allows a process 65,530 memory maps; compiled programs take several each.
_MAX_MAPS = 25_000


@pytest.fixture(scope="module", autouse=True)
def bounded_memory_maps():
    """Drops compiled programs before pytest's process runs out of memory maps."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MAX_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()
