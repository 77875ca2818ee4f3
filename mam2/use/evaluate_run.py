"""Test of a fine-tuned run on labelled videos: evaluate.json, predictions.npz and a picture of the errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from mam2 import distributed
from mam2.config import UserError
from mam2.data.catalog import Catalog, read_catalog
from mam2.data.clips import Data
from mam2.data.shape import Listing
from mam2.data.views import ViewLoader
from mam2.evaluate import Evaluation, average_precision, errors_of, evaluate
from mam2.files import write_text, written_whole
from mam2.pictures.charts import confusion_picture
from mam2.train.run import read_run
from mam2.trained import Trained, open_model


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of a test.

    Attributes:
        data: labelled videos of the run's classes; empty column names take those of the training.
        clips: windows per video; by default the run's own protocol.
        crops: squares per window; by default the run's own protocol.
    """

    data: Listing = field(default_factory=lambda: Listing(root="", path_column="", label_column=""))
    clips: int | None = None
    crops: int | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Result of a test: scores of each video, class names, contents of evaluate.json, names of the written files."""

    result: Evaluation
    classes: tuple[str, ...]
    report: dict[str, Any]
    files: tuple[str, ...]


def open_classifier(run: str | Path) -> Trained:
    """A fine-tuned run, ready to see videos; raises UserError for anything else."""
    read_run(Path(run))
    model = open_model(run)
    model.need_classifier()
    return model


def test(
    model: Trained, catalog: Catalog, *, clips: int | None, crops: int | None
) -> tuple[Evaluation, tuple[int, int]]:
    """Scores of each video, averaged over clips and crops; and the numbers of both, by default the run's own."""
    own_clips, own_crops = model.settings.views if model.settings else (1, 1)
    views = (own_clips if clips is None else clips, own_crops if crops is None else crops)
    loader = ViewLoader(
        catalog,
        model.data,
        model.shape,
        clips=views[0],
        crops=views[1],
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    result = evaluate(
        model.need_classifier(), loader, num_videos=len(catalog.items), dtype=model.dtype, kind=model.kind
    )
    return result, views


def evaluate_run(
    run: str | Path,
    root: str,
    *,
    split: str = "",
    path_column: str = "",
    label_column: str = "",
    clips: int | None = None,
    crops: int | None = None,
    out: str | Path | None = None,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Tests a fine-tuned run on labelled videos; writes evaluate.json, and every video's probabilities.

    Args:
        run: the folder of a fine-tuning run.
        root: class folders or a CSV with path,label, of the run's classes.
        split, path_column, label_column: as in `Listing`; empty columns take the run's own names.
        clips, crops: as in `Evaluate`.
        out: the folder for evaluate.json and predictions.npz (path, label, probability, classes); the run's if None.

    Returns:
        The evaluation and the class names.

    Raises:
        UserError: no fine-tuned run, unknown labels, no usable videos.
    """
    listing = Listing(root=root, split=split, path_column=path_column, label_column=label_column)
    done = evaluate_files(run, Path(out or run), config=Evaluate(data=listing, clips=clips, crops=crops))
    return done.result, done.classes


def evaluate_files(run: str | Path, out: Path, *, config: Evaluate, picture: bool = False) -> Evaluated:
    """Tests a fine-tuned run and writes the results into the folder `out`; see `evaluate_run`.

    `picture` draws confusion.png too, if each video has one class.
    """
    read_run(Path(run))  # or nothing is made in its name
    if distributed.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)  # or fail before hours of testing
    result, catalog, (clips, crops) = run_on(run, config)
    report = measures_of(result, catalog) | {
        "num_videos": len(result.label_B),
        "clips": clips,
        "crops": crops,
        "bad_videos": result.bad,
    }
    files: tuple[str, ...] = ("evaluate.json", "predictions.npz")
    if distributed.rank() == 0:
        write_text(out / "evaluate.json", json.dumps(report, indent=2))
        with written_whole(out / "predictions.npz") as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                path=np.array([catalog.items[i].path for i in result.index_B.tolist()]),
                label=(result.label_B if result.target_BK is None else result.target_BK).numpy(),
                probability=result.probabilities_BK.numpy(),
                classes=np.array(catalog.classes),
            )
        if picture and result.target_BK is None:
            title = f"{len(result.label_B)} videos, top-1 {result.top(1):.3f}"
            confusion_picture(result.confusion(), list(catalog.classes), out / "confusion.png", title=title)
            files = (*files, "confusion.png")
    return Evaluated(result=result, classes=catalog.classes, report=report, files=files)


def measures_of(result: Evaluation, catalog: Catalog) -> dict[str, Any]:
    """The measures in evaluate.json: top-1 and others; `map` for multilabel, errors for regression. `labels` says which
    of the last two."""
    if result.target_BK is None:
        return {
            "top1": result.top(1),
            "top5": result.top(5),
            "single_view": result.single_view,
            "per_class": result.per_class(catalog.classes),
            "confusion": result.confusion().tolist(),
        }
    if catalog.kind == "regression":
        return {"labels": catalog.kind} | errors_of(result.probabilities_BK[:, 0], result.target_BK[:, 0])
    columns = zip(catalog.classes, result.probabilities_BK.T, result.target_BK.T, strict=True)
    per_class = {name: average_precision(score_B, truth_B > 0.5) for name, score_B, truth_B in columns}
    found = [value for value in per_class.values() if value is not None]
    return {"labels": catalog.kind, "map": fmean(found) if found else None, "per_class": per_class}


def run_on(run: str | Path, config: Evaluate) -> tuple[Evaluation, Catalog, tuple[int, int]]:
    """Scores of a fine-tuned run for labelled videos; catalog with the run's classes; numbers of clips and crops."""
    model = open_classifier(run)
    kind = model.kind
    data = replace(
        model.data,
        root=str(config.data.root),
        split=config.data.split,
        path_column=config.data.path_column or model.data.path_column,
        label_column=config.data.label_column or model.data.label_column,
    )
    try:
        catalog = read_catalog(data.listing, labelled=True, classes=model.classes, kind=kind)
    except UserError as error:
        if _can_be_read(data):
            raise UserError(f"{error} `mam2 predict` takes videos without labels.") from error
        raise
    result, views = test(model, catalog, clips=config.clips, crops=config.crops)
    if kind != "classes":
        targets = [catalog.items[index].target for index in result.index_B.tolist()]
        result = replace(result, target_BK=torch.tensor(targets))
    return result, replace(catalog, classes=model.classes, kind=kind), views


def _can_be_read(data: Data) -> bool:
    """True if the videos can be read without labels."""
    try:
        return bool(read_catalog(data.listing, labelled=False).items)
    except UserError:
        return False
