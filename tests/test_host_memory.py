"""Programs keep the memory that XLA frees between steps."""

import os
import platform
import subprocess
import sys

import pytest

# Prints whether anything was changed, and the page faults of twenty calls that need 64 MB.
SCRIPT = """
import resource
import jax
import jax.numpy as jnp
from nfnets import host_memory

print(host_memory.keep_freed_memory())
run = jax.jit(lambda x: jnp.exp(x) @ jnp.ones((4000, 8)))
x = jnp.ones((4000, 4000))
for _ in range(20):
    run(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def measure(**variables: str) -> tuple[bool, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= {"JAX_PLATFORMS": "cpu"} | variables
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    changed, faults = ended.stdout.split()
    return changed == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's mallopt")
def test_steps_reuse_pages_unless_the_user_says_otherwise():
    changed, kept = measure()
    assert changed
    changed, returned = measure(MALLOC_TOP_PAD_="0")
    assert not changed
    # 64 MB are 15,600 pages; a call that returned them meets each of them again.
    assert returned > 200_000
    assert kept < returned / 2
