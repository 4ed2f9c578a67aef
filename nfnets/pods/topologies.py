"""Topologies for ahead-of-time compilation, and published properties of their devices."""

from collections.abc import Sequence
import dataclasses
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from nfnets.errors import UserError

# libtpu as a compiler: no TPU is looked for, and several processes may use it.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# What XLA asks a driver for, from NVIDIA's data sheet of the H100 SXM.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published properties of a device: one core of a TPU v3, otherwise a chip.

    Attributes:
      title: for people.
      platform: `tpu` or `cuda`.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      flops: of bfloat16 products, per second.
      links: bytes per second that a chip sends to its neighbors, all links together.
      clock: cycles per second of a TPU, for XLA's estimates.
    """

    title: str
    platform: str
    memory: float
    bandwidth: float
    flops: float
    links: float
    clock: float | None = None


# Sources: Cloud TPU's documentation; for v3 and the clocks, Jouppi et al., "A
# domain-specific supercomputer for training deep neural networks" (2020) and "TPU v4"
# (2023). The clock of the v6e is not published; it is taken to be that of the v5p.
CHIPS = {
    "v3": Chip("TPU v3 core", "tpu", 16e9, 450e9, 61.5e12, 328e9, 0.94e9),
    "v4": Chip("TPU v4", "tpu", 32e9, 1228e9, 275e12, 300e9, 1.05e9),
    "v5e": Chip("TPU v5e", "tpu", 16e9, 819e9, 197e12, 200e9, 1.5e9),
    "v5p": Chip("TPU v5p", "tpu", 95e9, 2765e9, 459e12, 600e9, 1.75e9),
    "v6e": Chip("TPU v6e", "tpu", 32e9, 1638e9, 918e12, 400e9, 1.75e9),
    "h100": Chip("H100 SXM", "cuda", 80e9, 3352e9, 989e12, 450e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that programs are compiled for, without the hardware.

    Attributes:
      name: such as `v4:4x4x8` or `h100:8`.
      chip: published properties of each.
      devices: for `jax.pmap`; nothing can run on them.
      num_hosts: machines that the devices belong to.
    """

    name: str
    chip: Chip
    devices: Sequence[Any]
    num_hosts: int


def open_topology(name: str) -> Topology:
    """Loads the compiler for a topology.

    Args:
      name: a TPU slice by its chips, such as `v3:4x4` or `v4:4x4x8`, or `h100:8` for
        eight GPUs of one machine.

    Raises:
      UserError: the name is wrong, or the compiler is not installed.
    """
    kind, _, layout = name.partition(":")
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)*", layout):
        raise UserError(
            f"unknown topology {name!r}; examples: v3:4x4, v4:4x4x8, v5e:16x16, h100:8; "
            f"known chips: {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    arguments: dict[str, Any] = {"platform": chip.platform}
    if chip.platform == "tpu":
        os.environ.update(_LIBTPU_ENVIRONMENT)
        arguments["topology_name"] = name
        if kind == "v4":
            arguments["chip_config_name"] = "megacore"  # both cores as one device
    else:
        arguments |= {"topology_name": "", "target_config": _H100}
        arguments["topology"] = f"1x1x{layout}"
    try:
        devices: Any = topologies.get_topology_desc(**arguments).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"topology {name}: {reason}{_advice(chip.platform)}") from error
    hosts = {device.process_index for device in devices}
    return Topology(name, chip, devices, len(hosts))


def _advice(platform: str) -> str:
    """Returns the advice to install the compiler, "" if it is installed."""
    from importlib import util

    package, extra = ("libtpu", "pods")
    if platform == "cuda":
        package, extra = ("jax_plugins.xla_cuda12", "pods-cuda")
    try:
        found = util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else f"; the compiler is missing: pip install 'nfnets[{extra}]'"
