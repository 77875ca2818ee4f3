"""`mam2 targets`."""

from __future__ import annotations

from dataclasses import dataclass

from mam2.cli import tables
from mam2.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class TargetsCommand:
    """List the appearance and motion targets: input size, range, number of codes, cost per clip."""


def main(verb: str, arguments: list[str]) -> None:
    """Lists the targets."""
    parse(TargetsCommand, verb, arguments)
    tables.print_targets()
