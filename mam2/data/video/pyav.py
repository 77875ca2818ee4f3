"""Frames at given indices from a video file, with PyAV, which carries FFmpeg."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from mam2.data.video.index import (
    VideoError,
    check_indices,
    decoded,
    message,
    open_container,
    scaled_down,
    stream_of,
    video_errors,
)
from mam2.data.video.indexed import IndexedVideo

_SEEK_GAP_FRAMES = 8  # fewer frames than this are decoded and dropped sooner than a seek is made


class PyAVVideo(IndexedVideo):
    """Video file, open for reading; a `VideoSource`.

    Frames are counted by reading the file's packets once, as the counts in headers are often wrong. They are turned and
    mirrored as the file asks (telephones); pixels that are not square are made so by changing the width. An MP4 cut off
    by a broken download counts its lost frames in `num_missing`. Cover pictures of sound files are no video.

    Raises:
        VideoError: the file is absent, no video, or damaged from the start.
    """

    _container: Any = None

    def __init__(self, path: str | Path, *, short_side: int = 0) -> None:
        super().__init__(path, short_side=short_side)
        self._size = scaled_down(self._index.height, self._index.width, short_side)  # before it is turned upright
        with video_errors(self.path):
            self._container = open_container(self.path)
        self._to_rgb = VideoReformatter()  # one for all frames: setting it up costs more than using it

    def __exit__(self, *error: object) -> None:
        if self._container is not None:
            self._container.close()

    def __del__(self) -> None:
        self.__exit__()  # PyAV's container is part of a cycle: left alone it stays open until the garbage is collected

    def decode(self, wanted: list[int]) -> torch.Tensor:
        """Decodes from the nearest key frame to the last frame asked for, as `IndexedVideo.decode`."""
        rgb_THWC = np.empty((len(wanted), *self._size, 3), np.uint8)
        for place, rgb_HWC in enumerate(self._each(wanted)):
            rgb_THWC[place] = rgb_HWC
        return self._index.orientation.upright(torch.from_numpy(rgb_THWC).permute(0, 3, 1, 2))

    def each(self) -> Iterator[torch.Tensor]:
        check_indices(self, range(self.num_frames))
        for rgb_HWC in self._each(range(self.num_frames)):
            yield self._index.orientation.upright(torch.from_numpy(rgb_HWC).permute(2, 0, 1))

    def _each(self, wanted: Sequence[int]) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        """Frames at sorted indices, one by one, not yet turned upright: RGB, uint8 (height, width, 3)."""
        height, width = self._size
        with video_errors(self.path):
            for run in self._runs(wanted):
                for frame in self._decode_run(run):
                    # One thread, as the workers of the loader are the parallelism.
                    rgb = self._to_rgb.reformat(frame, width=width, height=height, format="rgb24", threads=1)
                    yield np.asarray(rgb.to_ndarray(), np.uint8)

    def _runs(self, wanted: Sequence[int]) -> list[list[int]]:
        """Splits sorted indices where a seek to a later key frame saves decoding."""
        runs = [[wanted[0]]]
        for before, index in pairwise(wanted):
            if index - before > _SEEK_GAP_FRAMES and self._key_before(index) - before > _SEEK_GAP_FRAMES:
                runs.append([])
            runs[-1].append(index)
        return runs

    def _key_before(self, index: int) -> int:
        """Number of the nearest key frame at or before frame `index`; 0 without one."""
        pts = self._index.pts
        if pts is None:
            return 0
        key = bisect_right(self._index.keys, pts[index]) - 1
        return 0 if key < 0 else bisect_left(pts, self._index.keys[key])

    def _decode_run(self, run: list[int]) -> Iterator[Any]:
        """Frames of a run, in one pass of the decoder; in a second from the start if the seek failed."""
        for attempt in ("seek", "from the start"):
            is_damaged = False
            for found, frame in self._decode(run, seek=attempt == "seek"):
                # What is damaged spoils what is predicted from it, up to the next key frame.
                is_damaged = frame.is_corrupt or (is_damaged and not frame.key_frame)
                if found > run[0]:
                    break
                if found == run[0]:
                    if is_damaged:
                        break
                    yield frame
                    run = run[1:]
                    if not run:
                        return
        raise VideoError(message(self.path, f"frame {run[0]} of {self.num_frames} does not decode"))

    def _decode(self, run: list[int], *, seek: bool) -> Iterator[tuple[int, Any]]:
        """Numbers and frames in the order shown, from the key frame before the run if `seek`, or else all."""
        key = self._key_before(run[0])
        pts = self._index.pts
        packets = None
        wanted_pts = None
        if seek and pts is not None:
            wanted_pts = {pts[index] for index in run}
            packets = self._packets_from(pts[key], pts[run[0]]) if key > 0 else None
        if packets is None:
            self._container.close()
            self._container = open_container(self.path)
            packets = self._container.demux(stream_of(self._container))
        count = 0
        for frame in decoded(packets, wanted_pts):
            if pts is None:
                yield count, frame
                count += 1
            else:
                index = bisect_left(pts, frame.pts)
                if index < len(pts) and pts[index] == frame.pts:
                    yield index, frame

    def _packets_from(self, key_pts: int, start_pts: int) -> Iterator[Any] | None:
        """Packets from a key frame at or before `start_pts`; None where a seek does not lead there."""
        stream = stream_of(self._container)
        self._container.seek(key_pts, stream=stream)
        packets = self._container.demux(stream)
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None:
                return chain([packet], packets) if packet.pts <= start_pts else None
        return None
