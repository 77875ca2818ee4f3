"""`mam2 prepare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import Positional

from mam2.cli import tables
from mam2.cli.parse import Flat, parse
from mam2.data.prepare.extract import Extract, write_all_frames
from mam2.data.prepare.manifest import Prepare, prepare
from mam2.terminal import say


@dataclass(frozen=True, kw_only=True)
class PrepareCommand(Prepare):
    """Check a data set against its official lists and write its manifest, a CSV for --data.root; extract its frames.

    Attributes:
        name: k400, ssv2, ucf101, hmdb51, folder for your own; label_studio or cvat for that with a tool's labels.
    """

    name: Positional[str]
    extract: Annotated[Extract, Flat] = field(default_factory=Extract)


def main(verb: str, arguments: list[str]) -> None:
    """Writes a manifest, and frames if asked."""
    command = parse(PrepareCommand, verb, arguments)
    report = prepare(command)
    tables.print_prepared(report)
    if command.extract.frames:
        done = write_all_frames(
            report.manifest,
            command.extract,
            num_workers=command.num_workers,
            timeout_seconds=30 * command.timeout_seconds,
            max_bad_share=command.max_missing_share,
        )
        say(f"{done.num_videos} videos as frames, {len(done.bad)} left out: {done.manifest}")
