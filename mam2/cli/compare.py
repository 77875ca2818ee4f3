"""`mam2 compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from mam2.cli import tables
from mam2.cli.parse import finished, parse, typed
from mam2.studies.compare import compared, write_comparison


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare finished runs of one kind: figures over seeds, difference from the first, cost.

    Attributes:
        runs: folders of fine-tunings that `mam2 evaluate` has tested, of probes (or a probe_KIND.json), or of
            pre-trainings.
        out: file to write the table to: .md, .csv or .html; by default none.
    """

    runs: Positional[tuple[Path, ...]]
    out: Path | None = None


def main(verb: str, arguments: list[str]) -> None:
    """Compares runs."""
    command = parse(CompareCommand, verb, arguments)
    lines = compared(command.runs)
    tables.print_lines(lines, f"{len(command.runs)} runs")
    if command.out:
        write_comparison(command.out, lines, command.runs, typed=typed())
        finished(str(command.out))
