"""Frames at given indices from a video file, with PyAV (which carries FFmpeg)."""

from __future__ import annotations

import functools
import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from mam2.config import UserError

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""The file names taken for videos, in lower case."""

_SEEK_GAP_FRAMES = 8  # fewer frames than this are decoded and dropped sooner than a seek is made
_SMALL_PACKET_BYTES = 32  # an AVI packet below this may stand for "no new frame here"


class VideoError(UserError):
    """A file that can't be opened as a video, or whose frames can't be decoded."""


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Where the frames of a file are. Height and width are a coded frame's, before it is turned upright."""

    num_frames: int
    pts: Sequence[int] | None  # the time of each frame, in the order shown; None where the file's times can't be used
    keys: Sequence[int]  # times of the frames that decoding can start from, sorted
    fps: float
    height: int
    width: int
    quarter_turns: int  # counter-clockwise


class Video:
    """A video file, open for reading. A context manager: the file is closed at its end.

    Frames are counted by reading the file's packets, as the counts in headers are often wrong; the count of
    a file that this process opened before is remembered. Rotation stored in the file (telephones) is applied.

    Attributes:
        num_frames: how many frames there are.
        fps: frames a second, as the file tells; 0 where it does not.
        height, width: pixels, upright.

    Raises:
        VideoError: the file is absent, no video, damaged, or shorter than its own header promises.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        with _video_errors(self.path):
            status = os.stat(self.path)
            self._index = _read_index(self.path, status.st_size, status.st_mtime_ns)
            self._container = _open(self.path)
        self._to_rgb = VideoReformatter()  # one for all frames: setting it up costs more than using it
        upright = self._index.quarter_turns % 2 == 0
        self.num_frames, self.fps = self._index.num_frames, self._index.fps
        self.height = self._index.height if upright else self._index.width
        self.width = self._index.width if upright else self._index.height

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """Decodes the frames at `indices`, in the order asked; repeats are allowed.

        Decoding starts at the nearest key frame and ends with the last frame asked for.

        Returns:
            RGB, uint8 (len(indices), 3, height, width); the channels lie last in memory, as decoded.

        Raises:
            VideoError: a frame that the file promises does not decode.
            IndexError: an index outside 0 .. num_frames - 1.
        """
        wanted = sorted(set(indices))
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.num_frames:
            raise IndexError(f"{self.path} has frames 0 to {self.num_frames - 1}; asked for {list(indices)}.")
        rgb_THWC = np.empty((len(wanted), self._index.height, self._index.width, 3), np.uint8)
        done = 0
        with _video_errors(self.path):
            for run in self._runs(wanted):
                for frame in self._decode_run(run):
                    rgb = self._to_rgb.reformat(
                        frame, width=self._index.width, height=self._index.height, format="rgb24"
                    )
                    rgb_THWC[done] = rgb.to_ndarray()
                    done += 1
        clip_TCHW = torch.from_numpy(rgb_THWC).permute(0, 3, 1, 2)
        if list(indices) != wanted:
            clip_TCHW = clip_TCHW[[bisect_left(wanted, i) for i in indices]]
        if self._index.quarter_turns:
            clip_TCHW = clip_TCHW.rot90(self._index.quarter_turns, dims=(-2, -1))
        return clip_TCHW

    def _runs(self, wanted: list[int]) -> list[list[int]]:
        """Splits sorted indices where a seek to a later key frame saves decoding."""
        runs = [[wanted[0]]]
        for before, index in pairwise(wanted):
            if self._key_before(index) - before > _SEEK_GAP_FRAMES:
                runs.append([])
            runs[-1].append(index)
        return runs

    def _key_before(self, index: int) -> int:
        """The number of the nearest key frame at or before frame `index`; 0 if there is none."""
        pts, keys = self._index.pts, self._index.keys
        if pts is None:
            return 0
        key = bisect_right(keys, pts[index]) - 1
        return 0 if key < 0 else bisect_left(pts, keys[key])

    def _decode_run(self, run: list[int]) -> Iterator[Any]:
        """The frames of a run, in one pass of the decoder; in a second from the start if the seek failed."""
        for seek in (True, False):
            for found, frame in self._decode(run[0], seek=seek):
                if found > run[0]:
                    break
                if found == run[0]:
                    yield frame
                    run = run[1:]
                    if not run:
                        return
        raise VideoError(_message(self.path, f"frame {run[0]} of {self.num_frames} does not decode"))

    def _decode(self, start: int, *, seek: bool) -> Iterator[tuple[int, Any]]:
        """Numbers and frames in the order shown, from the key frame at or before frame `start` if `seek`."""
        key, pts = self._key_before(start), self._index.pts
        packets = self._packets_from(pts[key], pts[start]) if seek and pts is not None and key > 0 else None
        if packets is None:
            self._container.close()
            self._container = _open(self.path)
            packets = self._container.demux(_stream(self._container))
        count = 0
        for frame in _decoded(packets):
            if pts is None:
                yield count, frame
                count += 1
            else:
                index = bisect_left(pts, frame.pts)
                if index < len(pts) and pts[index] == frame.pts:
                    yield index, frame

    def _packets_from(self, key_pts: int, start_pts: int) -> Iterator[Any] | None:
        """Packets from a key frame at or before `start_pts`; None where a seek does not lead there."""
        stream = _stream(self._container)
        self._container.seek(key_pts, stream=stream)
        packets = self._container.demux(stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None:
                return chain([packet], packets) if packet.pts <= start_pts else None
        return None


@functools.lru_cache(maxsize=16384)  # whole epochs; a long video is read from end to end only once
def _read_index(path: str, size_bytes: int, mtime_ns: int) -> _Index:
    """Reads all packets; decodes one frame, or all where the packets don't tell how many there are."""
    with _open(path) as container:
        stream = _stream(container)
        is_avi, is_mov = "avi" in container.format.name, "mov" in container.format.name
        # VP8 may hold frames that are not shown; AVI stores no times, and FFmpeg guesses wrong with B-frames.
        usable = stream.codec_context.name != "vp8"
        first, all_pts, keys = None, [], []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                continue
            if first is None:
                first = next(_decoded([packet]), None)
            if packet.size == 0 or (packet.is_discard and not packet.is_keyframe):
                continue
            usable = usable and packet.pts is not None
            if is_avi and (packet.pts != packet.dts or packet.size < _SMALL_PACKET_BYTES):
                usable = False
            if packet.is_keyframe and container.format.name != "mpeg":  # after a seek these get wrong times
                keys.append(packet.pts)
            if not packet.is_discard:
                all_pts.append(packet.pts)
        if first is None or not all_pts:
            raise VideoError(_message(path, "no frame of it decodes"))
        if is_mov and usable and stream.duration:
            _check_complete(path, all_pts, promised=stream.frames, end=(stream.start_time or 0) + stream.duration)
        usable = usable and len(set(all_pts)) == len(all_pts)
        rate = stream.average_rate or stream.guessed_rate
        common: dict[str, Any] = {
            "fps": float(rate) if rate else 0.0,
            "height": first.height,
            "width": first.width,
            "quarter_turns": round(first.rotation / 90) % 4,
        }
    if usable:
        return _Index(num_frames=len(all_pts), pts=_compact(sorted(all_pts)), keys=array("q", sorted(keys)), **common)
    with _open(path) as container:
        num_frames = sum(1 for _ in _decoded(container.demux(_stream(container))))
    return _Index(num_frames=num_frames, pts=None, keys=(), **common)


