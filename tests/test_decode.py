import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mam2.config import UserError
from mam2.data import decode
from mam2.data.decode import VIDEO_SUFFIXES, Video, VideoError

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
}


def write_video(
    path: Path,
    *,
    encoder: str = "libx264",
    options: dict[str, str] | None = None,
    num_frames: int = 40,
    size: tuple[int, int] = (48, 64),
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Frame i has the grey level 20 + 5 i, but for noise at the bottom and a white upper left."""
    height, width = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(encoder, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            grey = np.full((height, width, 3), 20 + 5 * i, np.uint8)
            grey[:4, :4] = 255
            grey[-16:] = np.random.default_rng(i).integers(0, 200, (16, width, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def plain_decode(path: Path) -> torch.Tensor:
    with av.open(str(path), metadata_errors="ignore") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.video[0])]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {
        name: write_video(folder / name, encoder=encoder, options=options)
        for name, (encoder, options) in FORMATS.items()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_any_frames_equal_a_plain_decode(videos, name):
    every = plain_decode(videos[name])
    levels = every[:, 0, 8:-20, 8:].float().mean((1, 2))
    assert (levels - torch.arange(20, 220, 5)).abs().max() < 2.5  # the frames tell their number
    rng = random.Random(0)
    with Video(videos[name]) as video:
        assert (video.num_frames, video.height, video.width) == (40, 48, 64)
        assert video.fps == pytest.approx(30, abs=0.5) or name == "windows.wmv"
        assert torch.equal(video.frames(range(40)), every)
        for _ in range(12):
            indices = [rng.randrange(40) for _ in range(rng.randrange(1, 8))]
            assert torch.equal(video.frames(indices), every[indices])
        for start in range(0, 40, 3):
            indices = list(range(start, 40, 2))
            assert torch.equal(video.frames(indices), every[indices])


def test_order_and_repeats_are_kept(videos):
    with Video(videos["b_frames.mp4"]) as video:
        clip = video.frames([30, 3, 3, 0, 30])
    assert clip.dtype == torch.uint8
    assert clip.shape == (5, 3, 48, 64)
    assert [round((frame[0, 20, 20].item() - 20) / 5) for frame in clip] == [30, 3, 3, 0, 30]


@pytest.mark.parametrize("name", ["b_frames.mp4", "plain.avi", "vp9.webm"])
def test_decoding_starts_at_the_nearest_key_frame_and_stops_early(videos, name, monkeypatch):
    decoded = []
    plain = decode._decoded

    def counting(packets):
        for frame in plain(packets):
            decoded.append(frame)
            yield frame

    with Video(videos[name]) as video:
        monkeypatch.setattr(decode, "_decoded", counting)
        video.frames([33])
        assert 1 <= len(decoded) <= 15
        decoded.clear()
        video.frames([1])
        assert len(decoded) == 2
        decoded.clear()
        video.frames([1, 38])  # two places: the frames between them are not decoded
        assert len(decoded) <= 17


def test_a_group_is_entered_again_only_if_that_is_shorter(videos):
    with Video(videos["all_key_frames.mp4"]) as video:
        assert video._runs([0, 4, 8, 30]) == [[0, 4, 8], [30]]
    with Video(videos["long_group.mp4"]) as video:
        assert video._runs([0, 4, 39]) == [[0, 4, 39]]


def test_a_seek_that_leads_astray_is_made_good(videos, monkeypatch):
    every = plain_decode(videos["b_frames.mp4"])
    with Video(videos["b_frames.mp4"]) as video:
        astray = video._packets_from
        monkeypatch.setattr(video, "_packets_from", lambda key, start: astray(video._index.pts[39], 10**9))
        assert torch.equal(video.frames([13, 15, 17]), every[[13, 15, 17]])


def test_frames_outside_the_video(videos):
    with Video(videos["plain.avi"]) as video:
        for indices in ([40], [-1], []):
            with pytest.raises(IndexError, match="has frames 0 to 39"):
                video.frames(indices)


def test_rotation_stored_in_the_file_is_applied(tmp_path):
    # The mark is in the upper left; a quarter turn clockwise brings it to the upper right.
    for rotation, corner in ((-90, (0, -1)), (90, (-1, 0)), (180, (-1, -1))):
        with Video(write_video(tmp_path / f"{rotation}.mp4", num_frames=2, rotation=rotation)) as video:
            frame = video.frames([0])[0, 0]
            assert tuple(frame.shape) == (video.height, video.width)
            assert (video.height, video.width) == ((48, 64) if rotation == 180 else (64, 48))
            assert frame[corner] > 240
            assert (frame > 230).sum() <= 40


def test_frames_that_an_edit_list_cuts_away_are_not_counted(tmp_path):
    path = write_video(tmp_path / "edited.mp4", options={"bf": "2", "g": "12"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    struct.pack_into(">Ii", data, entry, 600, 1024 + 512 * 17)  # 0.6 s, from frame 17
    path.write_bytes(data)
    every = plain_decode(path)
    with Video(path) as video:
        assert video.num_frames == len(every) == 18
        assert torch.equal(video.frames([0, 5, 17]), every[[0, 5, 17]])
        assert round((every[0, 0, 20, 20].item() - 20) / 5) == 17


def test_packed_b_frames_of_divx(real_data):
    """HMDB51's files hold packets without a frame: as many as the header counts, one more than there are."""
    path = real_data / "clips" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 73
    with Video(path) as video:
        assert video.num_frames == 72
        assert torch.equal(video.frames([70, 71]), plain_decode(path)[[70, 71]])


def test_official_clips_decode(real_data):
    paths = sorted((real_data / "clips").iterdir())
    assert len(paths) == 10
    for path in paths:
        assert path.suffix in VIDEO_SUFFIXES
        every = plain_decode(path)
        with Video(path) as video:
            assert video.num_frames == len(every)
            indices = list(range(len(every) // 2, len(every), 7))
            assert torch.equal(video.frames(indices), every[indices])


def test_a_truncated_file_is_refused_with_the_number_of_frames_left(tmp_path):
    path = write_video(tmp_path / "cut.mp4", container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(VideoError, match=r"cut\.mp4 can't be decoded: its header promises 40 frames, but only \d+ a"):
        Video(path)


def test_a_truncated_avi_gives_the_frames_it_has(tmp_path):
    path = write_video(tmp_path / "cut.avi", encoder="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with Video(path) as video:
        assert 5 < video.num_frames < 40
        assert len(video.frames(range(video.num_frames))) == video.num_frames


def test_damage_in_the_middle_is_an_error_only_where_it_is(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", options={"g": "10"})
    every = plain_decode(path)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    data = bytearray(path.read_bytes())
    position, size = packets[15]
    data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    with Video(path) as video:
        assert torch.equal(video.frames([1, 5, 30]), every[[1, 5, 30]])
        with pytest.raises(VideoError, match=r"damaged\.mp4 can't be decoded: .*Re-encode or remove it\."):
            video.frames(range(40))


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
            Video(path)
    with pytest.raises(UserError, match=r"nowhere\.mp4 can't be decoded: No such file"):
        Video(tmp_path / "nowhere.mp4")


def test_a_replaced_file_is_counted_again(tmp_path):
    path = write_video(tmp_path / "a.mp4", num_frames=12)
    with Video(path) as video:
        assert video.num_frames == 12
    write_video(path, num_frames=20)
    with Video(path) as video:
        assert video.num_frames == 20


def test_one_frame_is_a_video(tmp_path):
    for name, encoder in (("one.mp4", "libx264"), ("one.avi", "mpeg4")):
        with Video(write_video(tmp_path / name, encoder=encoder, num_frames=1)) as video:
            assert video.num_frames == 1
            assert video.frames([0, 0]).shape == (2, 3, 48, 64)


def test_files_are_closed(videos):
    def open_files():
        return sum(1 for link in Path("/proc/self/fd").iterdir() if link.exists() and "b_frames" in str(link.resolve()))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    with Video(videos["b_frames.mp4"]) as video:
        video.frames([3, 30])
        assert open_files() == 1
    assert open_files() == 0
