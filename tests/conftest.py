"""Four CPU devices, before anything imports jax, and what several tests share."""

import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
    # Most of the tests' time is compilation, and what is compiled runs for milliseconds.
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled once for all of pytest's processes, and gone with the first of them, which comes
# here first and hands its environment on.
_CACHE = os.environ.get("NFNETS_TEST_CACHE")
_MADE_HERE = _CACHE is None
if _MADE_HERE:
    _CACHE = tempfile.mkdtemp(prefix="nfnets-tests-")
    os.environ["NFNETS_TEST_CACHE"] = _CACHE
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure() -> None:
    """Removes what the tests have compiled."""
    if _MADE_HERE:
        shutil.rmtree(_CACHE, ignore_errors=True)
