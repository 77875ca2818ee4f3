"""Index of a video file: times and places of its frames, read from its packets once and kept in memory."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition

from mam2.config import UserError
from mam2.data.video.orientation import Orientation, orientation_of
from mam2.data.video.source import VideoSource
from mam2.files import first_line

_SMALL_PACKET_BYTES = 32  # an AVI packet below this may stand for "no new frame here"
_MAX_PIXEL_ASPECT = 8
MAX_PIXELS = 2**26  # per frame: 8192 × 8192
_SKIPPING_CODECS = ("h264", "hevc", "mpeg4", "mpeg2video")  # those tested to give the same frames


class VideoError(UserError):
    """File that can't be opened as a video, or whose frames can't be decoded."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Frames of a file. Height and width are those of a coded frame with its pixels made square, before turning."""

    num_frames: int
    num_missing: int
    pts: Sequence[int] | None  # the time of each frame, in the order shown; None where the file's times can't be used
    tick_seconds: float  # the unit of `pts` and `keys`
    keys: Sequence[int]  # times of the frames that decoding can start from, sorted
    fps: float | None
    height: int
    width: int
    orientation: Orientation

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of a frame that was turned upright."""
        return (self.width, self.height) if self.orientation.transposed else (self.height, self.width)


def scaled_down(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size of a frame whose short side is at most `short_side` pixels; 0 leaves it as it is."""
    scale = short_side / min(height, width)
    if not 0 < scale < 1:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


def frame_at(seconds: float, *, fps: float | None, num_frames: int, path: str) -> int:
    """Number of the frame at a time in a video of evenly spaced frames, as `VideoSource.frame_at`."""
    if seconds <= 0 or math.isinf(seconds):
        return 0 if seconds <= 0 else num_frames
    if not fps:
        raise VideoError(f"{path} does not say how many frames it has per second, so no segment of it can be found.")
    return min(math.ceil(seconds * fps - 1e-3), num_frames)


def time_of(index: int, *, fps: float | None, path: str) -> float:
    """Time of a frame in a video of evenly spaced frames, as `VideoSource.time_of`."""
    if not fps:
        raise VideoError(f"{path} does not say how many frames it has per second, so their times are unknown.")
    return index / fps


def check_indices(video: VideoSource, wanted: Sequence[int]) -> None:
    """Checks sorted indices. Raises IndexError for none, or one outside the video, VideoError for a frame that the file
    has lost."""
    if not wanted or wanted[0] < 0 or wanted[-1] >= video.num_frames:
        asked = f"{wanted[0]} to {wanted[-1]}" if wanted else "none"
        raise IndexError(f"{video.path} has frames 0 to {video.num_frames - 1}; asked for {asked}.")
    left = video.num_frames - video.num_missing
    if wanted[-1] >= left:
        cut = f"its header promises {video.num_frames} frames, but only {left} are there"
        raise VideoError(message(video.path, f"{cut}, and frame {wanted[-1]} is asked for"))


@functools.lru_cache(maxsize=16384)  # whole epochs; a long video is read from end to end only once
def read_index(path: str, size_bytes: int, mtime_ns: int) -> Index:
    """Reads all packets; decodes one frame, or all where the packets don't say how many there are."""
    with open_container(path) as container:
        stream = stream_of(container)
        format_name = container.format.name
        # VP8 may hold frames that are not shown; AVI stores no times, and FFmpeg guesses wrong with B-frames.
        usable = stream.codec_context.name != "vp8"
        first = None
        last_dts = None
        all_pts = []
        keys = []
        num_cut = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                continue
            if first is None:
                first = next(decoded([packet]), None)
            if packet.size == 0:
                continue
            last_dts = packet.dts if packet.dts is not None else last_dts
            num_cut += packet.is_discard
            if packet.is_discard and not packet.is_keyframe:
                continue
            usable = usable and packet.pts is not None
            if "avi" in format_name and (packet.pts != packet.dts or packet.size < _SMALL_PACKET_BYTES):
                usable = False
            if packet.is_keyframe and format_name != "mpeg":  # after a seek these get wrong times
                keys.append(packet.pts)
            if not packet.is_discard:
                all_pts.append(packet.pts)
        if first is None or not all_pts:
            raise VideoError(message(path, "no frame of it decodes"))
        usable = usable and len(set(all_pts)) == len(all_pts)
        if usable and keys and min(all_pts) < min(keys):
            shown = _shown_before(path, min(keys))
            all_pts = [pts for pts in all_pts if pts >= min(keys) or pts in shown]
        num_missing = 0
        if "mov" in format_name and usable and _is_cut_off(stream, all_pts):
            # Of frames shown later than the last packet's turn, some before them may be lost.
            all_pts = [pts for pts in all_pts if pts <= last_dts] or all_pts[:1]
            num_missing = stream.frames - num_cut - len(all_pts)
        common: dict[str, Any] = {
            "fps": average_fps(stream, all_pts if usable else []),
            "height": first.height,
            "width": _square(path, first.width, stream.sample_aspect_ratio),
            "orientation": orientation_of(_display_matrix(first)),
            "num_missing": num_missing,
            "tick_seconds": float(stream.time_base),
        }
    if usable:
        pts = _compact(sorted(all_pts))
        return Index(num_frames=len(pts) + num_missing, pts=pts, keys=array("q", sorted(keys)), **common)
    with open_container(path) as container:
        num_frames = sum(1 for _ in decoded(container.demux(stream_of(container))))
    return Index(num_frames=num_frames, pts=None, keys=(), **common)


