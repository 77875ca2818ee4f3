"""`mam2 embed`, `mam2 search` and `mam2 predict`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mam2.cli import tables
from mam2.cli.parse import Flat, finished, parse, typed
from mam2.config import UserError
from mam2.files import write_text
from mam2.pictures.hits import Card, check_page, clock, write_page
from mam2.use.embed import embed_file
from mam2.use.embedder import Embed
from mam2.use.features_file import Place
from mam2.use.predict import Predict, predict_file
from mam2.use.search import Hit, Pair, near_duplicates, search

OWN_VIDEOS = (
    "mam2 embed RUN VIDEOS --out features.parquet",
    "mam2 search features.parquet VIDEO --html hits.html",
    "mam2 search features.parquet --near-duplicates --html pairs.html",
)


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


@dataclass(frozen=True, kw_only=True)
class SearchCommand:
    """Find the windows of a features file that are most like a video, or pairs of windows that are nearly the same.

    Attributes:
        features: a file that `mam2 embed` wrote.
        query: a video; VIDEO#t=START,END is a part of one.
        top_k: windows to find; of near-duplicates, those that are shown.
        near_duplicates: find pairs of windows in the file instead; overlapping ones of the same video are left out.
        threshold: of near-duplicates, the cosine that they reach.
        encoder: where the encoder that made the file is now; by default where it was.
        lancedb: folder for an embedded LanceDB table of the file, which is searched instead.
        out: .json file to write all hits to.
        html: .html file to write, with moving pictures of the hits.
    """

    features: Positional[Path]
    query: Positional[str] = ""
    top_k: int = 10
    near_duplicates: bool = False
    threshold: float = 0.95
    encoder: str = ""
    lancedb: str = ""
    out: Path | None = None
    html: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PredictCommand:
    """Predict the labels of videos without labels by a fine-tuned run: of whole videos, or of windows along them.

    Attributes:
        run: the folder of a `mam2 finetune`.
        videos: a folder of videos at any depth, a CSV with path, or a video.
        out: file to write to: .jsonl, .csv or .parquet with path,start,end,label,score.
        window: length of sliding windows, `64 frames` or `2.5 s`; by default whole videos are predicted.
        hop: distance from one window to the next, likewise; by default the window's length.
        timeline: .html file to write, with a picture of the scores along each video.
        top_k: labels per video or window.
        data_split: which rows of a CSV that has several splits.
        data_path_column: name of the CSV's column of paths; by default as in training.
        clips: views in time per whole video; by default the run's own protocol.
        crops: squares per view in time; by default the run's own protocol.
    """

    run: Positional[Path]
    videos: Positional[str]
    out: Path
    window: str = ""
    hop: str = ""
    timeline: Path | None = None
    top_k: int = 5
    data_split: Annotated[str, arg(name="data.split")] = ""
    data_path_column: Annotated[str, arg(name="data.path-column")] = ""
    clips: int | None = None
    crops: int | None = None


def main(verb: str, arguments: list[str]) -> None:
    """Embeds videos, searches in what was embedded, or predicts labels."""
    if verb == "embed":
        embed(parse(EmbedCommand, verb, arguments))
    elif verb == "predict":
        predict(parse(PredictCommand, verb, arguments))
    else:
        find(parse(SearchCommand, verb, arguments))


def embed(command: EmbedCommand) -> None:
    """Writes features."""
    start = time.monotonic()
    done = embed_file(command.source, command.videos, command.out, config=command.config)
    left_out = f"; of {len(done.bad)} something was left out, see above" if done.bad else ""
    what = f"{command.out}, {done.num_windows} windows ({done.num_new} new; {done.num_videos} videos{left_out})"
    finished(what, start, f"mam2 search {command.out} VIDEO", f"mam2 search {command.out} --near-duplicates")


def predict(command: PredictCommand) -> None:
    """Writes labels, and a picture of them."""
    start = time.monotonic()
    config = Predict(
        window=command.window,
        hop=command.hop,
        top_k=command.top_k,
        clips=command.clips,
        crops=command.crops,
        split=command.data_split,
        path_column=command.data_path_column,
    )
    done = predict_file(command.run, command.videos, command.out, config=config, timeline=command.timeline)
    files = ", ".join(str(path) for path in (command.out, command.timeline) if path)
    windows = f"{done.num_windows} windows of " if command.window else ""
    videos = f"{done.num_videos} video{'' if done.num_videos == 1 else 's'}"
    left_out = f"; of {len(done.bad)} something was left out, see above" if done.bad else ""
    finished(f"{files}, {windows}{videos}{left_out}", start)


def find(command: SearchCommand) -> None:
    """Searches, prints a table and writes what is asked for."""
    start = time.monotonic()
    if bool(command.query) == command.near_duplicates:
        raise UserError("Give a query video or --near-duplicates, one of them: mam2 search FEATURES.parquet VIDEO.")
    if command.near_duplicates and (command.lancedb or command.encoder):
        raise UserError("--near-duplicates compares the rows of the file; leave --lancedb and --encoder out.")
    if command.top_k < 1:
        raise UserError(f"--top-k is {command.top_k}; at least 1 is needed.")
    if command.out and command.out.suffix != ".json":
        raise UserError(f"Hits can't be written to {command.out}; accepted is a file that ends in .json.")
    if command.html:
        check_page(command.html)
    found: list[Hit] | list[Pair]
    if command.near_duplicates:
        found = pairs = near_duplicates(command.features, threshold=command.threshold)
        tables.print_pairs(pairs, shown=command.top_k, threshold=command.threshold)
    else:
        found = hits = search(
            command.features, command.query, top_k=command.top_k, encoder=command.encoder, lancedb=command.lancedb
        )
        tables.print_hits(hits)
    if command.out:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(command.out, json.dumps([asdict(hit) for hit in found], indent=2, ensure_ascii=False) + "\n")
    if command.html and command.near_duplicates:
        write_pairs(command.html, pairs[: command.top_k], command, total=len(pairs))
    elif command.html:
        write_hits(command.html, hits, command)
    if written := [str(path) for path in (command.out, command.html) if path]:
        finished(", ".join(written), start)


def write_hits(file: Path, hits: list[Hit], command: SearchCommand) -> None:
    """A page with the query's windows that hits are like, and the hits."""
    asked = sorted({hit.query for hit in hits}, key=lambda place: place.start)
    rows = [
        ("The query", [card(place) for place in asked]),
        ("Most like it", [card(hit.found, f"{hit.score:.4f}, like {clock(hit.query.start)}") for hit in hits]),
    ]
    about = f"{len(hits)} windows of {command.features} by cosine with the query's window that each is most like."
    write_page(
        file,
        title=f"Windows like {Path(command.query).name}",
        about=about,
        rows=rows,
        facts={"command": typed()},
        commands=OWN_VIDEOS,
    )


def write_pairs(file: Path, pairs: list[Pair], command: SearchCommand, *, total: int) -> None:
    """A page with pairs side by side."""
    rows = [
        (f"{number}. Cosine {pair.score:.4f}", [card(pair.one), card(pair.other)])
        for number, pair in enumerate(pairs, 1)
    ]
    about = (
        f"{len(pairs)} of {total} pairs of windows of {command.features} whose cosine reaches {command.threshold:g}."
    )
    write_page(file, title="Near-duplicates", about=about, rows=rows, facts={"command": typed()}, commands=OWN_VIDEOS)


def card(place: Place, words: str = "") -> Card:
    """A window on a page, with its label."""
    words = ", ".join(part for part in (words, place.label) if part)
    return Card(path=place.path, start=place.start, end=place.end, words=words)
