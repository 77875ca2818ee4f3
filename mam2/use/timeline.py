"""What a classifier says along a video: the scores of windows, one after another.

K classes, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mam2.config import LabelKind, UserError
from mam2.data.clips import Data
from mam2.data.windows import Planned, Window, WindowLoader, evenly, plan
from mam2.device import autocast_dtype, send
from mam2.model.classifier import Classifier
from mam2.use.embedder import span_of
from mam2.use.predict import scores_of_clips

WINDOWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """What a classifier says along a video.

    Attributes:
        classes: K names.
        kind: what the scores are, see `scores_of`.
        windows: those that decode, in order.
        scores_WK: of each window, float32.
        num_windows: that the video has; more than were looked at, if it is long.
        is_short: whether the whole video is shorter than one window.
        problem: why a part of it is left out; empty if none is.
    """

    classes: tuple[str, ...]
    kind: LabelKind
    windows: tuple[Window, ...]
    scores_WK: Tensor
    num_windows: int
    is_short: bool
    problem: str


@torch.no_grad()
def scores_along(
    classifier: Classifier, classes: tuple[str, ...], data: Data, video: str | Path, *, max_windows: int
) -> Timeline:
    """The scores of windows that are as long as a clip of the training, one after another.

    Args:
        classifier: in eval mode, on its device.
        classes: their names.
        data: how its training reads videos.
        video: a video file.
        max_windows: of a video that has more, so many are looked at, spread evenly.

    Raises:
        UserError: a video that can't be decoded.
    """
    path, sizes = str(video), classifier.encoder.config
    window = span_of(data, sizes.frames)
    [planned] = plan([path], data, window=window, hop=window, num_frames=sizes.frames)
    if not isinstance(planned, Planned):
        raise UserError(planned[1])
    windows = evenly(planned.windows, max_windows)
    loader = WindowLoader(
        [(path, window) for window in windows],
        data,
        num_frames=sizes.frames,
        size=sizes.size,
        batch_size=WINDOWS_AT_ONCE,
    )
    device = next(classifier.parameters()).device
    dtype = autocast_dtype("auto", device, width=sizes.width)
    places: list[int] = []
    scores = [torch.empty(0, len(classes))]
    for batch in loader:
        if batch.places:
            clip_BTCHW = send(batch.clip_BTCHW, device)
            scores.append(scores_of_clips(clip_BTCHW, classifier=classifier, dtype=dtype).cpu())
            places += batch.places
    if not places:
        raise UserError(loader.bad[path])
    return Timeline(
        classes=classes,
        kind=classifier.kind,
        windows=tuple(windows[place] for place in places),
        scores_WK=torch.cat(scores),
        num_windows=len(planned.windows),
        is_short=planned.is_short,
        problem=loader.bad.get(path, ""),
    )
