"""`mam2 quickstart`."""

from __future__ import annotations

import signal
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mam2.cli.parse import finished, parse
from mam2.studies.quickstart import RESULTS, Quickstart, quickstart


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand:
    """Render videos, pre-train, fine-tune, compare with training from scratch, write report.html. About 7 minutes.

    Attributes:
        out: a new folder, or that of a quickstart that was interrupted.
    """

    out: Path = Path("runs/quickstart")


def main(verb: str, arguments: list[str]) -> None:
    """Runs the quickstart."""
    command = parse(QuickstartCommand, verb, arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # between runs, which have their own way to stop
    result = quickstart(command.out, Quickstart())
    if result is None:
        return
    means = ", ".join(f"{name} {statistics.mean(result[kind]):.3f}" for kind, (name, _) in RESULTS.items())
    Console().print(f"top-1: {means} (chance {result['chance']:.3f}; {len(result['mam2'])} seeds).")
    finished(f"{command.out}/report.html", "mam2 pretrain mam2_tiny --data.root VIDEOS --out runs/mine")
