"""Files of a search: all hits or pairs as JSON, and a page with moving pictures of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mam2.config import UserError
from mam2.files import write_text
from mam2.pictures.hits import Card, check_page, clock, write_cards
from mam2.use.features_file import Place
from mam2.use.search import Hit, Pair

NEXT_COMMANDS = (
    "mam2 embed RUN VIDEOS --out features.parquet",
    "mam2 search features.parquet VIDEO --html hits.html",
    "mam2 search features.parquet --near-duplicates --html pairs.html",
)


def check_files(out: Path | None, html: Path | None) -> None:
    """Raises UserError for endings that are not accepted."""
    if out and out.suffix != ".json":
        raise UserError(f"Hits can't be written to {out}; accepted is a file that ends in .json.")
    if html:
        check_page(html)


def write_hits(
    hits: Sequence[Hit], out: Path | None, html: Path | None, *, query: str, features: Path, typed: str
) -> None:
    """Writes hits as JSON to `out`, and a page with them and the query's windows to `html`; None writes no file.

    `query` is the video, `features` the features file, `typed` the command as it was typed.
    """
    write_json(hits, out)
    if not html:
        return
    asked = sorted({hit.query for hit in hits}, key=lambda place: place.start)
    rows = [
        ("The query", [card_of(place) for place in asked]),
        ("Most like it", [card_of(hit.found, f"{hit.score:.4f}, like {clock(hit.query.start)}") for hit in hits]),
    ]
    about = f"{len(hits)} windows of {features} by cosine with the query's window that each is most like."
    title = f"Windows like {Path(query).name}"
    write_cards(html, title=title, about=about, rows=rows, facts={"command": typed}, commands=NEXT_COMMANDS)


def write_pairs(
    pairs: Sequence[Pair], out: Path | None, html: Path | None, *, shown: int, about: str, typed: str
) -> None:
    """Writes all pairs as JSON to `out`, and a page with the first `shown` side by side to `html`; None writes no file.

    `about` describes the source of the pairs, `typed` is the command as it was typed.
    """
    write_json(pairs, out)
    if not html:
        return
    first = pairs[:shown]
    rows = [
        (f"{number}. Cosine {pair.score:.4f}", [card_of(pair.one), card_of(pair.other)])
        for number, pair in enumerate(first, 1)
    ]
    about = f"{len(first)} of {len(pairs)} pairs of {about}."
    write_cards(html, title="Near-duplicates", about=about, rows=rows, facts={"command": typed}, commands=NEXT_COMMANDS)


def write_json(found: Sequence[Hit] | Sequence[Pair], out: Path | None) -> None:
    """Writes all hits or pairs, if a file is named."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps([asdict(hit) for hit in found], indent=2, ensure_ascii=False) + "\n")


def card_of(place: Place, words: str = "") -> Card:
    """A window on a page, with its label."""
    words = ", ".join(part for part in (words, place.label) if part)
    return Card(path=place.path, start=place.start, end=place.end, words=words)
