"""What the demo's page can show of a run, and each part of it for a video, as HTML; demo_page.py lays it out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mam2.config import UserError
from mam2.pictures.hits import Card, clock
from mam2.trained import Trained, open_model
from mam2.use.demo import parts as demo_parts
from mam2.use.embed import videos_to_embed
from mam2.use.embedder import Embed, Embedder, load_embedder_of, span_of
from mam2.use.features_file import Place, read_provenance
from mam2.use.hidden_patches import predict_middle
from mam2.use.predict import Predict, scorer_of
from mam2.use.search import embed_query, search_file
from mam2.use.sliding_windows import vectors_of_video

log = logging.getLogger("mam2")
MAX_WINDOWS = 64  # of a video, for classes and for neighbours: a long one shall not take minutes
NUM_HITS = 8
MAX_VIDEOS = 200  # to choose from


@dataclass(frozen=True, kw_only=True, eq=False)
class Demo:
    """What a run and a features file can show.

    Attributes:
        title, about: of the page.
        model: for predictions, or attention.
        scorer: scores of windows by the model's classifier; None if it has none.
        features: a features file, and the encoder that made it; None without.
        videos: to choose from, by the names that are shown.
        missing: what the page can't show, and what would show it.
    """

    title: str
    about: str
    model: Trained
    scorer: Embedder | None
    features: tuple[Path, Embedder] | None
    videos: dict[str, str]
    missing: tuple[str, ...]


def load_demo(source: str | Path, *, features: str | Path = "", videos: str | Path = "") -> Demo:
    """Loads what can be shown.

    Args:
        source: a run's folder, or what `load_encoder` takes.
        features: a file that `mam2 embed` wrote with that encoder.
        videos: a folder of videos, a CSV with path, or a video, to choose from.

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
            f"Predicted appearance and motion: {name} is no pre-training run. The folder of a `mam2 pretrain` shows "
            "them."
        )
    if scorer is None:
        missing.append(
            f"Classes along the video: {name} has no classifier. The folder of a `mam2 finetune` shows them."
        )
    if embedder is None:
        missing.append(
            "Windows that are most like it: there is no features file. `mam2 embed SOURCE VIDEOS --out "
            "features.parquet` writes one; start the page with --features features.parquet."
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
    if len(paths) > MAX_VIDEOS:
        log.warning(f"{videos} has {len(paths)} videos; the page lets choose from the first {MAX_VIDEOS}.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {os.path.relpath(path, root): path for path in paths[:MAX_VIDEOS]}


def _about(model: Trained) -> str:
    """What the model is, in a sentence or two."""
    sizes, data = model.encoder.config, model.data
    kind = "A pre-trained model" if model.pretrained else "An encoder"
    if model.classifier is not None:
        kind = "A model of numbers" if model.kind == "regression" else f"A classifier of {len(model.classes)} classes"
    apart = "spread over the video" if data.sampling == "uniform" else f"{data.stride_frames} frames of the video apart"
    return (
        f"{kind}: {sizes.depth} blocks, {sizes.width} wide. It looks at clips of {sizes.frames} frames of "
        f"{sizes.size} × {sizes.size} pixels, {apart}."
    )


def all_parts(demo: Demo, video: str, *, seed: int) -> Iterator[tuple[str, str, str]]:
    """Classes, predictions and neighbours of a video as HTML, each time with one more; an error is shown once."""
    first = or_problem(lambda: classified(demo, video), video)
    yield first, "", ""
    second = or_problem(lambda: predicted(demo, video, seed=seed), video)
    second = "" if second == first else second
    yield first, second, ""
    third = or_problem(lambda: alike(demo, video), video)
    yield first, second, "" if third in (first, second) else third


def or_problem(make: Callable[[], str], video: str) -> str:
    """What `make` returns; what goes wrong becomes a message for the page, which names no folder of this machine."""
    try:
        made = make()
    except UserError as error:
        made = demo_parts.problem(str(error))
    except Exception:
        log.exception("The page could not show a part of %s:", video)
        made = demo_parts.problem(
            f"Something is wrong in the program, so a part of {video} can't be shown. Its terminal says more."
        )
    return demo_parts.without_folder(made, video)


def predicted(demo: Demo, video: str, *, seed: int) -> str:
    """Predictions for the middle of a video, or an encoder's attention."""
    return demo_parts.predictions(predict_middle(demo.model, video, seed=seed), title=Path(video).name)


def classified(demo: Demo, video: str) -> str:
    """Class probabilities along a video; empty without a classifier."""
    if demo.scorer is None:
        return ""
    scores = vectors_of_video(demo.scorer, video, max_windows=MAX_WINDOWS)
    return demo_parts.timeline(scores, demo.model.classes, demo.model.kind)


def alike(demo: Demo, video: str) -> str:
    """The windows of the features file that are most like the video's; empty without one."""
    if demo.features is None:
        return ""
    file, embedder = demo.features
    query = embed_query(video, embedder, max_windows=MAX_WINDOWS)
    hits = search_file(file, query.x_QF, path=query.path, top_k=NUM_HITS)
    asked = sorted({query.windows[which] for _, _, which in hits}, key=lambda place: place.start)
    like = [clock(query.windows[which].start) for _, _, which in hits]
    rows = [
        ("In the video", [_card(place) for place in asked]),
        (
            f"In {file.name}",
            [_card(found, f"{score:.3f}, like {at}") for at, (score, found, _) in zip(like, hits, strict=True)],
        ),
    ]
    about = (
        "The number is the cosine of a window's features with those of the window of the video that it is most like; "
        f"1 is the most that it can be. Of a video with more than {MAX_WINDOWS} windows, so many are compared, spread "
        "evenly. Windows of the video's own file are left out."
    )
    return demo_parts.neighbours(rows, about=about)


def _card(place: Place, words: str = "") -> Card:
    """A window on the page, with its label."""
    words = ", ".join(part for part in (words, place.label) if part)
    return Card(path=place.path, start=place.start, end=place.end, words=words)
