"""Frames of video files: every codec and container against a plain decoding from the start."""

import gc
import importlib
import os
import random
import struct
import sys
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from helpers import write_video
from PIL import Image
from torchvision.transforms.v2 import functional

from mam2.config import UserError
from mam2.data.catalog import VIDEO_SUFFIXES
from mam2.data.video import index, pyav
from mam2.data.video.index import VideoError
from mam2.data.video.open import open_video
from mam2.data.video.pyav import PyAVVideo

# B-frames, long, short and open groups of pictures, containers with and without times
FORMATS = {
    "b_frames.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "long_group.mp4": ("libx264", {"bf": "2", "g": "250"}),
    "open_groups.mkv": ("libx264", {"bf": "2", "x264-params": "open-gop=1:keyint=10"}),
    "all_key_frames.mp4": ("libx264", {"g": "1"}),
    "h265.mp4": ("libx265", {"x265-params": "log-level=none:open-gop=1:keyint=10"}),
    "vp9.webm": ("libvpx-vp9", {"g": "15", "lag-in-frames": "10"}),
    "vp8.webm": ("libvpx", {"g": "15", "lag-in-frames": "10"}),
    "plain.avi": ("mpeg4", {"g": "12"}),
    "b_frames.avi": ("mpeg4", {"bf": "2", "g": "12"}),
    "h264.avi": ("libx264", {"bf": "2", "g": "12"}),
    "stream.ts": ("libx264", {"bf": "2", "g": "12"}),
    "program.mpg": ("mpeg2video", {"bf": "2", "g": "12"}),
    "windows.wmv": ("mpeg4", {"g": "12"}),
    "pyramid.mp4": ("libx264", {"bf": "7", "b-pyramid": "normal", "refs": "6", "g": "24"}),
    "open_groups.ts": ("libx264", {"bf": "2", "x264-params": "open-gop=1:keyint=10"}),
    "mpeg2_open.mkv": ("mpeg2video", {"bf": "2", "g": "12"}),
    "mpeg4_b_frames.mp4": ("mpeg4", {"bf": "2", "g": "12"}),
    "divx3.avi": ("msmpeg4", {"g": "12"}),
    "motion.avi": ("mjpeg", {}),
    "av1.mkv": ("libsvtav1", {"preset": "12", "g": "15"}),
}


def plain_decode(path: Path) -> torch.Tensor:
    with av.open(str(path), metadata_errors="ignore") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


