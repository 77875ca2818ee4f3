"""Device of this process, its autocast dtype, copies to it, and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor

PROBED_AT_ONCE = 16  # clips that go through an encoder together in a probe
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, so that the next step of training on a CPU reuses it instead of faulting its
    pages in again (a tenth of a ViT-B step, docs/log/speed.md). It works with glibc only."""
    _mallopt({_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0})


def return_freed_memory() -> None:
    """Gives large freed blocks back to the system at once, for processes that decode: their heap grew from 0.5 to
    1.2 GiB of holes. It works with glibc only."""
    _mallopt({_M_TRIM_THRESHOLD: 128 * 2**10, _M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 8 * 2**20})


def _mallopt(values: dict[int, int]) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            for parameter, value in values.items():
                ctypes.CDLL(None).mallopt(parameter, value)


def cpu_name() -> str:
    """Name of the processor, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def local_device() -> torch.device:
    """This process's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def send(tensor: Tensor, to: torch.device) -> Tensor:
    """A copy of a host's tensor on a device; on a GPU through pinned memory, so that neither waits for the other."""
    return tensor.contiguous().pin_memory().to(to, non_blocking=True) if to.type == "cuda" else tensor.to(to)


def autocast_dtype(precision: str, device: torch.device, *, width: int) -> torch.dtype | None:
    """The type that matrix products are computed in; None is plain float32.

    "auto" takes bfloat16 on a GPU that has it, and on a CPU with bfloat16 instructions for models of width 512 up:
    below that, conversions cost more than the faster products save (docs/log/speed.md).
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if width >= 512 and torch.cpu._is_avx512_bf16_supported() else None


def memory_gib() -> float:
    """Peak memory of the GPU in GiB, or else this process's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process(os.getpid()).memory_info().rss / 2**30
