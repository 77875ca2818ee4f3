"""Frames at given indices from a video file, with PyAV (which carries FFmpeg); with torchcodec when asked."""

from __future__ import annotations

import importlib
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torchvision.transforms.v2 import functional

from mam2.config import UserError
from mam2.data.video.index import VideoError, decoded, message, open_container, read_index, stream_of, video_errors
from mam2.data.video.source import Backend

_SEEK_GAP_FRAMES = 8  # fewer frames than this are decoded and dropped sooner than a seek is made


class Video:
    """A video file, open for reading. A context manager: the file is closed at its end.

    Frames are counted by reading the file's packets, as the counts in headers are often wrong; the count of
    a file that this process opened before is remembered. Rotation stored in the file (telephones) is applied, and
    pixels that are not square are made so by changing the width.

    Args:
        path: the file.
        backend: "pyav", or "torchcodec" if that is installed. Frames are the same up to rounding in colours;
            files whose times or counts torchcodec reads otherwise are refused.

    Attributes:
        num_frames: how many frames there are. An MP4 cut off by a broken download keeps those its header promises.
        num_missing: how many of them, at the end, the file has lost; to ask for one is an error.
        fps: frames a second on average; None where the file does not tell.
        height, width: pixels, upright.

    Raises:
        VideoError: the file is absent, no video, or damaged from the start.
        UserError: torchcodec is asked for but can't be loaded.
    """

    def __init__(self, path: str | Path, *, backend: Backend = "pyav") -> None:
        self._container: Any = None
        self._torchcodec: Any = None
        if backend not in ("pyav", "torchcodec"):
            raise UserError(f"The backend of a video is {backend!r}; accepted: pyav, torchcodec.")
        self.path = str(path)
        with video_errors(self.path):
            status = os.stat(self.path)
            self._index = read_index(self.path, status.st_size, status.st_mtime_ns)
        upright = self._index.quarter_turns % 2 == 0
        self.num_frames, self.num_missing, self.fps = self._index.num_frames, self._index.num_missing, self._index.fps
        self.height = self._index.height if upright else self._index.width
        self.width = self._index.width if upright else self._index.height
        self._torchcodec = self._open_torchcodec() if backend == "torchcodec" else None
        with video_errors(self.path):
            self._container = open_container(self.path) if backend == "pyav" else None
        self._to_rgb = VideoReformatter()  # one for all frames: setting it up costs more than using it

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()  # PyAV's container is part of a cycle: left alone it stays open until the garbage is collected

    def _close(self) -> None:
        self._torchcodec = None
        if self._container is not None:
            self._container.close()

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """Decodes the frames at `indices`, in the order asked; repeats are allowed.

        Decoding starts at the nearest key frame and ends with the last frame asked for.

        Returns:
            RGB, uint8 (len(indices), 3, height, width); the channels lie last in memory, as decoded.

        Raises:
            VideoError: a frame that the file promises does not decode, or is damaged.
            IndexError: an index outside 0 .. num_frames - 1.
        """
        wanted = sorted(set(indices))
        self._check(wanted)
        if self._torchcodec is not None:
            clip_TCHW = self._torchcodec_frames(wanted)
        else:
            rgb_THWC = np.empty((len(wanted), self._index.height, self._index.width, 3), np.uint8)
            for place, rgb_HWC in enumerate(self._each(wanted)):
                rgb_THWC[place] = rgb_HWC
            clip_TCHW = torch.from_numpy(rgb_THWC).permute(0, 3, 1, 2)
            if self._index.quarter_turns:
                clip_TCHW = clip_TCHW.rot90(self._index.quarter_turns, dims=(-2, -1))
        if list(indices) != wanted:
            clip_TCHW = clip_TCHW[[bisect_left(wanted, i) for i in indices]]
        return clip_TCHW

    def each(self) -> Iterator[torch.Tensor]:
        """All frames one after another, in one pass and with the memory of one: RGB, uint8 (3, height, width).

        Raises:
            VideoError: a frame that the file promises does not decode, or is damaged.
        """
        everything = list(range(self.num_frames))
        self._check(everything)
        if self._torchcodec is not None:
            yield from (self._torchcodec_frames([index])[0] for index in everything)
        else:
            for rgb_HWC in self._each(everything):
                rgb_CHW = torch.from_numpy(rgb_HWC).permute(2, 0, 1)
                yield rgb_CHW.rot90(self._index.quarter_turns, dims=(-2, -1))

    def _check(self, wanted: list[int]) -> None:
        """Refuses sorted indices of which one is not in the file."""
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.num_frames:
            asked = f"{wanted[0]} to {wanted[-1]}" if wanted else "none"
            raise IndexError(f"{self.path} has frames 0 to {self.num_frames - 1}; asked for {asked}.")
        left = self.num_frames - self.num_missing
        if wanted[-1] >= left:
            cut = f"its header promises {self.num_frames} frames, but only {left} are there"
            raise VideoError(message(self.path, f"{cut}, and frame {wanted[-1]} is asked for"))

    def _each(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """The frames at sorted indices, one by one, not yet turned upright: RGB, uint8 (height, width, 3)."""
        height, width = self._index.height, self._index.width
        with video_errors(self.path):
            for run in self._runs(wanted):
                for frame in self._decode_run(run):
                    # One thread, as the workers of the loader are the parallelism.
                    rgb = self._to_rgb.reformat(frame, width=width, height=height, format="rgb24", threads=1)
                    yield rgb.to_ndarray()

    def _runs(self, wanted: list[int]) -> list[list[int]]:
        """Splits sorted indices where a seek to a later key frame saves decoding."""
        runs = [[wanted[0]]]
        for before, index in pairwise(wanted):
            if index - before > _SEEK_GAP_FRAMES and self._key_before(index) - before > _SEEK_GAP_FRAMES:
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
        key, pts = self._key_before(run[0]), self._index.pts
        packets, wanted_pts = None, None
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

    def _open_torchcodec(self) -> Any:
        """torchcodec's decoder, whose frames are known to be those of the index."""
        try:
            decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:  # its libraries are loaded when it is imported
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"The backend torchcodec can't be loaded: {reason}. Install torchcodec, a version for torch "
                f"{torch.__version__}, and FFmpeg's shared libraries; or use the backend pyav."
            ) from error
        try:
            opened = decoder(self.path, num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise self._torchcodec_errs(f"fails ({str(error).strip().splitlines()[0]})") from error
        if self._index.pts is None or opened.metadata.num_frames != self.num_frames - self.num_missing:
            raise self._torchcodec_errs(f"counts {opened.metadata.num_frames} frames where {self.num_frames} decode")
        return opened

    def _torchcodec_frames(self, wanted: list[int]) -> torch.Tensor:
        """The frames at sorted indices, upright: RGB, uint8 (len(wanted), 3, height, width)."""
        assert self._index.pts is not None
        try:
            batch = self._torchcodec.get_frames_at(wanted)
        except (RuntimeError, IndexError) as error:
            raise self._torchcodec_errs(f"fails ({str(error).strip().splitlines()[0]})") from error
        for index, seconds in zip(wanted, batch.pts_seconds.tolist(), strict=True):
            expected = self._index.pts[index] * self._index.tick_seconds
            if abs(seconds - expected) > 1e-4:
                raise self._torchcodec_errs(f"finds frame {index} at {seconds:g} s where {expected:g} s is expected")
        return functional.resize(batch.data, [self.height, self.width], antialias=True)

    def _torchcodec_errs(self, reason: str) -> VideoError:
        return VideoError(f"torchcodec {reason} in {self.path}. Use the backend pyav for this file.")
