"""Sampling of frames for a clip: integers in, integers out.

A dense clip of `clip_frames` frames `stride_frames` apart fills a window of `clip_frames * stride_frames` frames; a
uniform clip has one frame from each of `clip_frames` equal segments of the whole video, which has `num_frames`, at
least 1. `spread` widens a dense clip to its whole window, as in SlowFast: 16 frames of a window of 64 span 63 frames in
place of 60.
"""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from functools import partial
from typing import Literal

from mam2.config import UserError

Short = Literal["shrink", "repeat", "skip"]
"""Handling of a video shorter than the window: bring the clip's frames closer together, repeat the last frame (equal
frames have no motion), or do without the video."""


class ShortVideo(UserError):
    """Video with too few frames for the clip that was asked of it."""


def dense(
    num_frames: int,
    *,
    clip_frames: int,
    stride_frames: int,
    rng: random.Random,
    short: Short = "shrink",
    spread: bool = False,
    path: str = "The video",
) -> list[int]:
    """Frames of a training clip in a window at a random place (App. B, dense sampling).

    Args:
        num_frames: frames of the video.
        clip_frames: frames of the clip.
        stride_frames: distance between neighbouring frames of the clip; "shrink" takes the largest that fits.
        rng: draws the start of the window.
        short: handling of a video in which the window does not fit.
        spread: widens the clip to its whole window.
        path: the video's name in messages.

    Returns:
        `clip_frames` indices in order; all different unless `short` is "repeat".

    Raises:
        ShortVideo: fewer frames than the clip needs: `clip_frames` for "shrink", the whole window for "skip".
    """
    window_frames = clip_frames * stride_frames
    # Paper: silent on short videos; here: shrink the stride, as repeated frames have no motion to predict.
    if short != "repeat" and num_frames < clip_frames:
        raise ShortVideo(
            f"{path} has {num_frames} frames; a {clip_frames}-frame clip needs at least {clip_frames}. "
            "Leave the video out; to fine-tune, --data.short repeat repeats its last frame."
        )
    if short == "skip" and num_frames < window_frames:
        raise ShortVideo(
            f"{path} has {num_frames} frames; {clip_frames} frames {stride_frames} apart need at least "
            f"{window_frames}. Use --data.short shrink, or leave the video out."
        )
    if short == "shrink":
        stride_frames = min(stride_frames, num_frames // clip_frames)
    start = rng.randint(0, max(0, num_frames - clip_frames * stride_frames))
    return _window(num_frames, start=start, clip_frames=clip_frames, stride_frames=stride_frames, spread=spread)


def views(
    num_frames: int, *, clip_frames: int, stride_frames: int, clips: int, spread: bool = False
) -> list[list[int]]:
    """Frames of the clips a video is tested on: `clips` windows evenly spaced from the first frame to the last.

    One window is at the centre. A short video is never refused: the stride shrinks; where stride 1 does not fit, the
    last frame repeats.

    Returns:
        `clips` lists of `clip_frames` indices.
    """
    stride_frames = max(1, min(stride_frames, num_frames // clip_frames))
    room = max(0, num_frames - clip_frames * stride_frames)
    starts = [room // 2] if clips == 1 else [round(i * room / (clips - 1)) for i in range(clips)]
    window = partial(_window, num_frames, clip_frames=clip_frames, stride_frames=stride_frames, spread=spread)
    return [window(start=start) for start in starts]


def uniform(num_frames: int, *, clip_frames: int, rng: random.Random) -> list[int]:
    """Frames of a training clip of the whole video, a random one from each segment (TSN; App. B, SSv2).

    The segments share the video out to the last frame. A video shorter than the clip is never refused: each of its
    frames is taken, some of them more than once. Between those there is no motion, so pre-train on `dense` clips.

    Returns:
        `clip_frames` indices in order; all different unless `num_frames < clip_frames`.
    """
    edges = [i * num_frames // clip_frames for i in range(clip_frames + 1)]
    return [rng.randint(start, max(start, end - 1)) for start, end in itertools.pairwise(edges)]


def uniform_views(num_frames: int, *, clip_frames: int, clips: int) -> list[list[int]]:
    """Frames of the uniform clips a video is tested on: clip k of K takes each segment's frame k / K of the way.

    So the two clips of Something-Something V2 are the starts and the middles of the segments; a single one takes the
    middles. Where `num_frames < clip_frames`, frames repeat.

    Returns:
        `clips` lists of `clip_frames` indices.
    """
    parts = clips if clips > 1 else 2
    places = range(clips) if clips > 1 else (1,)
    return [[(i * parts + place) * num_frames // (clip_frames * parts) for i in range(clip_frames)] for place in places]


def stride_at(fps: float, stride_frames: int, target_fps: float = 30.0) -> int:
    """Stride, at least 1, that spans as much time at `fps` frames per second as `stride_frames` do at `target_fps`; an
    unknown rate, 0, keeps it."""
    return max(1, int(stride_frames * fps / target_fps + 0.5)) if fps > 0 else stride_frames


def _window(num_frames: int, *, start: int, clip_frames: int, stride_frames: int, spread: bool) -> list[int]:
    step = Fraction(stride_frames)
    if spread and clip_frames > 1:
        step = Fraction(clip_frames * stride_frames - 1, clip_frames - 1)
    return [min(start + int(i * step), num_frames - 1) for i in range(clip_frames)]
