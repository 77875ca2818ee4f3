"""Helpers of the benchmarks: a description of the machine, a clock, a memory gauge."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from mam2.device import cpu_name


def machine(device: torch.device, *, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and the versions that a measurement belongs to; of `packages`, those that are there."""
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_has_bf16": torch.cpu._is_avx512_bf16_supported(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_1min": round(psutil.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **({"versions": versions} if packages else {}),
    }


def times_of(call: Callable[[], object], device: torch.device, repeats: int, *, at_once: int = 1) -> list[float]:
    """Seconds of a call, `repeats` times: the mean of `at_once` calls that do not wait for each other on a GPU."""
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(at_once):
            call()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / at_once)
    return seconds


def synchronize(device: torch.device) -> None:
    """Waits for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory in use so far: the GPU's, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin with what the process that started this one had
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
