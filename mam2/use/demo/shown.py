"""The values of the demo's page for a video: scores, moving pictures, similar windows; page.py lays them out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import torch

from mam2.config import UserError, printable
from mam2.data.labels import LabelKind
from mam2.data.video.open import open_video
from mam2.pictures.canvas import FrameRow, zoom_to
from mam2.pictures.hits import clock, stretch, webp
from mam2.pictures.prediction import FPS, contact_sheet, footer, prediction_rows
from mam2.pictures.timeline import scores_figure
from mam2.trained import Trained, open_model
from mam2.use.embed import videos_to_embed
from mam2.use.embedder import Embed, Embedder, load_embedder_of, span_of
from mam2.use.features_file import Place, read_provenance
from mam2.use.hidden_patches import predict_middle
from mam2.use.predict import Predict, scorer_of
from mam2.use.search import embed_query, search_file
from mam2.use.sliding_windows import VideoVectors, vectors_of_video

log = logging.getLogger("mam2")
MAX_WINDOWS = 64  # per video, for scores and similar windows: a long one would take minutes
NUM_HITS = 8
MOVING_SHORT_SIDE = 160  # pixels of a moving picture's frames, at least
Picture = tuple[bytes, str]
"""A moving picture, an animated WebP, and its caption."""
MAX_CHOICES = 200  # videos to choose from


@dataclass(frozen=True, kw_only=True, eq=False)
class Demo:
    """A model, a features file and videos to try it on.

    Attributes:
        title, about: texts at the head of the page.
        model: model for predictions, or attention.
        scorer: scorer of windows by the model's classifier; None without a classifier.
        features: a features file, and the encoder that made it; None without.
        videos: paths of the videos to choose from, by the names on the page.
        missing: parts that the page can't show, and their remedies.
    """

    title: str
    about: str
    model: Trained
    scorer: Embedder | None
    features: tuple[Path, Embedder] | None
    videos: dict[str, str]
    missing: tuple[str, ...]


def load_demo(source: str | Path, *, features: str | Path = "", videos: str | Path = "") -> Demo:
    """Loads the model, the features file and the list of videos; arguments as in `demo`.

    Raises:
        UserError: no run and no encoder, features of another encoder, or no videos.
    """
    source = str(source)
    choice = _choice(str(videos)) if videos else {}
    model = open_model(source, whole=True)
    scorer = None
    if model.classifier is not None:
        window = span_of(model.data, model.shape.frames)
        scorer = scorer_of(model, Predict(window=str(window)))
        scorer = replace(scorer, data=replace(scorer.data, num_workers=0))
    embedder = None
    if features:
        features = Path(features)
        embedder = load_embedder_of(read_provenance(features), features, source=source, num_workers=0)
    name = Path(source).name or Path(source).resolve().name
    missing = []
    if model.pretrained is None:
        missing.append(
            f"Predicted appearance and motion: {name} is no pre-training run. The folder of a mam2 pretrain shows them."
        )
    if scorer is None:
        missing.append(f"Classes along the video: {name} has no classifier. The folder of a mam2 finetune shows them.")
    if embedder is None:
        missing.append(
            "Similar windows: there is no features file. mam2 embed SOURCE VIDEOS --out "
            "features.parquet writes one; start the page with --features features.parquet."
        )
    return Demo(
        title=f"Try {name}",
        about=_about(model),
        model=model,
        scorer=scorer,
        features=None if embedder is None else (Path(features), embedder),
        videos=choice,
        missing=tuple(missing),
    )


def _choice(videos: str) -> dict[str, str]:
    """The first videos of a folder or a list, by their names below the folder that they share."""
    paths = [item.path for item in videos_to_embed(videos, Embed()).items]
    if len(paths) > MAX_CHOICES:
        log.warning(f"{videos} has {len(paths)} videos; the page lets choose from the first {MAX_CHOICES}.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {os.path.relpath(path, root): path for path in paths[:MAX_CHOICES]}


def _about(model: Trained) -> str:
    """A description of the model, in a sentence or two."""
    sizes = model.encoder.config
    data = model.data
    kind = "A pre-trained model" if model.pretrained else "An encoder"
    if model.classifier is not None:
        kind = "A model of numbers" if model.kind == "regression" else f"A classifier of {len(model.classes)} classes"
    apart = "spread over the video" if data.sampling == "uniform" else f"{data.stride_frames} frames of the video apart"
    return (
        f"{kind}: {sizes.depth} blocks, {sizes.width} wide. It looks at clips of {sizes.frames} frames of "
        f"{sizes.size} × {sizes.size} pixels, {apart}."
    )


def problem_of(video: str) -> str:
    """The reason why a video can't be opened, as a message for the page; empty if it can."""
    try:
        with open_video(video):
            return ""
    except Exception as error:
        return in_words(error, video)


def in_words(error: Exception, video: str) -> str:
    """An error as a message for the page, which names no folder of this machine."""
    if isinstance(error, UserError):
        return _without_folder(str(error), video)
    log.error("The page could not show a part of %s:", video, exc_info=error)
    name = os.path.basename(video)
    return f"Something is wrong in the program, so a part of {name} can't be shown. Its terminal says more."


def _without_folder(words: str, path: str) -> str:
    return words.replace(f"{os.path.dirname(path)}{os.sep}", "")


