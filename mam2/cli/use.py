"""`mam2 embed`: features along videos."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mam2.cli.parse import Flat, finished, parse
from mam2.use.embed import Embed, embed_file


@dataclass(frozen=True, kw_only=True)
class EmbedCommand:
    """Write features of videos, a vector for each sliding window, into a Parquet file; one that is there is completed.

    Attributes:
        source: a run's folder, or an encoder file.
        videos: a folder of videos at any depth, a CSV with path, or a video.
        out: .parquet file to write.
    """

    source: Positional[str]
    videos: Positional[str]
    out: Path
    config: Annotated[Embed, Flat] = field(default_factory=Embed)


def main(verb: str, arguments: list[str]) -> None:
    """Embeds videos."""
    embed(parse(EmbedCommand, verb, arguments))


def embed(command: EmbedCommand) -> None:
    """Writes features."""
    start = time.monotonic()
    done = embed_file(command.source, command.videos, command.out, config=command.config)
    left_out = f"; of {len(done.bad)} something was left out, see above" if done.bad else ""
    what = f"{command.out}, {done.num_windows} windows ({done.num_new} new; {done.num_videos} videos{left_out})"
    finished(what, start, f"mam2 search {command.out} VIDEO", f"mam2 search {command.out} --near-duplicates")
