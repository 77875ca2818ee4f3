"""Windows that slide over videos of any length, each decoded as the clip of a test with one view.

B clips, T frames, C = 3 channels, H = W = size pixels.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch

from mam2.config import UserError
from mam2.data.clips import Data, opened, stride_of, view_frames
from mam2.data.shape import ClipShape
from mam2.data.transforms import test_crops
from mam2.data.video.segment_path import segment_of
from mam2.data.video.source import VideoSource
from mam2.data.workers import parallel, parallel_map

log = logging.getLogger("mam2")
LEAST_SECONDS = 0.01


@dataclass(frozen=True)
class Length:
    """Length of time in a video, in frames or seconds, written `64 frames`, `2.5 s`."""

    value: float
    unit: Literal["frames", "s"]

    def __post_init__(self) -> None:
        if self.unit == "frames":
            good = 1 <= self.value < 2**31 and self.value == int(self.value)
        else:
            good = LEAST_SECONDS <= self.value < 1e6
        if not good:
            raise UserError(
                f"A length of {self.value:g} {self.unit} makes no sense; accepted are whole frames from 1 up, or "
                f"seconds from {LEAST_SECONDS} up."
            )

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    @staticmethod
    def parse(text: str) -> Length:
        """Reads `64 frames`, `2.5 s` or `2 seconds`, with or without the space. Raises UserError for anything else."""
        found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(frames?|s|seconds?)\s*", text)
        if not found:
            raise UserError(f"{text!r} is no length. Write a number and a unit, such as '64 frames' or '2.5 s'.")
        return Length(float(found[1]), "frames" if found[2].startswith("f") else "s")


class Window(NamedTuple):
    """Stretch of a video.

    Attributes:
        first, last: its frames, from `first` up to, not including, `last`.
        start, end: the same in seconds from the video's first frame.
    """

    first: int
    last: int
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Video and its windows.

    Attributes:
        path: file, or a segment of it.
        version: size in bytes and time of change in nanoseconds of the file.
        fps: frames per second on average.
        windows: windows in order.
        is_short: the whole video is shorter than one window.
    """

    path: str
    version: tuple[int, int]
    fps: float
    windows: tuple[Window, ...]
    is_short: bool


def windows_of(video: VideoSource, *, window: Length, hop: Length) -> list[Window]:
    """Windows of a video: one every `hop` from its first frame; the last one ends with the video.

    So every frame is in a window, unless `hop` is longer than one. A video shorter than a window is one window.

    Raises:
        VideoError: the times of frames are not known.
    """
    num_frames = video.num_frames - video.num_missing
    end = video.time_of(num_frames)

    def last_of(first: int) -> int:
        if window.unit == "frames":
            return first + int(window.value)
        return max(first + 1, video.frame_at(video.time_of(first) + window.value))

    spans = []
    for number in itertools.count():
        first = int(number * hop.value) if hop.unit == "frames" else video.frame_at(number * hop.value)
        if (last := last_of(first)) >= num_frames:
            break
        spans.append((first, last))
    rest = num_frames - int(window.value) if window.unit == "frames" else video.frame_at(end - window.value)
    spans.append((max(0, rest), num_frames))
    # A pause between frames of changing distance can hold several hops.
    return [
        Window(first, last, _seconds(video.time_of(first)), _seconds(video.time_of(last)))
        for first, last in dict.fromkeys(spans)
    ]


def _seconds(time: float) -> float:
    """Rounds a time to nanoseconds, which still find the frame."""
    return round(time, 9) + 0.0


def plan_windows(
    paths: Sequence[str], data: Data, *, window: Length, hop: Length, num_frames: int
) -> Iterator[Planned | tuple[str, str]]:
    """Windows of each video, in order; for an unusable one, its path and the reason."""
    look = partial(_plan, data=data, window=window, hop=hop, num_frames=num_frames)
    found = parallel_map(look, paths, num_workers=data.num_workers, timeout_seconds=data.timeout_seconds)
    for path, result in zip(paths, found, strict=True):
        yield (path, str(result)) if isinstance(result, UserError) else result


def _plan(path: str, *, data: Data, window: Length, hop: Length, num_frames: int) -> Planned:
    with opened(path, data, size=1) as video:
        windows = windows_of(video, window=window, hop=hop)
        there = video.num_frames - video.num_missing
        fps = video.fps or 0.0  # a whole video of unknown rate has no windows: an error above
        length = there if window.unit == "frames" else video.time_of(there) + 0.5 / fps
    shortest = min(span.last - span.first for span in windows)
    if shortest < num_frames <= there:
        raise UserError(
            f"{path} has {shortest} frames in {window}; a clip has {num_frames}. Give a longer --window, or leave the "
            "video out."
        )
    try:
        status = os.stat(segment_of(path)[0])
    except OSError as error:  # it was removed in the meantime
        raise UserError(str(error)) from error
    return Planned(
        path=path,
        version=(status.st_size, status.st_mtime_ns),
        fps=fps,
        windows=tuple(windows),
        is_short=length < window.value,
    )


