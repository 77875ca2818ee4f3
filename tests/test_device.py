"""Freed memory stays with the process, or goes back to the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os, psutil, torch
from mam2 import device
for name in {names}:
    getattr(device, name)()
before = psutil.Process().memory_info().rss
blocks = [torch.ones(2**24) for _ in range(8)]
held = psutil.Process().memory_info().rss - before
del blocks
print(held, psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize(
    ("names", "stays"),
    [
        (["keep_freed_memory"], True),
        (["return_freed_memory"], False),
        (["keep_freed_memory", "return_freed_memory"], False),  # a worker is a child of the trainer
    ],
)
def test_freed_memory(names: list[str], stays: bool) -> None:
    program = [sys.executable, "-c", PROGRAM.format(names=names)]
    held, left = map(int, subprocess.run(program, check=True, capture_output=True, text=True).stdout.split())
    assert held > 500 * 2**20
    assert left > 0.9 * held if stays else left < 0.1 * held
