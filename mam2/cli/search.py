"""`mam2 search`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from tyro.conf import Positional

from mam2.cli import tables
from mam2.cli.parse import finished, parse, typed
from mam2.config import UserError, check
from mam2.use.hits_page import check_files, write_hits, write_pairs
from mam2.use.search import near_duplicates, search


@dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """Find the windows of a features file that are most like a video, or pairs of windows that are nearly the same.

    Attributes:
        features: a file that `mam2 embed` wrote.
        query: a video; VIDEO#t=START,END is a part of one.
        top_k: number of windows to find; of pairs, with --near-duplicates, to show.
        near_duplicates: find pairs of windows in the file instead; overlapping ones of the same video are left out.
        threshold: smallest cosine of near-duplicates.
        encoder: place of the encoder that made the file; by default where it was.
        lancedb: folder for an embedded LanceDB table of the file, which is searched instead; by default none.
        out: .json file to write all hits to; by default none.
        html: .html file to write, with moving pictures of the hits; by default none.
    """

    features: Positional[Path]
    query: Positional[str] = ""
    top_k: Annotated[int, Ge(1)] = 10
    near_duplicates: bool = False
    threshold: float = 0.95
    encoder: str = ""
    lancedb: str = ""
    out: Path | None = None
    html: Path | None = None

    def __post_init__(self) -> None:
        check(self, "")
        if self.near_duplicates and (self.lancedb or self.encoder):
            raise UserError("--near-duplicates compares the rows of the file; leave --lancedb and --encoder out.")


def main(verb: str, arguments: list[str]) -> None:
    """Searches, prints a table and writes what is asked for."""
    command = parse(SearchCommand, verb, arguments)
    if bool(command.query) == command.near_duplicates:
        raise UserError("Give a query video or --near-duplicates, one of them: mam2 search FEATURES.parquet VIDEO.")
    check_files(command.out, command.html)
    if command.near_duplicates:
        pairs = near_duplicates(command.features, threshold=command.threshold)
        tables.print_pairs(pairs, shown=command.top_k, threshold=command.threshold)
        about = f"windows of {command.features} whose cosine reaches {command.threshold:g}"
        write_pairs(pairs, command.out, command.html, shown=command.top_k, about=about, typed=typed())
    else:
        hits = search(
            command.features, command.query, top_k=command.top_k, encoder=command.encoder, lancedb=command.lancedb
        )
        tables.print_hits(hits)
        write_hits(hits, command.out, command.html, query=command.query, features=command.features, typed=typed())
    if written := [str(path) for path in (command.out, command.html) if path]:
        finished(", ".join(written))
