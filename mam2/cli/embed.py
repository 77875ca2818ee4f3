"""`mam2 embed`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mam2.cli.parse import Flat, finished, left_out, parse
from mam2.use.embed import embed_file
from mam2.use.embedder import Embed


@dataclass(frozen=True, kw_only=True)
class EmbedCommand:
    """Write features of videos, a vector for each sliding window, into a Parquet file; one that is there is completed.

    Attributes:
        source: a run's folder, an encoder file, or a public encoder, as `mam2 import` takes it.
        videos: a folder of videos at any depth, a CSV with path, or a video.
        out: .parquet file to write.
    """

    source: Positional[str]
    videos: Positional[str]
    out: Path
    config: Annotated[Embed, Flat] = field(default_factory=Embed)


def main(verb: str, arguments: list[str]) -> None:
    """Embeds videos."""
    command = parse(EmbedCommand, verb, arguments)
    done = embed_file(command.source, command.videos, command.out, config=command.config)
    counts = f"{done.num_windows} windows ({done.num_new} new; {done.num_videos} videos{left_out(done.bad)})"
    what = f"{command.out}, {counts}"
    finished(what, f"mam2 search {command.out} VIDEO", f"mam2 search {command.out} --near-duplicates")
