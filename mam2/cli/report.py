"""`mam2 report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli.parse import parse
from mam2.terminal import say
from mam2.use.run_page import write_run_page


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write the page of a run, finished or not: how far, how healthy, its curves, pictures and cost.

    Attributes:
        run: the folder of a `mam2 pretrain` or `mam2 finetune`.
        out: HTML file to write; by default report.html in the run's folder.
        video: video for the pictures of a pre-training; by default one of its own.
    """

    run: Positional[Path]
    out: Path | None = None
    video: str = ""


def main(verb: str, arguments: list[str]) -> None:
    """Writes a run's page."""
    command = parse(ReportCommand, verb, arguments)
    say(f"Wrote {write_run_page(command.run, command.out, video=command.video)}")