class Videos:
    """Makes each video when a test first wants it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            encoder, options = FORMATS[name]
            write_video(path, encoder=encoder, options=options, size=(64, 64) if "av1" in encoder else (48, 64))
        return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return Videos(tmp_path_factory.mktemp("videos"))


@pytest.mark.parametrize("name", FORMATS)
def test_any_frames_equal_a_plain_decode(videos, name):
    every = plain_decode(videos[name])
    levels = every[:, 0, 8:-20, 8:].float().mean((1, 2))
    assert (levels - torch.arange(20, 220, 5)).abs().max() < 2.5  # the frames tell their number
    rng = random.Random(0)
    with PyAVVideo(videos[name]) as video:
        assert (video.num_frames, video.num_missing) == (40, 0)
        assert (video.height, video.width) == every.shape[2:] == (48 if name != "av1.mkv" else 64, 64)
        assert video.fps == pytest.approx(30, abs=0.05)
        assert torch.equal(video.frames(range(40)), every)
        for _ in range(12):
            indices = [rng.randrange(40) for _ in range(rng.randrange(1, 8))]
            assert torch.equal(video.frames(indices), every[indices])
        for start in range(0, 40, 3):
            indices = list(range(start, 40, 2))
            assert torch.equal(video.frames(indices), every[indices])


def test_order_and_repeats_are_kept(videos):
    with PyAVVideo(videos["b_frames.mp4"]) as video:
        clip = video.frames([30, 3, 3, 0, 30])
    assert clip.dtype == torch.uint8
    assert clip.shape == (5, 3, 48, 64)
    assert [round((frame[0, 20, 20].item() - 20) / 5) for frame in clip] == [30, 3, 3, 0, 30]


def counted_frames(monkeypatch) -> list:
    """Frames that PyAV decodes from now on."""
    decoded = []
    plain = pyav.decoded

    def counting(packets, wanted_pts):
        for frame in plain(packets, wanted_pts):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(pyav, "decoded", counting)
    return decoded


@pytest.mark.parametrize("name", ["b_frames.mp4", "plain.avi", "vp9.webm"])
def test_decoding_starts_at_the_nearest_key_frame_and_stops_early(videos, name, monkeypatch):
    with PyAVVideo(videos[name]) as video:
        decoded = counted_frames(monkeypatch)
        video.frames([33])
        assert 1 <= len(decoded) <= 15
        decoded.clear()
        video.frames([1])
        assert len(decoded) == 2
        decoded.clear()
        video.frames([1, 38])  # two places: the frames between them are not decoded
        assert len(decoded) <= 17


def test_a_group_is_entered_again_only_if_that_is_shorter(videos):
    with PyAVVideo(videos["all_key_frames.mp4"]) as video:
        assert video._runs([0, 4, 8, 30]) == [[0, 4, 8], [30]]
    with PyAVVideo(videos["long_group.mp4"]) as video:
        assert video._runs([0, 4, 39]) == [[0, 4, 39]]


def test_a_seek_that_leads_astray_is_made_good(videos, monkeypatch):
    every = plain_decode(videos["b_frames.mp4"])
    with PyAVVideo(videos["b_frames.mp4"]) as video:
        astray = video._packets_from
        monkeypatch.setattr(video, "_packets_from", lambda key, start: astray(video._index.pts[39], 10**9))
        assert torch.equal(video.frames([13, 15, 17]), every[[13, 15, 17]])


def test_frames_outside_the_video(videos):
    with PyAVVideo(videos["plain.avi"]) as video:
        for indices in ([40], [-1], []):
            with pytest.raises(IndexError, match="has frames 0 to 39"):
                video.frames(indices)


def test_rotation_stored_in_the_file_is_applied(tmp_path):
    # The mark is in the upper left; a quarter turn clockwise brings it to the upper right.
    for rotation, corner in ((-90, (0, -1)), (90, (-1, 0)), (180, (-1, -1))):
        with PyAVVideo(write_video(tmp_path / f"{rotation}.mp4", num_frames=2, rotation=rotation)) as video:
            frame = video.frames([0])[0, 0]
            assert tuple(frame.shape) == (video.height, video.width)
            assert (video.height, video.width) == ((48, 64) if rotation == 180 else (64, 48))
            assert frame[corner] > 240
            assert (frame > 230).sum() <= 40


def with_matrix(path: Path, *, a: float, b: float, c: float, d: float) -> Path:
    """An MP4's display matrix replaced: a player shows the pixel (x, y) at (a x + c y, b x + d y)."""

    def matrix(*values: float) -> bytes:
        a, b, c, d = (round(value * 2**16) for value in values)
        return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)

    whole = path.read_bytes()
    place = whole.index(matrix(1, 0, 0, 1), whole.index(b"tkhd"))
    path.write_bytes(whole[:place] + matrix(a, b, c, d) + whole[place + 36 :])
    return path


