"""`mam2 predict`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from mam2.cli.parse import Flat, finished, left_out, parse
from mam2.use.predict import Predict, predict_file


@dataclass(frozen=True, kw_only=True)
class PredictCommand:
    """Predict the labels of videos by a fine-tuned run: of whole videos, or of sliding windows in them.

    Attributes:
        run: the folder of a `mam2 finetune`.
        videos: a folder of videos at any depth, a CSV with path, or a video.
        out: file to write to: .jsonl, .csv or .parquet with path,start,end,label,score.
        timeline: .html file to write, with a picture of the scores of windows; by default none.
    """

    run: Positional[Path]
    videos: Positional[str]
    out: Path
    config: Annotated[Predict, Flat] = field(default_factory=Predict)
    timeline: Path | None = None


def main(verb: str, arguments: list[str]) -> None:
    """Writes labels, and a picture of them."""
    command = parse(PredictCommand, verb, arguments)
    done = predict_file(command.run, command.videos, command.out, config=command.config, timeline=command.timeline)
    files = ", ".join(str(path) for path in (command.out, command.timeline) if path)
    windows = f"{done.num_windows} windows of " if command.config.window else ""
    videos = f"{done.num_videos} video{'' if done.num_videos == 1 else 's'}"
    finished(f"{files}, {windows}{videos}{left_out(done.bad)}")
