"""A step's memory on CPU is kept for the next step."""

import os
import platform
import subprocess
import sys

import pytest

# The fewest page faults of five calls that need 64 MiB in between, 16,384 pages. The
# fewest, as a small allocation of another thread may once split the memory that was kept.
_SCRIPT = """
import resource
import jax, jax.numpy as jnp
from nfnets.cpu import memory

memory.run_in_main_thread()
step = jax.jit(lambda x: jnp.sum(jnp.sort(x) * x))
x = jnp.ones((2**20, 16))
step(x).block_until_ready()
memory.keep_memory()
counts = []
for _ in range(6):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(x).block_until_ready()
  counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[1:]))
"""
_PAGES = 16_384


def page_faults(**variables: str) -> int:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    found = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=inherited | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_the_memory_of_a_step_stays_unless_the_environment_says_otherwise():
    assert page_faults() < _PAGES / 16
    assert page_faults(MALLOC_PERTURB_="0") > _PAGES / 2
    assert page_faults(JAX_CPU_ENABLE_ASYNC_DISPATCH="true") > _PAGES / 2
