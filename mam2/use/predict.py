"""Classes of videos without labels, by a fine-tuned run."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

from mam2 import distributed
from mam2.config import UserError
from mam2.files import write_text
from mam2.train.finetune import run_on

COLUMNS = ("path", "label", "score")


@dataclass(frozen=True)
class Prediction:
    """A class that a video may have.

    Attributes:
        path: the video.
        label: the class's name.
        score: its probability, averaged over the video's views.
    """

    path: str
    label: str
    score: float


def predict(
    run: str | Path,
    videos: str,
    *,
    split: str = "",
    path_column: str = "",
    top_k: int = 5,
    clips: int | None = None,
    crops: int | None = None,
) -> list[Prediction]:
    """The most probable classes of videos, which need no labels.

    Args:
        run: the folder of a fine-tuning run.
        videos: a folder of videos at any depth, or a CSV with path.
        split: which rows of a CSV that has several splits.
        path_column: of the CSV; the run's own name if empty.
        top_k: classes per video, the most probable first.
        clips, crops: views per video; the run's own protocol if None.

    Returns:
        `top_k` lines for each video that could be used.

    Raises:
        UserError: no fine-tuned run, no usable videos.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; at least 1 class is needed.")
    result, catalog, _ = run_on(
        Path(run), videos, labelled=False, split=split, path_column=path_column, clips=clips, crops=crops
    )
    scores, classes = result.probabilities_BK.topk(min(top_k, len(catalog.classes)), dim=1)
    return [
        Prediction(catalog.items[index].path, catalog.classes[number], score)
        for index, numbers, of_video in zip(result.index_B.tolist(), classes.tolist(), scores.tolist(), strict=True)
        for number, score in zip(numbers, of_video, strict=True)
    ]


def write_predictions(predictions: list[Prediction], out: Path) -> None:
    """Writes one line for each prediction: path, label, score; as .csv, or as .jsonl.

    Raises:
        UserError: another ending.
    """
    check_format(out)
    if distributed.rank() > 0:
        return
    rows = [(p.path, p.label, float(f"{p.score:.6g}")) for p in predictions]
    text = io.StringIO()
    if out.suffix == ".csv":
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    else:
        text.writelines(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text.getvalue())


def check_format(out: Path) -> None:
    """Raises UserError unless predictions can be written into such a file."""
    if out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"Predictions can't be written to {out}; accepted are files ending in .csv or .jsonl.")
