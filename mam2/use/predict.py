"""Labels of unlabelled videos, or of sliding windows in them, by a fine-tuned run.

B windows, K classes.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from mam2 import distributed
from mam2.config import UserError
from mam2.data.catalog import Catalog, only_video, read_catalog
from mam2.data.shape import Listing, Rows
from mam2.data.windows import Length
from mam2.files import digest
from mam2.trained import Trained
from mam2.use import sliding_windows
from mam2.use.embedder import Embedder, identity_of
from mam2.use.evaluate_run import open_classifier, test
from mam2.use.features_file import Provenance, check_identity, parts_folder, parts_of
from mam2.use.predictions_file import PredictedLabel, check_format, write_predictions

log = logging.getLogger("mam2")


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Settings of a prediction.

    Attributes:
        window: length of the sliding windows, `64 frames` or `2.5 s`; empty predicts whole videos.
        hop: distance from one window to the next, likewise; empty takes the window's length, so that none overlap.
        top_k: number of labels per video or window, the most probable first.
        data: rows of a list of videos.
        clips: views in time of each whole video; by default the run's own protocol. A window has one view.
        crops: squares of each view in time; by default the run's own protocol. A window has one, the centre.

    Raises:
        UserError: a value outside its range, a hop without a window, or views of windows.
    """

    window: str = ""
    hop: str = ""
    top_k: int = 5
    data: Rows = field(default_factory=Rows)
    clips: int | None = None
    crops: int | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; at least 1 class is needed.")
        for length in (self.window, self.hop):
            if length:
                Length.parse(length)
        if self.hop and not self.window:
            raise UserError(f"A hop of {self.hop} is between windows. Give a --window too, or leave --hop out.")
        if self.window and (self.clips is not None or self.crops is not None):
            raise UserError("Clips and crops are of whole videos; a window has one view. Leave them out.")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Result of `predict_file`: videos and windows (1 for a whole video) in the file, left-out videos with reasons."""

    num_videos: int
    num_windows: int
    bad: dict[str, str]


def predict(
    run: str | Path,
    videos: str | Path,
    *,
    split: str = "",
    path_column: str = "",
    top_k: int = 5,
    clips: int | None = None,
    crops: int | None = None,
    window: str = "",
    hop: str = "",
) -> list[PredictedLabel]:
    """The most probable labels of unlabelled videos, or of sliding windows in them.

    Args:
        run: the folder of a fine-tuning run.
        videos: a folder of videos at any depth, a CSV with path, or a video file.
        split, path_column: as in `Rows`.
        top_k, clips, crops, window, hop: as in `Predict`.

    Returns:
        `top_k` labels for each usable video, or for each window, in order.

    Raises:
        UserError: no fine-tuned run, no usable videos, a window shorter than a clip.
    """
    rows = Rows(split=split, path_column=path_column)
    config = Predict(window=window, hop=hop, top_k=top_k, data=rows, clips=clips, crops=crops)
    model = open_classifier(run)
    catalog = videos_of(str(videos), model, config)
    if not window:
        return labels_of_videos(model, catalog, config)[0]
    with tempfile.TemporaryDirectory() as own:
        out = Path(distributed.gather(own)[0]) / "predictions"
        with sliding_windows.only_writer_of(out):
            found, _ = look_along(scorer_of(model, config), catalog, out)
            predictions = list(labels_of_windows(found, model, config))
            distributed.barrier()  # all have read before the folder goes
    return predictions


def predict_file(
    run: str | Path, videos: str | Path, out: Path, *, config: Predict, timeline: Path | None = None
) -> Predicted:
    """Predicts labels of videos into a file, which is replaced if it is there; see `predict`.

    The scores of windows are saved as they are computed, in parts in a folder next to the file: after a kill, the same
    call computes only the rest. Several processes share the windows. Rows of whole videos are written at the end.

    Args:
        run, videos: as in `predict`.
        out: a .jsonl, .csv or .parquet file, with the columns path, start, end, label, score.
        config: settings.
        timeline: a .html file with the scores along each video, if windows are predicted.

    Raises:
        UserError: as in `predict`; another ending, or a features file at `out`.
    """
    check_format(out)
    if timeline:
        from mam2.pictures.hits import check_page  # needs mam2[pictures]

        check_page(timeline)
        if not config.window:
            raise UserError("A timeline shows windows. Give a --window, such as --window '2 s', or no --timeline.")
    model = open_classifier(run)
    catalog = videos_of(str(videos), model, config)
    if not config.window:
        predictions, bad = labels_of_videos(model, catalog, config)
        if distributed.rank() == 0:
            write_predictions(predictions, out)
        num_videos = len(predictions) // min(config.top_k, len(model.classes))
        return Predicted(num_videos=num_videos, num_windows=num_videos, bad=bad)
    scorer = scorer_of(model, config)
    for part in parts_of(out):
        try:
            check_identity(part, scorer.provenance.identity)
        except UserError as error:
            raise UserError(f"{error} To do without what is there, remove {parts_folder(out)}.") from error
    with sliding_windows.only_writer_of(out):
        found, bad = look_along(scorer, catalog, out)
        if distributed.rank() == 0:
            write_predictions(labels_of_windows(found, model, config), out)
            if timeline:
                draw_timeline(timeline, found, model, scorer)
            shutil.rmtree(parts_folder(out))
        distributed.barrier()
    return Predicted(num_videos=len(found), num_windows=sum(len(video.windows) for video in found), bad=bad)


def videos_of(videos: str, model: Trained, config: Predict) -> Catalog:
    """The videos of a folder or a list, or one video; raises UserError without any."""
    path_column = config.data.path_column or model.data.path_column
    listing = Listing(root=videos, split=config.data.split, path_column=path_column)
    return only_video(videos) or read_catalog(listing, labelled=False)


# --- whole videos -------------------------------------------------------------------------------------------


def labels_of_videos(model: Trained, catalog: Catalog, config: Predict) -> tuple[list[PredictedLabel], dict[str, str]]:
    """Labels of whole videos; path and reason of those that were left out."""
    bad = {item.path: reason for item in catalog.items if (reason := sliding_windows.not_writable(item.path))}
    for reason in bad.values() if distributed.rank() == 0 else ():
        log.warning("Left out: %s", reason)
    catalog = replace(catalog, items=tuple(item for item in catalog.items if item.path not in bad))
    result, _ = test(model, catalog, clips=config.clips, crops=config.crops)
    assert result.seconds_B is not None
    places = [
        (catalog.items[index].path, 0.0, None if math.isnan(seconds) else round(seconds, 9))
        for index, seconds in zip(result.index_B.tolist(), result.seconds_B.tolist(), strict=True)
    ]
    return list(best(places, result.probabilities_BK, model.classes, top_k=config.top_k)), bad | result.bad


def best(
    places: Sequence[tuple[str, float, float | None]], score_BK: Tensor, classes: Sequence[str], *, top_k: int
) -> Iterator[PredictedLabel]:
    """Labels with the highest scores of each place: path, start and end."""
    scores_Bk, numbers_Bk = score_BK.topk(min(top_k, len(classes)), dim=1)
    for place, scores, numbers in zip(places, scores_Bk.tolist(), numbers_Bk.tolist(), strict=True):
        for score, number in zip(scores, numbers, strict=True):
            yield PredictedLabel(*place, classes[number], score)


# --- windows along videos -----------------------------------------------------------------------------------


def scorer_of(model: Trained, config: Predict) -> Embedder:
    """The classifier as an `Embedder` of scores; raises UserError for a window shorter than a clip."""
    weights = model.need_classifier().state_dict().items()
    head = {name: value for name, value in weights if not name.startswith("encoder.")}
    identity = identity_of(
        model,
        pool="mean",
        head=digest(head),
        window=config.window,
        hop=config.hop,
        embedding_dim=len(model.classes),
        dtype="float32",
    )
    provenance = Provenance(identity=identity, source=model.address)
    return Embedder(vectors_of=model.scores, device=model.device, provenance=provenance, data=model.data)


def look_along(scorer: Embedder, catalog: Catalog, out: Path) -> tuple[list[sliding_windows.Found], dict[str, str]]:
    """Computes the scores of all windows that the parts of a file lack; raises UserError without a usable window.

    Returns:
        Windows of each video; path and reason of each video that was left out, whole or in part.
    """
    paths = list(dict.fromkeys(item.path for item in catalog.items))  # a list may hold a video several times
    done = sliding_windows.complete(scorer, paths, out, known=parts_of(out), doing="predicting")
    if not (found := sliding_windows.found_along(out, done.planned)):
        raise sliding_windows.none_usable(done, len(paths))
    return found, done.bad


def labels_of_windows(
    found: Sequence[sliding_windows.Found], model: Trained, config: Predict
) -> Iterator[PredictedLabel]:
    """The labels of windows, video by video, in the order of time."""
    for video, score_BK in sliding_windows.vectors_along(found):
        places = [(video.path, window.start, window.end) for window in video.windows]
        yield from best(places, score_BK, model.classes, top_k=config.top_k)


def draw_timeline(file: Path, found: Sequence[sliding_windows.Found], model: Trained, scorer: Embedder) -> None:
    """Writes the page of the scores of windows."""
    from mam2.pictures.page import command_line  # needs mam2[pictures]
    from mam2.pictures.timeline import Track, write_timeline

    identity = scorer.provenance.identity
    run = scorer.provenance.source
    options = {"out": "labels.csv", "window": identity.window, "hop": identity.hop, "timeline": "timeline.html"}
    write_timeline(
        file,
        (
            Track(path=video.path, spans=[(window.start, window.end) for window in video.windows], score_BK=score_BK)
            for video, score_BK in sliding_windows.vectors_along(found)
        ),
        paths=[video.path for video in found],
        classes=model.classes,
        kind=model.kind,
        about=f"Windows of {identity.window} every {identity.hop}, by the run {Path(run).name}.",
        facts={
            "run": run,
            "window": identity.window,
            "hop": identity.hop,
            "seed": f"{model.settings.seed}, of the run" if model.settings else "unknown",
        },
        commands=[command_line(["predict", run, "VIDEOS"], options)],
    )