def _shown_before(path: str, key_pts: int) -> set[int]:
    """Times of the frames that decode before a first key frame: a recording may begin between two of them."""
    shown = set()
    with open_container(path) as container:
        for frame in decoded(container.demux(stream_of(container))):
            if frame.pts >= key_pts:
                break
            if not frame.is_corrupt:
                shown.add(frame.pts)
    return shown


def _display_matrix(frame: Any) -> bytes | None:
    return next((bytes(data) for data in frame.side_data if data.type == SideDataType.DISPLAYMATRIX), None)


def _is_cut_off(stream: Any, all_pts: list[int]) -> bool:
    """True for an MP4 cut off by a broken download: its header has more frames, and more time, than the file.
    More frames alone are no sign: those that an edit list cuts away are counted there too."""
    if not stream.duration or stream.frames <= len(all_pts):
        return False
    frame_time = (max(all_pts) - min(all_pts)) / max(1, len(all_pts) - 1)
    return (stream.start_time or 0) + stream.duration - max(all_pts) > 2 * frame_time


def average_fps(stream: Any, all_pts: list[int]) -> float | None:
    """Frames a second on average: from the frames' own times where there are any, as headers are often wrong."""
    if len(all_pts) > 1:
        return (len(all_pts) - 1) / float((max(all_pts) - min(all_pts)) * stream.time_base)
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def _square(path: str, width: int, pixel_aspect: Any) -> int:
    """Width at which pixels are as wide as high; `pixel_aspect` is None or 0 where the file says nothing."""
    aspect = float(pixel_aspect or 1)
    if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        raise VideoError(message(path, f"its pixels are said to be {aspect:g} times as wide as high"))
    return max(1, round(width * aspect))


def _compact(values: list[int]) -> Sequence[int]:
    """Sorted integers as a `range`, which takes no memory, if they are evenly spaced; or else as an array."""
    if len(values) > 1:
        even = range(values[0], values[-1] + 1, values[1] - values[0])
        if len(even) == len(values) and all(a == b for a, b in zip(even, values, strict=True)):
            return even
    return array("q", values)


def open_container(path: str) -> Any:
    """Opens a file with at least one stream of video. Raises VideoError without one; PyAV's errors are left to
    `video_errors`."""
    # "file:" since a name such as "12:30.mp4" would be an address. Metadata may be in any encoding, and one clip of
    # HMDB51 is not UTF-8.
    container = av.open(f"file:{path}", metadata_errors="ignore")
    try:
        stream = stream_of(container)
        if stream is None or container.format.name.endswith("_pipe"):
            found = "a picture" if container.streams.video else "no video stream"
            raise VideoError(message(path, f"it holds {found}"))
        if stream.codec_context is None:
            raise VideoError(message(path, "there is no decoder for its codec"))
        if stream.width * stream.height > MAX_PIXELS:
            raise VideoError(message(path, f"its frames are said to have {stream.width} × {stream.height} pixels"))
    except VideoError:
        container.close()
        raise
    stream.codec_context.thread_count = 1  # the workers of the loader are the parallelism
    return container


def stream_of(container: Any) -> Any:
    """Video stream that is decoded: the first that is no cover picture; None without one."""
    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def decoded(packets: Any, wanted_pts: Collection[int] | None = None) -> Iterator[Any]:
    """Decodes frames in the order shown; those at other times than `wanted_pts` are left out if no frame needs them."""
    for packet in packets:
        # An empty packet with a time is a frame the camera dropped; without one it ends the stream.
        if packet.is_corrupt or (packet.size == 0 and packet.pts is not None):
            continue
        context = packet.stream.codec_context
        if wanted_pts is not None and context.name in _SKIPPING_CODECS:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted_pts else "NONREF"
        yield from packet.decode()


def message(path: str, reason: str) -> str:
    """Message of a VideoError."""
    return f"{path} can't be decoded: {reason}; it may be damaged or no video. Re-encode or remove it."


@contextmanager
def video_errors(path: str) -> Iterator[None]:
    """Turns whatever is raised while a file is read into a VideoError: libraries raise errors of many kinds."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise VideoError(message(path, reason_of(error))) from error


def reason_of(error: Exception) -> str:
    """Reason why a file can't be read, in the system's or FFmpeg's words, or else with the error's name."""
    if isinstance(error, OSError | av.FFmpegError):
        return error.strerror or first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"