def evenly(windows: Sequence[Window], most: int) -> list[Window]:
    """Selects at most `most` windows, spread evenly, with the first and the last."""
    if len(windows) <= most:
        return list(windows)
    return [windows[number * (len(windows) - 1) // max(1, most - 1)] for number in range(most)]


def frames_of(first: int, last: int, *, num_frames: int, data: Data) -> list[int]:
    """Frames of a window's clip: those of a test with one view, were the window a video of its own."""
    length = last - first
    [places] = view_frames(length, data, clip_frames=num_frames, stride_frames=length, clips=1)
    return [first + place for place in places]


def clips_of(video: VideoSource, spans: Sequence[tuple[int, int]], data: Data, shape: ClipShape) -> torch.Tensor:
    """Decodes the clips of windows (first, last) in one pass: uint8 (B, T, 3, size, size), the centre square. Raises
    VideoError if a frame does not decode."""
    indices = [index for first, last in spans for index in frames_of(first, last, num_frames=shape.frames, data=data)]
    [crop_TCHW] = test_crops(video.frames(indices), size=shape.size, crops=1)
    return crop_TCHW.unflatten(0, (len(spans), shape.frames)).contiguous()


def clip_between(path: str, data: Data, shape: ClipShape, *, start: float, end: float | None) -> torch.Tensor:
    """Clip of a part of a video: uint8 (T, 3, size, size), the centre square.

    Args:
        path: a video.
        data: how videos are read.
        shape: frames and size of the clip.
        start: seconds from the first frame.
        end: end of the window that the frames are taken from, seconds; by default it is as long as a dense clip.

    Raises:
        UserError: the video does not decode, or has no frame between `start` and `end`.
    """
    with opened(path, data, size=shape.size) as video:
        there = video.num_frames - video.num_missing
        first = video.frame_at(start)
        span = shape.frames * stride_of(video.fps, data)
        last = min(there, first + span if end is None else video.frame_at(end))
        if first >= last:
            raise UserError(
                f"{path} has no frames from {start:g} to {'its end' if end is None else f'{end:g}'} seconds; it "
                f"lasts {video.time_of(there):.3f}. Give a start before the end of the video, and an end after it."
            )
        return clips_of(video, [(first, last)], data, shape)[0]


@dataclass(frozen=True, kw_only=True)
class WindowBatch:
    """Clips of some of a loader's windows.

    Attributes:
        clip_BTCHW: uint8 (B, T, 3, size, size).
        places: each clip's place among the loader's windows.
    """

    clip_BTCHW: torch.Tensor
    places: tuple[int, ...]


class WindowLoader:
    """Loader of windows' clips, in order, decoded ahead of time. Windows that do not decode are left out.

    Args:
        windows: paths of videos and their windows; neighbours of the same video share a pass.
        data: how videos are read.
        shape: frames per clip, and pixels of both its sides.
        batch_size: windows decoded together.

    Attributes:
        bad: path and reason of videos with windows that were left out so far.
    """

    def __init__(self, windows: Sequence[tuple[str, Window]], data: Data, shape: ClipShape, *, batch_size: int) -> None:
        self.bad = dict[str, str]()
        self._set = _WindowSet(windows, data, shape, batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._set.windows) // self._set.batch_size)

    def __iter__(self) -> Iterator[WindowBatch]:
        data = self._set.data
        made = parallel(self._set, range(len(self)), num_workers=data.num_workers, timeout_seconds=data.timeout_seconds)
        for batch, bad in made:
            for reason in (reason for path, reason in bad.items() if path not in self.bad):
                log.warning("Left out: %s", reason)
            self.bad.update(bad)
            yield batch


@dataclass(frozen=True)
class _WindowSet:
    """Index -> a batch, and by the videos' paths the reasons of the windows that are not in it.

    `parallel` takes a video's part in one batch for a video, so that no more than it is lost of a long one.
    """

    windows: Sequence[tuple[str, Window]]
    data: Data
    shape: ClipShape
    batch_size: int
    quarantined: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, index: int) -> tuple[WindowBatch, dict[str, str]]:
        clips = [torch.empty(0, self.shape.frames, 3, self.shape.size, self.shape.size, dtype=torch.uint8)]
        places: list[int] = []
        bad = dict[str, str]()
        for name, part in self._parts(index).items():
            path = self.windows[part[0]][0]
            if name in self.quarantined:
                bad[path] = self.quarantined[name]
                continue
            try:
                clips.append(self._clips(path, part))
                places += part
            except UserError:  # the whole pass fails with one frame: the other windows are decoded by themselves
                for place in part:
                    try:
                        clips.append(self._clips(path, [place]))
                        places.append(place)
                    except UserError as error:
                        bad[path] = str(error)
        return WindowBatch(clip_BTCHW=torch.cat(clips), places=tuple(places)), bad

    def _clips(self, path: str, places: Sequence[int]) -> torch.Tensor:
        spans = [self.windows[place][1][:2] for place in places]
        with opened(path, self.data, size=self.shape.size) as video:
            return clips_of(video, spans, self.data, self.shape)

    def _parts(self, index: int) -> dict[str, list[int]]:
        """Places of a batch's windows, by the part of a video that they are in."""
        first = index * self.batch_size
        places = range(first, min(first + self.batch_size, len(self.windows)))
        parts = dict[str, list[int]]()
        for path, neighbours in itertools.groupby(places, key=lambda place: self.windows[place][0]):
            part = list(neighbours)
            start, end = self.windows[part[0]][1].start, self.windows[part[-1]][1].end
            parts[f"{path}, {start:.3f} to {end:.3f} seconds,"] = part
        return parts

    def paths(self, index: int) -> list[str]:
        return list(self._parts(index))

    def decode(self, name: str) -> None:
        for index in range(-(-len(self.windows) // self.batch_size)):
            if part := self._parts(index).get(name):
                self._clips(self.windows[part[0]][0], part)
