"""What glibc does with memory that is freed; elsewhere these do nothing."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of malloc.h


def keep_freed_memory() -> None:
    """For training on a CPU: what one step frees the next one takes, without fetching every page from the system again
    (a tenth of a ViT-B step, docs/log.md)."""
    _mallopt({_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0})


def return_freed_memory() -> None:
    """For processes that decode: large blocks go back to the system at once. Once glibc has freed a batch it takes the
    next from the heap, where holes between small blocks had it grow from 0.5 to 1.2 GiB."""
    _mallopt({_M_TRIM_THRESHOLD: 128 * 2**10, _M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 8 * 2**20})


def _mallopt(values: dict[int, int]) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            for parameter, value in values.items():
                ctypes.CDLL(None).mallopt(parameter, value)