def _check_complete(path: str, all_pts: list[int], *, promised: int, end: int) -> None:
    """Refuses an MP4 cut off by a broken download: its header has more frames, and more time, than the file.

    More frames alone don't tell: those that an edit list cuts away are counted there too.
    """
    frame_time = (max(all_pts) - min(all_pts)) / max(1, len(all_pts) - 1)
    if promised > len(all_pts) and end - max(all_pts) > 2 * frame_time:
        raise VideoError(_message(path, f"its header promises {promised} frames, but only {len(all_pts)} are there"))


def _compact(values: list[int]) -> Sequence[int]:
    """Sorted integers as a `range`, which takes no memory, if they are evenly spaced; or else as an array."""
    if len(values) > 1:
        even = range(values[0], values[-1] + 1, values[1] - values[0])
        if len(even) == len(values) and all(a == b for a, b in zip(even, values, strict=True)):
            return even
    return array("q", values)


def _open(path: str) -> Any:
    # Metadata may be in any encoding, and one clip of HMDB51 is not UTF-8.
    container = av.open(path, metadata_errors="ignore")
    if not container.streams.video:
        container.close()
        raise VideoError(_message(path, "it holds no video stream"))
    _stream(container).codec_context.thread_count = 1  # the workers of the loader are the parallelism
    return container


def _stream(container: Any) -> Any:
    return container.streams.video[0]


def _decoded(packets: Any) -> Iterator[Any]:
    for packet in packets:
        # An empty packet with a time is a frame the camera dropped; without one it ends the stream.
        if not packet.is_corrupt and (packet.size > 0 or packet.pts is None):
            yield from packet.decode()


def _message(path: str, reason: str) -> str:
    return f"{path} can't be decoded: {reason}; it may be damaged or no video. Re-encode or remove it."


@contextmanager
def _video_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(_message(path, error.strerror or str(error))) from error
