"""A step's memory on CPU devices: kept for the next step instead of handed back.

XLA allocates what a step needs at once (1.1 GB for NFNet-F0, 8 images) and frees it at its
end. glibc then gives it back to the operating system, and every step takes fresh pages, 290
thousand of them: a sixth to a quarter of the step (`benchmarks/RESULTS.md`). It keeps what
the main thread allocates, if told to; so the main thread is made to run the step.
"""

import ctypes
import os
import platform

import jax

_ASYNC_VARIABLE = "JAX_CPU_ENABLE_ASYNC_DISPATCH"

# mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def run_in_main_thread() -> None:
    """Makes CPU devices compute in the thread that calls, not in one of XLA's.

    To be called before a device is touched. It does nothing on accelerators, and nothing
    where JAX_CPU_ENABLE_ASYNC_DISPATCH says what is wanted.
    """
    if _ASYNC_VARIABLE not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def keep_memory() -> None:
    """Makes glibc keep what the main thread frees.

    Best called after the first step or batch, so that the compiler's memory is not kept as
    well. It does nothing where the devices are accelerators, the C library is another one,
    or variables called MALLOC_... say what is wanted.
    """
    if (
        jax.default_backend() == "cpu"
        and platform.libc_ver()[0] == "glibc"
        and not any(name.startswith("MALLOC_") for name in os.environ)
    ):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