# --- scores along a video -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores along a video.

    Attributes:
        summary: mean probability of each class, or the mean number.
        figure: scores of the windows, in the order of time.
        columns: names of the columns of `rows`: start, end, and the labels with the highest means first.
        rows: all numbers, a row per window.
        notes: instructions for reading, and what was left out.
    """

    summary: dict[str, float] | str
    figure: go.Figure
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...]


def classified(demo: Demo, video: str) -> Scores:
    """Scores of a video's windows by the model's classifier; raises UserError for an unusable video."""
    assert demo.scorer is not None, "asked only with a classifier"
    line = vectors_of_video(demo.scorer, video, max_windows=MAX_WINDOWS)
    return scores_shown(line, demo.model.classes, demo.model.kind)


def scores_shown(line: VideoVectors, classes: Sequence[str], kind: LabelKind) -> Scores:
    """The page's values for scores along a video."""
    spans = [(window.start, window.end) for window in line.windows]
    mean_K = line.vector_BF.mean(dim=0)
    order = mean_K.argsort(descending=True, stable=True).tolist()
    names = [printable(name) for name in classes]
    digits = ".4g" if kind == "regression" else ".1%"
    return Scores(
        summary=f"{mean_K[0].item():.4g}" if kind == "regression" else dict(zip(names, mean_K.tolist(), strict=True)),
        figure=scores_figure(spans, line.vector_BF, classes, kind, {}),
        columns=("from", "to", *(names[k] for k in order)),
        rows=[
            [clock(start), clock(end), *(format(score_K[k], digits) for k in order)]
            for (start, end), score_K in zip(spans, line.vector_BF.tolist(), strict=True)
        ],
        notes=tuple(_notes(line, kind)),
    )


def _notes(line: VideoVectors, kind: LabelKind) -> Iterator[str]:
    """Instructions for reading scores, and what was left out."""
    yield "Above: the mean of all windows. Below: each window" + ("." if kind == "regression" else ", from 0 to 100%.")
    if kind == "multilabel":
        yield "A video can have several classes, so the probabilities do not sum to 100%."
    first = line.windows[0]
    if line.is_short:
        yield "The video is shorter than a clip of the training: it is one window, with its frames closer together."
    else:
        yield f"Each window lasts {first.end - first.start:.2g} seconds."
    if line.problem:
        yield f"Left out: {_without_folder(line.problem, line.path)}"
    elif line.num_windows > len(line.windows):
        yield f"{len(line.windows)} of its {line.num_windows} windows were looked at, spread evenly."


# --- moving pictures ----------------------------------------------------------------------------------------


def moving_predictions(demo: Demo, video: str, *, seed: int) -> tuple[list[Picture], np.ndarray, list[str]]:
    """Predictions for the middle of a video, or an encoder's attention; `seed` is that of the mask.

    Returns:
        The rows of a contact sheet, moving; the sheet, uint8 (H, W, 3); and notes on how to read them.

    Raises:
        UserError: a video that can't be used.
    """
    found = predict_middle(demo.model, video, seed=seed)
    rows = prediction_rows(found, zoom_to(found.clip_TCHW, MOVING_SHORT_SIDE))
    sheet_HWC = contact_sheet(found, title=Path(video).name).pixels().permute(1, 2, 0).numpy()
    notes = [f"{row.name}: {row.description}." for row in rows]
    notes += [f"The clip is from the middle of the video, shown at {FPS} frames per second.", *footer(found)]
    if found.agreement_TN is not None and found.masked_TN.any():
        share = found.agreement_TN[found.masked_TN].float().mean().item()
        notes.append(f"Codes right in this clip: {share:.1%}.")
    return [(_moving(row, len(found.clip_TCHW)), row.name) for row in rows], sheet_HWC, notes


def _moving(row: FrameRow, num_frames: int) -> bytes:
    """A row's frames; where the last one has none, as for motion, an empty one keeps it in step with the others."""
    empty_TCHW = torch.full((num_frames - len(row.frames_TCHW), *row.frames_TCHW.shape[1:]), 0.9)
    frames_TCHW = torch.cat([row.frames_TCHW, empty_TCHW])
    return webp((frames_TCHW.clamp(0, 1) * 255).round().byte(), seconds=1 / FPS, quality=85)


def alike(demo: Demo, video: str) -> tuple[list[Picture], list[Picture], list[str]]:
    """Windows of a video, the most similar windows of the features file, the best first, and notes.

    Raises:
        UserError: a video that can't be used, or that is shorter than a window.
    """
    assert demo.features is not None, "asked only with a features file"
    file, embedder = demo.features
    query = embed_query(video, embedder, max_windows=MAX_WINDOWS)
    hits = search_file(file, query.x_QF, path=query.path, top_k=NUM_HITS)
    asked = sorted({query.windows[which] for _, _, which in hits}, key=lambda place: place.start)
    found = [
        (place, f"{score:.3f}, like {clock(query.windows[which].start)}: {_named(place)}")
        for score, place, which in hits
    ]
    notes = [
        "The number is the cosine of a window's features with those of the most similar window of the video; 1 is the "
        "highest.",
        f"In a video with more than {MAX_WINDOWS} windows, {MAX_WINDOWS} are compared, spread evenly.",
        "Windows of the video's own file are left out if it was chosen on this page. An upload is a copy: windows of "
        "the original in the features file come first, with a cosine near 1.",
    ]
    return _pictures([(place, clock(place.start)) for place in asked], notes), _pictures(found, notes), notes


def _named(place: Place) -> str:
    """A window by its file, label and start."""
    label = f" ({place.label})" if place.label else ""
    return f"{os.path.basename(place.path)}{label}, {clock(place.start)}"


def _pictures(windows: Sequence[tuple[Place, str]], notes: list[str]) -> list[Picture]:
    """Windows and their captions; those that can't be shown are added to the notes, with the reason."""
    found = []
    for place, caption in windows:
        try:
            found.append((stretch(place.path, start=place.start, end=place.end), printable(caption)))
        except UserError as error:
            notes.append(f"{caption} can't be shown: {_without_folder(str(error), place.path)}")
    return found
