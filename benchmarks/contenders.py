"""Shared by the benchmarks: timing in turns, the machine, timm's networks.

timm is measured in the same process. It imports torchvision for other models than NFNets;
where torchvision is not installed, a module in which every name exists stands in for it.
"""

from collections.abc import Callable, Mapping
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
import types
from typing import Any

Contender = Callable[[], Any]


class _Anything(type):
    """Of classes that have every attribute: its name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _StandInFinder:
    """Finds every module of torchvision."""

    @staticmethod
    def find_spec(
        name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, _StandInFinder, is_package=True)

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        pass


def has_timm() -> bool:
    """Whether timm and torch can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "timm"))


def timm_network(name: str, **options: Any) -> Any:
    """Returns timm's network of one of our names, not pretrained."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_StandInFinder)
    import timm

    return timm.create_model(
        name.replace("nfnet_f", "dm_nfnet_f"), pretrained=False, **options
    )


def in_turns(
    contenders: Mapping[str, Contender], rounds: int, steps: int = 1
) -> dict[str, list[float]]:
    """Times the contenders alternately, after two calls of each to warm up.

    Args:
      contenders: name -> function that returns when its work is done or returns arrays
        of JAX to wait for.
      rounds: turns of each contender.
      steps: calls per turn.

    Returns:
      name -> seconds per call, one entry for each turn.
    """
    import jax  # not in timm's environment

    def turn(contender: Contender, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = contender()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    for contender in contenders.values():
        turn(contender, 2)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].append(turn(contender, steps))
    return times


def median_ms(seconds: list[float]) -> float:
    """Returns the median in milliseconds."""
    return 1e3 * statistics.median(seconds)


def machine() -> str:
    """Returns the machine and the versions of packages."""
    import jax

    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line for line in file if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    versions = [f"Python {platform.python_version()}", f"jax {jax.__version__}"]
    for name in ("torch", "timm"):
        if importlib.util.find_spec(name) is not None:
            versions.append(f"{name} {importlib.metadata.version(name)}")
    device = jax.devices()[0]
    return f"{device.device_kind}; {os.cpu_count()} x {cpu}; {', '.join(versions)}"