@pytest.mark.parametrize(("a", "d"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("exchanged", [False, True])
def test_frames_are_turned_and_mirrored_as_players_show_them(tmp_path, a, d, exchanged):
    plain = open_video(write_video(tmp_path / "plain.mp4", num_frames=2)).frames([1])[0].numpy()
    matrix = {"a": 0, "b": a, "c": d, "d": 0} if exchanged else {"a": a, "b": 0, "c": 0, "d": d}
    video = open_video(with_matrix(write_video(tmp_path / "turned.mp4", num_frames=2), **matrix))
    frame = video.frames([1])[0].numpy()
    y, x = np.mgrid[: plain.shape[1], : plain.shape[2]]
    shown_x, shown_y = matrix["a"] * x + matrix["c"] * y, matrix["b"] * x + matrix["d"] * y
    expected = np.zeros((3, video.height, video.width), np.uint8)
    expected[:, shown_y - shown_y.min(), shown_x - shown_x.min()] = plain
    assert (frame == expected).all()
    assert (next(iter(video.each())).numpy().shape) == expected.shape


@pytest.mark.parametrize(
    "matrix",
    [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0.7, 0.7, -0.7, 0.7), (0.999, 0.03, -0.03, 0.999)],
)
def test_a_matrix_that_is_no_turn_is_ignored(tmp_path, matrix):
    plain = open_video(write_video(tmp_path / "plain.mp4", num_frames=2)).frames([1])
    a, b, c, d = matrix
    path = with_matrix(write_video(tmp_path / "odd.mp4", num_frames=2), a=a, b=b, c=c, d=d)
    assert torch.equal(open_video(path).frames([1]), plain)


def remuxed(source: Path, path: Path, *, keep) -> Path:
    """A copy of a video's packets, without decoding, of those that `keep(number)` keeps."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size and keep(number):
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_other_containers_keep_the_turn(tmp_path, suffix):
    turned = write_video(tmp_path / "turned.mp4", num_frames=2, rotation=90)
    path = remuxed(turned, tmp_path / f"copy{suffix}", keep=lambda number: True)
    assert torch.equal(open_video(path).frames([0, 1]), open_video(turned).frames([0, 1]))


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_frames_before_the_first_key_frame_are_none(tmp_path, name, b_frames):
    options = {"g": "12", "keyint_min": "12", "bf": b_frames, "x264-params": "open-gop=1"}
    whole = write_video(tmp_path / f"whole{name}", num_frames=40, options=options)
    cut = remuxed(whole, tmp_path / name, keep=lambda number: number > 3)
    video, plain = open_video(cut), plain_decode(cut)
    assert 24 <= video.num_frames == len(plain) < 36
    assert torch.equal(video.frames(range(video.num_frames)), plain)
    assert torch.equal(torch.stack(list(video.each())), plain)
    assert torch.equal(video.frames([0, video.num_frames - 1]), plain[[0, -1]])


def write_sound(path: Path, *, cover: bool, film: bool) -> Path:
    """A second of silence, with a cover picture or a film beside it."""
    with av.open(str(path), "w") as container:
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        if film:
            moving = container.add_stream("libx264", rate=10)
            moving.width, moving.height, moving.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=8000, layout="mono")
        if cover:
            page = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 200, np.uint8), format="rgb24")
            container.mux(picture.encode(page.reformat(format="yuvj420p")))
        for _ in range(8):
            if film:
                container.mux(
                    moving.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))
                )
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            container.mux(sound.encode(silence))
        for stream in container.streams:
            container.mux(stream.encode())
    return path


def test_a_cover_picture_is_no_video(tmp_path):
    with pytest.raises(VideoError, match="holds no video stream"):
        open_video(write_sound(tmp_path / "sound.mp4", cover=False, film=False))
    with pytest.raises(VideoError, match="holds a picture"):
        open_video(write_sound(tmp_path / "song.mp4", cover=True, film=False))
    video = open_video(write_sound(tmp_path / "film.mp4", cover=True, film=True))
    assert (video.num_frames, video.height, video.width) == (8, 32, 32)
    Image.new("RGB", (64, 48)).save(tmp_path / "still.mp4", format="PNG")
    with pytest.raises(VideoError, match="holds a picture"):
        open_video(tmp_path / "still.mp4")


def test_whatever_the_decoder_raises_is_the_videos_fault(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xvc1"))
    with pytest.raises(VideoError, match=r"a\.mp4 can't be decoded: there is no decoder"):
        open_video(path)
    good = write_video(tmp_path / "b.mp4", num_frames=3)
    for error in (MemoryError(), AttributeError("no such thing\n second line"), KeyError(3), RecursionError("deep")):

        def fail(*arguments, error=error):
            raise error

        monkeypatch.setattr(index, "stream_of", fail)
        with pytest.raises(VideoError, match=rf"b\.mp4 can't be decoded: {type(error).__name__}") as caught:
            open_video(good)
        assert "\n" not in str(caught.value)


def test_a_frame_too_large_for_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", num_frames=3)
    monkeypatch.setattr(index, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(VideoError, match="said to have 64 × 48 pixels"):
        open_video(path)


@pytest.mark.parametrize(
    "name", [b"12:30 a.mp4", b"http:a.mp4", b"caf\xe9.mp4", b"a\x1b[2J.mp4", b"%03d.mp4", b" a .mp4"]
)
def test_any_name_of_a_file_is_one(tmp_path, name, monkeypatch):
    write_video(tmp_path / "a.mp4", num_frames=3).rename(tmp_path / os.fsdecode(name))
    monkeypatch.chdir(tmp_path)
    assert open_video(os.fsdecode(name)).num_frames == 3


@pytest.mark.parametrize(
    ("name", "encoder", "shift", "container_options"),
    [
        ("early.mp4", "libx264", -3000, {"avoid_negative_ts": "disabled", "use_editlist": "0"}),
        ("late.mp4", "libx264", 30000, {}),
        ("late.mkv", "libx264", 5000, {}),
        ("late.webm", "libvpx-vp9", 5000, {}),
        ("late.ts", "mpeg2video", 900_000, {}),
        ("turn_over.ts", "libx264", 2**33 - 90_000, {}),  # the clock starts anew within the video
    ],
)
def test_times_may_start_anywhere(tmp_path, name, encoder, shift, container_options):
    path = write_video(
        tmp_path / name,
        encoder=encoder,
        options={"g": "12"} if "vpx" in encoder else {"g": "12", "bf": "2"},
        shift=shift,
        container_options=container_options,
    )
    every = plain_decode(path)
    rng = random.Random(1)
    with PyAVVideo(path) as video:
        assert video.num_frames == len(every) == 40
        assert video.fps == pytest.approx(30, abs=0.05)
        for _ in range(12):
            indices = rng.sample(range(40), 4)
            assert torch.equal(video.frames(indices), every[indices])


@pytest.mark.parametrize(("name", "encoder"), [("uneven.mp4", "libx264"), ("uneven.mkv", "libx264")])
def test_variable_frame_rate(tmp_path, name, encoder):
    rng = random.Random(2)
    ticks = [0]
    while len(ticks) < 40:
        ticks.append(ticks[-1] + rng.choice([8, 16, 33, 40, 400]))
    path = write_video(tmp_path / name, encoder=encoder, options={"g": "12", "bf": "2"}, ticks=ticks)
    every = plain_decode(path)
    levels = every[:, 0, 8:-20, 8:].float().mean((1, 2))
    assert (levels - torch.arange(20, 220, 5)).abs().max() < 2.5
    with PyAVVideo(path) as video:
        assert video.num_frames == 40
        assert video.fps == pytest.approx(39 / (ticks[-1] / 1000), rel=0.001)
        for _ in range(12):
            indices = rng.sample(range(40), 4)
            assert torch.equal(video.frames(indices), every[indices])


def test_the_frame_rate_is_none_where_nothing_tells_it():
    silent = SimpleNamespace(average_rate=None, guessed_rate=None, time_base=Fraction(1, 90000))
    assert index.average_fps(silent, [7]) is None
    assert index.average_fps(silent, [0, 3000, 9000]) == 20
    assert index.average_fps(SimpleNamespace(average_rate=None, guessed_rate=Fraction(30000, 1001)), []) == 30000 / 1001


@pytest.mark.parametrize(
    ("name", "encoder", "pixels"),
    [
        ("grey.mkv", "ffv1", "gray"),
        ("ten_bits.mp4", "libx265", "yuv420p10le"),
        ("ten_bits.mkv", "libx264", "yuv420p10le"),
        ("ten_bits.webm", "libvpx-vp9", "yuv420p10le"),
        ("ten_bits.av1.mkv", "libsvtav1", "yuv420p10le"),
        ("transparent.mkv", "ffv1", "bgra"),
        ("odd.avi", "mpeg4", "yuv420p"),
        ("odd.webm", "libvpx-vp9", "yuv420p"),
        ("odd.mp4", "libx264", "yuv444p"),
    ],
)
def test_pixel_formats_and_odd_sizes(tmp_path, name, encoder, pixels):
    size = (49, 65) if "odd" in name else (64, 64)
    options = {"profile": "2"} if encoder == "libvpx-vp9" and "10" in pixels else {}
    try:
        path = write_video(tmp_path / name, encoder=encoder, options=options, pixels=pixels, size=size, num_frames=20)
    except av.ArgumentError as error:
        pytest.skip(f"the {encoder} of this PyAV can't write {pixels}: {error.strerror}")
    with PyAVVideo(path) as video:
        assert (video.num_frames, video.height, video.width) == (20, *size)
        clip = video.frames(range(20))
    assert torch.equal(clip, plain_decode(path))
    assert (clip[:, :, 8:-20, 8:].float().mean((1, 2, 3)) - torch.arange(20, 120, 5)).abs().max() < 3


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(4, 3), 85), (Fraction(8, 9), 57), (Fraction(1), 64)])
def test_pixels_are_made_square(tmp_path, aspect, width):
    path = write_video(tmp_path / "wide.mp4", pixel_aspect=aspect, num_frames=8)
    expected = functional.resize(plain_decode(path), [48, width], antialias=True)
    with PyAVVideo(path) as video:
        assert (video.height, video.width) == (48, width)
        clip = video.frames([0, 5])
    assert clip.shape == (2, 3, 48, width)
    assert (clip.float() - expected[[0, 5]].float())[..., 8:30, 8:].abs().max() <= 2
    with PyAVVideo(write_video(tmp_path / "turned.mp4", pixel_aspect=aspect, num_frames=2, rotation=90)) as video:
        assert video.frames([1]).shape[2:] == (video.height, video.width) == (width, 48)


def test_pixels_of_a_damaged_header_are_refused(tmp_path):
    with pytest.raises(VideoError, match=r"its pixels are said to be 20 times as wide as high"):
        PyAVVideo(write_video(tmp_path / "bar.mp4", pixel_aspect=Fraction(20), num_frames=2))


def test_frames_that_an_edit_list_cuts_away_are_not_counted(tmp_path):
    path = write_video(tmp_path / "edited.mp4", options={"bf": "2", "g": "12"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    struct.pack_into(">Ii", data, entry, 600, 1024 + 512 * 17)  # 0.6 s, from frame 17
    path.write_bytes(data)
    every = plain_decode(path)
    with PyAVVideo(path) as video:
        assert video.num_frames == len(every) == 18
        assert torch.equal(video.frames([0, 5, 17]), every[[0, 5, 17]])
        assert round((every[0, 0, 20, 20].item() - 20) / 5) == 17


def test_packed_b_frames_of_divx(real_data):
    """HMDB51's files hold packets without a frame: as many as the header counts, one more than there are."""
    path = real_data / "clips" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 73
    with PyAVVideo(path) as video:
        assert video.num_frames == 72
        assert torch.equal(video.frames([70, 71]), plain_decode(path)[[70, 71]])


def test_official_clips_decode(real_data):
    paths = sorted((real_data / "clips").iterdir())
    assert len(paths) == 10
    for path in paths:
        assert path.suffix in VIDEO_SUFFIXES
        every = plain_decode(path)
        with PyAVVideo(path) as video:
            assert video.num_frames == len(every)
            indices = list(range(len(every) // 2, len(every), 7))
            assert torch.equal(video.frames(indices), every[indices])


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3", "b-pyramid": "normal", "g": "24"}])
def test_what_a_broken_download_has_left_decodes(tmp_path, options):
    path = write_video(tmp_path / "cut.mp4", options=options, container_options={"movflags": "faststart"})
    data, every = path.read_bytes(), plain_decode(path)
    for share in (0.35, 0.5, 0.6, 0.75, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with PyAVVideo(path) as video:
            left = video.num_frames - video.num_missing
            assert video.num_frames == 40
            assert 40 * share - 10 < left < 40
            assert video.fps == pytest.approx(30)
            assert torch.equal(video.frames(range(left)), every[:left])
            assert torch.equal(video.frames([left - 1]), every[left - 1 : left])
            cut = (
                rf"cut\.mp4 can't be decoded: its header promises 40 frames, but only {left} are there, and frame 39 is"
            )
            with pytest.raises(VideoError, match=cut):
                video.frames([0, 39])
            with pytest.raises(VideoError, match="but only"):
                next(video.each())


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_groups.mkv", "vp9.webm", "plain.avi", "stream.ts"])
def test_a_tail_that_is_lost_or_noise_never_surprises(videos, tmp_path, name):
    """At any place, a file either can't be opened or gives frames as they were; at the tail an error."""
    data, every = videos[name].read_bytes(), plain_decode(videos[name])
    rng = random.Random(0)
    for share in (0.3, 0.5, 0.7, 0.85, 0.97):
        for tail in (b"", rng.randbytes(int(len(data) * (1 - share)))):
            path = tmp_path / name
            path.write_bytes(data[: int(len(data) * share)] + tail)
            try:
                with PyAVVideo(path) as video:
                    sound = int(40 * share) - 10
                    assert video.num_frames >= sound
                    for i in range(0, sound, 3):
                        assert torch.equal(video.frames([i])[0], every[i])
                    if video.num_frames > sound + 3:
                        video.frames([video.num_frames - 3, video.num_frames - 1])
            except VideoError:
                pass


def test_a_truncated_avi_gives_the_frames_it_has(tmp_path):
    path = write_video(tmp_path / "cut.avi", encoder="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with PyAVVideo(path) as video:
        assert 5 < video.num_frames < 40
        assert len(video.frames(range(video.num_frames))) == video.num_frames


def test_damage_in_the_middle_is_an_error_only_where_it_is(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", options={"g": "10"})
    every = plain_decode(path)
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    data = bytearray(path.read_bytes())
    position, size = places[15]
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    with PyAVVideo(path) as video:
        assert torch.equal(video.frames([1, 5, 30]), every[[1, 5, 30]])
        with pytest.raises(VideoError, match=r"damaged\.mp4 can't be decoded: .*Re-encode or remove it\."):
            video.frames(range(40))


@pytest.mark.parametrize(("name", "encoder"), [("half.mp4", "libx264"), ("half.avi", "mpeg4")])
def test_pictures_patched_up_by_the_decoder_are_an_error(tmp_path, name, encoder):
    path = write_video(tmp_path / name, encoder=encoder, options={"g": "10", "bf": "0"})
    every = plain_decode(path)
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    data = bytearray(path.read_bytes())
    position, size = places[14]
    data[position + size // 2 : position + size] = bytes(size - size // 2)
    path.write_bytes(data)
    assert len(plain_decode(path)) == 40  # FFmpeg itself hides the damage
    with PyAVVideo(path) as video:
        for indices in ([0, 9, 10], [20, 25, 39], [1, 38]):
            assert torch.equal(video.frames(indices), every[indices])
        for indices in ([14], [10, 14, 30], [19]):
            with pytest.raises(VideoError, match=rf"frame {14 if 14 in indices else 19} of 40 does not decode"):
                video.frames(indices)


def test_what_is_no_video_is_refused(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("no video at all\n" * 100)
    empty = tmp_path / "empty.avi"
    empty.touch()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for path, reason in (
        (text, "Invalid data"),
        (empty, "Invalid|End of"),
        (sound, "it holds no video stream"),
    ):
        with pytest.raises(VideoError, match=rf"{path} can't be decoded: ({reason}).*Re-encode or remove it\."):
            PyAVVideo(path)
    with pytest.raises(UserError, match=r"nowhere\.mp4 can't be decoded: No such file"):
        PyAVVideo(tmp_path / "nowhere.mp4")


def test_a_replaced_file_is_counted_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=12)
    with PyAVVideo(path) as video:
        assert video.num_frames == 12
    write_video(path, num_frames=20)
    with PyAVVideo(path) as video:
        assert video.num_frames == 20


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
def test_a_segment_is_a_video_of_its_own(tmp_path, name):
    path = write_video(tmp_path / name, num_frames=40)  # 30 frames a second
    whole = plain_decode(path)
    for fragment, first, last in (
        ("#t=0,1", 0, 30),
        ("#t=0.5,1", 15, 30),
        ("#t=1", 30, 40),
        ("#t=,0.1", 0, 3),
        ("#t=0.51,0.52", 16, 16),
        ("#t=0.5,99", 15, 40),
        ("#t=2,3", 40, 40),
    ):
        if first == last:
            with pytest.raises(
                VideoError, match=rf"{name}{fragment} holds no frame: its video has 40 frames, 1\.3 sec"
            ):
                open_video(f"{path}{fragment}")
            continue
        with open_video(f"{path}{fragment}") as segment:
            assert segment.num_frames == last - first
            assert torch.equal(segment.frames([0, segment.num_frames - 1]), whole[[first, last - 1]])
            assert torch.equal(torch.stack(list(segment.each())), whole[first:last])
            with pytest.raises(IndexError):
                segment.frames([segment.num_frames])
    odd = tmp_path / f"{name}#t=0,1"
    path.rename(odd)
    assert open_video(odd).num_frames == 40, "a file that is called so"


@pytest.mark.parametrize("rotation", [0, 90])
def test_large_frames_are_scaled_while_they_are_decoded(tmp_path, rotation):
    path = write_video(tmp_path / "a.mp4", num_frames=6, size=(144, 240), rotation=rotation)
    whole = open_video(path).frames(range(6))
    with open_video(path, short_side=48) as video:
        small = video.frames([4, 1, 1])
        assert (video.height, video.width) == ((48, 80) if rotation == 0 else (80, 48)) == tuple(small.shape[2:])
        expected = functional.resize(whole[[4, 1, 1]], [video.height, video.width], antialias=True)
        assert (small.float() - expected.float()).abs().mean() < 3
        assert torch.equal(torch.stack(list(video.each()))[[4, 1, 1]], small)
    for short_side in (0, 144, 500):
        assert torch.equal(open_video(path, short_side=short_side).frames(range(6)), whole)


def test_one_frame_is_a_video(tmp_path):
    for name, encoder in (("one.mp4", "libx264"), ("one.avi", "mpeg4")):
        with PyAVVideo(write_video(tmp_path / name, encoder=encoder, num_frames=1)) as video:
            assert video.num_frames == 1
            assert video.frames([0, 0]).shape == (2, 3, 48, 64)


def test_few_frames_of_a_long_video_are_decoded(tmp_path, monkeypatch):
    """16 frames at stride 4 of 10 s: they span 61 frames, of which those that none depends on are left out too."""
    options = {"bf": "3", "b-pyramid": "normal", "g": "48", "sc_threshold": "0"}
    path = write_video(tmp_path / "long.mp4", options=options, num_frames=300)
    with PyAVVideo(path) as video:
        assert video.num_frames == 300
        every = video.frames(range(300))
        decoded = counted_frames(monkeypatch)
        for start in (0, 47, 48, 100, 170, 239):
            decoded.clear()
            indices = list(range(start, start + 61, 4))
            assert torch.equal(video.frames(indices), every[indices])
            assert 16 <= len(decoded) <= (61 + start % 48) * 0.85


def test_frames_one_after_another(videos, tmp_path):
    for path in (videos["b_frames.mp4"], write_video(tmp_path / "turned.mp4", num_frames=9, rotation=90)):
        with PyAVVideo(path) as video:
            assert torch.equal(torch.stack(list(video.each())), video.frames(range(video.num_frames)))


def held() -> tuple[int, int, int]:
    """Open files, threads, and bytes of memory of this process."""
    gc.collect()
    tasks = len(os.listdir("/proc/self/task"))
    assert threading.active_count() <= tasks
    return len(os.listdir("/proc/self/fd")), tasks, int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def open_often(videos: Videos, tmp_path: Path, times: int) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(videos["long_group.mp4"].read_bytes()[:3000])
    names = ["b_frames.mp4", "plain.avi", "vp9.webm", "h265.mp4", "av1.mkv"]
    for i in range(times):
        with PyAVVideo(videos[names[i % len(names)]]) as video:
            video.frames([5, 30])
        if i % 5 == 0:
            PyAVVideo(videos["b_frames.mp4"]).frames([3])  # never closed
            with pytest.raises(VideoError):
                PyAVVideo(broken)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("times", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_nothing_is_left_behind(videos, tmp_path, times):
    open_often(videos, tmp_path, 100)  # code and tables that stay are loaded
    files, threads, memory = held()
    open_often(videos, tmp_path, times)
    files_after, threads_after, memory_after = held()
    assert (files_after, threads_after) == (files, threads)
    assert memory_after - memory < 8 * 2**20  # measured: 1 MiB after 10,000; the frames of one open are 0.02


def test_files_are_closed(videos):
    def open_files():
        return sum(1 for link in Path("/proc/self/fd").iterdir() if link.exists() and "b_frames" in str(link.resolve()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    with PyAVVideo(videos["b_frames.mp4"]) as video:
        video.frames([3, 30])
        assert open_files() == 1
    assert open_files() == 0


def torchcodec_or_skip() -> None:
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec can't be loaded: {str(error).splitlines()[0]}")


TORCHCODEC_ERRS = ("b_frames.avi", "h264.avi", "vp8.webm", "program.mpg", "stream.ts", "open_groups.ts")


@pytest.mark.parametrize("name", FORMATS)
def test_torchcodec_gives_the_same_frames_or_refuses(videos, name):
    torchcodec_or_skip()
    every = plain_decode(videos[name])
    rng = random.Random(3)
    choices = [[rng.randrange(40) for _ in range(6)] for _ in range(8)]
    if name in TORCHCODEC_ERRS:
        with pytest.raises(VideoError, match="Use the backend pyav for this file"):
            list(map(open_video(videos[name], backend="torchcodec").frames, choices))
        return
    with open_video(videos[name], backend="torchcodec") as video:
        for indices in choices:
            clip = video.frames(indices)
            assert clip.shape == (6, 3, *every.shape[2:])
            assert (clip.float() - every[indices].float()).abs().max() <= 3
        assert (torch.stack(list(video.each())).float() - every.float()).abs().max() <= 3


def test_torchcodec_turns_and_widens(tmp_path):
    torchcodec_or_skip()
    for rotation in (0, 90, 180, 270):
        path = write_video(tmp_path / "turned.mp4", rotation=rotation, pixel_aspect=Fraction(4, 3), num_frames=4)
        with PyAVVideo(path) as plain, open_video(path, backend="torchcodec") as other:
            clip = other.frames([2, 0])
            assert clip.shape[2:] == (other.height, other.width) == (plain.height, plain.width)
            assert (clip.float() - plain.frames([2, 0]).float()).abs().mean() < 3


def test_a_backend_that_is_not_there(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match=r"The backend torchcodec can't be loaded: .* or use the backend pyav\."):
        open_video(videos["plain.avi"], backend="torchcodec")
    with pytest.raises(UserError, match=r"The backend of a video is 'decord'; accepted: pyav, torchcodec\."):
        open_video(videos["plain.avi"], backend="decord")
