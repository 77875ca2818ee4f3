"""Features along videos: each row is what the encoder makes of its window, and none is computed twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import mam2, write_video
from torch import Tensor

import mam2.use.sliding_windows as along
from mam2.config import UserError
from mam2.data.clips import Data
from mam2.data.shape import ClipShape
from mam2.data.video.open import open_video
from mam2.data.views import ViewLoader
from mam2.data.windows import Length, frames_of, windows_of
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.pooling import load_pooling
from mam2.model.weights import encoder_digest, save_encoder
from mam2.probe.probe import Probe, probe_encoder
from mam2.use.embed import embed, embed_file, read_clip, videos_to_embed
from mam2.use.embedder import Embed, load_embedder
from mam2.use.features_file import parts_folder

SIZES = EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=8)
HERE = Embed(num_workers=0, dtype="float32", window="16 frames")

HOLD = """
import sys
from pathlib import Path
from mam2.train.run import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

KILLED = """
import os, signal, sys
from pathlib import Path
import mam2.use.sliding_windows as along
from mam2.model.encoder import VideoEncoder
from mam2.use.embed import embed, embed_file, read_clip, videos_to_embed
from mam2.use.embedder import Embed

along.WINDOWS_AT_ONCE, along.PART_SECONDS = 1, 0.0
forward, seen = VideoEncoder.forward, []

def stopping(self, clip):
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(clip)
    return forward(self, clip)

VideoEncoder.forward = stopping
embed_file(*map(Path, sys.argv[1:4]), config=Embed(num_workers=0, dtype="float32", window="16 frames"))
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder file with random weights."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(file, VideoEncoder(SIZES))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos, of 40 and of 10 frames."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "long.mp4", num_frames=40)
    write_video(folder / "short.mp4", num_frames=10)
    return folder


@pytest.fixture
def clips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of clips that went through an encoder, call by call."""
    seen, forward = [], VideoEncoder.forward

    def counted(self: VideoEncoder, clip_BTCHW: Tensor) -> Tensor:
        seen.append(len(clip_BTCHW))
        return forward(self, clip_BTCHW)

    monkeypatch.setattr(VideoEncoder, "forward", counted)
    return seen


def rows(table: pa.Table) -> list[dict[str, object]]:
    return sorted(table.to_pylist(), key=lambda row: (row["path"], row["start"]))


class Film:
    """A source of frames that are shown at given times."""

    path = "film"
    num_missing = 0

    def __init__(self, times: Sequence[float], fps: float) -> None:
        self.times = times
        self.fps = fps
        self.num_frames = len(times)

    def time_of(self, index: int) -> float:
        return self.times[index] if index < len(self.times) else self.times[-1] + 1 / self.fps

    def frame_at(self, seconds: float) -> int:
        return sum(time < seconds - 1e-9 for time in self.times)


def spans(film: Film, window: str, hop: str) -> list[tuple[int, int]]:
    return [of[:2] for of in windows_of(film, window=Length.parse(window), hop=Length.parse(hop))]


def test_windows_reach_from_the_first_frame_to_the_last() -> None:
    film = Film([i / 10 for i in range(40)], fps=10)
    assert spans(film, "10 frames", "10 frames") == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert spans(film, "16 frames", "16 frames") == [(0, 16), (16, 32), (24, 40)]
    assert spans(film, "1.6s", "1.6 s") == [(0, 16), (16, 32), (24, 40)]
    assert spans(film, "16 frames", "8 frames") == [(0, 16), (8, 24), (16, 32), (24, 40)]
    assert spans(film, "16 frames", "0.8 seconds") == [(0, 16), (8, 24), (16, 32), (24, 40)]
    assert spans(film, "40 frames", "1 frame") == [(0, 40)]
    assert spans(film, "41 frames", "5 frames") == [(0, 40)]
    assert spans(film, "9 s", "1 s") == [(0, 40)]


def test_windows_of_seconds_follow_the_times_of_frames() -> None:
    """Ten frames in the first second, none in the second, two in the third."""
    film = Film([*(i / 10 for i in range(10)), 2.0, 2.5], fps=4.4)
    found = windows_of(film, window=Length(1, "s"), hop=Length(1, "s"))
    assert [of[:2] for of in found] == [(0, 10), (10, 12)]
    assert [of.start for of in found] == [0, 2.0]


@pytest.mark.parametrize("text", ["", "5", "0 frames", "1.5 frames", "-1 s", "0.001 s", "2 minutes"])
def test_lengths_that_make_no_sense(text: str) -> None:
    with pytest.raises(UserError, match="length"):
        Length.parse(text)


def test_a_clip_has_the_frames_of_a_test_with_one_view() -> None:
    dense = Data(stride_frames=4)
    assert frames_of(10, 26, num_frames=4, data=dense) == [10, 14, 18, 22]
    assert frames_of(0, 10, num_frames=4, data=dense) == [1, 3, 5, 7]
    assert frames_of(0, 3, num_frames=4, data=dense) == [0, 1, 2, 2]
    assert frames_of(0, 16, num_frames=4, data=Data(sampling="spread")) == [0, 5, 10, 15]
    assert frames_of(8, 16, num_frames=4, data=Data(sampling="uniform")) == [9, 11, 13, 15]


def test_time_and_frame_are_inverse(tmp_path: Path) -> None:
    uneven = write_video(tmp_path / "uneven.mkv", num_frames=6, ticks=[0, 40, 50, 200, 210, 400])
    for path in (write_video(tmp_path / "even.mp4"), uneven, f"{uneven}#t=0.045,0.3"):
        with open_video(path) as video:
            times = [video.time_of(index) for index in range(video.num_frames)]
            assert [video.frame_at(time) for time in times] == list(range(video.num_frames))
            assert video.time_of(video.num_frames) > times[-1]
    assert times == pytest.approx([0.005, 0.155, 0.165])


def test_rows_are_what_the_encoder_makes_of_the_clips(encoder: Path, folder: Path) -> None:
    table = embed(encoder, folder, config=HERE)
    names = ["path", "start", "end", "fps", "label", "embedding", "size_bytes", "mtime_ns"]
    assert table.schema.names == names
    found = rows(table)
    assert [(Path(row["path"]).name, round(30 * row["start"]), round(30 * row["end"])) for row in found] == [
        *[("long.mp4", 0, 16), ("long.mp4", 16, 32), ("long.mp4", 24, 40)],
        ("short.mp4", 0, 10),
    ]
    model = load_encoder(encoder)
    for row in found:
        assert row["fps"] == pytest.approx(30)
        clip = read_clip(row["path"], model.config, start=row["start"], end=row["end"])
        with torch.no_grad():
            expected = model(clip[None]).mean(dim=(1, 2))[0]
        torch.testing.assert_close(torch.tensor(row["embedding"]), expected)
    with torch.no_grad():
        frames = model(read_clip(found[1]["path"], model.config, start=found[1]["start"])[None]).mean(dim=2).flatten()
    frames_rows = rows(embed(encoder, folder, config=replace(HERE, pool="frames")))
    torch.testing.assert_close(torch.tensor(frames_rows[1]["embedding"]), frames)
    half = rows(embed(encoder, folder, config=Embed(num_workers=1, window="16 frames")))
    torch.testing.assert_close(
        torch.tensor(half[2]["embedding"]), torch.tensor(found[2]["embedding"]), rtol=1e-3, atol=1e-3
    )


def test_a_clip_is_that_of_evaluation(folder: Path) -> None:
    video = str(folder / "long.mp4")
    loaders = (
        ViewLoader(videos_to_embed(video, HERE), Data(num_workers=0), ClipShape(4, 16), clips=clips, crops=1)
        for clips in (1, 3)
    )
    [middle], [views] = loaders
    assert torch.equal(read_clip(video, SIZES), middle.views_VTCHW[0])
    for number, start in enumerate((0, 12, 24)):
        assert torch.equal(read_clip(video, SIZES, start=start / 30), views.views_VTCHW[number])
    assert torch.equal(read_clip(f"{video}#t=0.4", SIZES, start=0), views.views_VTCHW[1])
    for start, end in ((2.0, None), (0.5, 0.4)):
        with pytest.raises(UserError, match=r"has no frames from .* it lasts 1\.333"):
            read_clip(video, SIZES, start=start, end=end)


def test_an_attentive_probe_pools(encoder: Path, videos: Path, folder: Path, tmp_path: Path) -> None:
    probe = Probe(
        encoder=str(encoder),
        train=str(videos),
        test=str(videos),
        kind="attentive",
        baseline=False,
        epochs=2,
        learning_rates=(0.01,),
        weight_decays=(0.01,),
        num_workers=0,
    )
    config = replace(HERE, pool="attentive", probe=str(tmp_path / "probe"))
    with pytest.raises(UserError, match="holds no attentive probe"):
        embed(encoder, folder, config=config)
    report = probe_encoder(probe, tmp_path / "probe")
    table = embed(encoder, folder, config=config)
    model = load_encoder(encoder)
    pooling = load_pooling(tmp_path / "probe", encoder=encoder_digest(model))
    assert pooling.config.classes == ("approach", "left")
    row = rows(table)[0]
    with torch.no_grad():
        tokens = model(read_clip(row["path"], model.config, start=row["start"])[None]).flatten(1, 2)
        whole = pooling.head(pooling.standardise(tokens))
        torch.testing.assert_close(pooling.head.head(torch.tensor(row["embedding"]))[None], whole)
    assert report["kind"] == "attentive"
    torch.manual_seed(1)
    save_encoder(tmp_path / "other.safetensors", VideoEncoder(SIZES))
    with pytest.raises(UserError, match="was fitted on encoder"):
        embed(tmp_path / "other.safetensors", folder, config=config)


def test_what_is_there_is_not_computed_again(encoder: Path, folder: Path, tmp_path: Path, clips: list[int]) -> None:
    out = tmp_path / "features.parquet"
    done = embed_file(encoder, folder, out, config=HERE)
    assert (done.num_windows, done.num_new, sum(clips)) == (4, 4, 4)
    assert not parts_folder(out).exists()
    before, changed = rows(pq.read_table(out)), out.stat().st_mtime_ns
    done = embed_file(encoder, folder, out, config=HERE)
    assert (done.num_windows, done.num_new, sum(clips)) == (4, 0, 4)
    assert out.stat().st_mtime_ns == changed
    write_video(folder / "new.mp4", num_frames=17)
    assert embed_file(encoder, folder, out, config=HERE).num_new == 2
    assert [row for row in rows(pq.read_table(out)) if "new" not in row["path"]] == before
    write_video(folder / "long.mp4", num_frames=20, options={"crf": "40"})
    done = embed_file(encoder, folder, out, config=HERE)
    assert (done.num_windows, done.num_new) == (5, 2)
    assert sum("long" in row["path"] for row in rows(pq.read_table(out))) == 2
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(folder / "short.mp4", elsewhere)
    assert embed_file(encoder, elsewhere, out, config=HERE).num_windows == 6


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_a_kill_in_the_middle_loses_nothing(
    encoder: Path, folder: Path, tmp_path: Path, clips: list[int], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(along, "WINDOWS_AT_ONCE", 1)
    monkeypatch.setattr(along, "PART_SECONDS", 0.0 if how == "kill" else 1000.0)
    out, whole = tmp_path / "features.parquet", tmp_path / "whole.parquet"
    embed_file(encoder, folder, whole, config=HERE)
    assert clips == [1, 1, 1, 1]
    if how == "kill":
        done = subprocess.run([sys.executable, "-c", KILLED, encoder, folder, out], timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL
    else:
        forward = VideoEncoder.forward

        def stopping(self: VideoEncoder, clip_BTCHW: Tensor) -> Tensor:
            if len(clips) == 7:
                raise KeyboardInterrupt
            return forward(self, clip_BTCHW)

        monkeypatch.setattr(VideoEncoder, "forward", stopping)
        with pytest.raises(KeyboardInterrupt):
            embed_file(encoder, folder, out, config=HERE)
        monkeypatch.setattr(VideoEncoder, "forward", forward)
    assert not out.exists()
    num_kept = sum(pq.read_metadata(part).num_rows for part in parts_folder(out).glob("*.parquet"))
    assert num_kept == 2  # the third was on its way from the device
    (parts_folder(out) / "000000-00000-00000009.parquet.1234abcd.part").write_bytes(b"half")
    (tmp_path / "features.parquet.1234abcd.part").write_bytes(b"half")
    done = embed_file(encoder, folder, out, config=HERE)
    assert (done.num_windows, done.num_new) == (4, 2)
    assert pq.read_table(out).equals(pq.read_table(whole))
    assert sorted(os.listdir(tmp_path)) == ["features.parquet", "videos", "whole.parquet"]


def test_one_process_writes_a_file_at_a_time(encoder: Path, folder: Path, tmp_path: Path) -> None:
    """The second is refused, and leaves the first one's folder alone."""
    out = tmp_path / "features.parquet"
    parts_folder(out).mkdir()
    command = [sys.executable, "-c", HOLD, str(parts_folder(out))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"is in use by process {other.pid} on "):
            embed_file(encoder, folder, out, config=HERE)
        assert os.listdir(parts_folder(out)) == [".lock"]
        other.stdin.close()
    assert embed_file(encoder, folder, out, config=HERE).num_new == 4
    assert not parts_folder(out).exists()


def test_labels_of_folders_and_lists(encoder: Path, videos: Path, tmp_path: Path) -> None:
    labelled = replace(HERE, labelled=True, window="4 frames")
    out = tmp_path / "features.parquet"
    embed_file(encoder, videos, out, config=replace(labelled, labelled=False))
    assert set(pq.read_table(out)["label"].to_pylist()) == {None}
    done = embed_file(encoder, videos, out, config=labelled)
    assert (done.num_windows, done.num_new) == (24, 0)
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows(pq.read_table(out)))
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,start,end,label\n{videos}/left/0.mp4,0.2,0.7,near\n{videos}/left/0.mp4,0.6,1,far\n")
    found = rows(embed(encoder, listed, config=labelled))
    assert [(row["path"].partition("#")[2], row["label"], row["start"]) for row in found] == [
        *[("t=0.2,0.7", "near", 0.0), ("t=0.2,0.7", "near", pytest.approx(0.1))],
        ("t=0.6,1", "far", 0.0),
    ]
    clip = read_clip(videos / "left" / "0.mp4", SIZES, start=0.3, end=0.7)
    with torch.no_grad():
        expected = load_encoder(encoder)(clip[None]).mean(dim=(1, 2))[0]
    torch.testing.assert_close(torch.tensor(found[1]["embedding"]), expected)
    with pytest.raises(UserError, match="has no label"):
        embed(encoder, videos / "left" / "0.mp4", config=labelled)


def test_other_features_are_refused_with_both_identities(encoder: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    embed_file(encoder, folder, out, config=HERE)
    kept = out.read_bytes()
    torch.manual_seed(2)
    save_encoder(tmp_path / "other.safetensors", VideoEncoder(SIZES))
    files = (encoder, tmp_path / "other.safetensors")
    one, two = (load_embedder(str(file), HERE).provenance.identity.encoder[:12] for file in files)
    with pytest.raises(UserError, match=f"encoder differ. There: encoder {one}.* Here: encoder {two}"):
        embed_file(tmp_path / "other.safetensors", folder, out, config=HERE)
    both = r"pool, hop, embedding_dim differ.*pool mean.*every 16 frames.*pool frames.*every 8 frames"
    with pytest.raises(UserError, match=both):
        embed_file(encoder, folder, out, config=replace(HERE, pool="frames", hop="8 frames"))
    assert out.read_bytes() == kept
    assert not parts_folder(out).exists()
    out.write_bytes(kept[:-20])
    with pytest.raises(UserError, match="is no Parquet file, or damaged"):
        embed_file(encoder, folder, out, config=HERE)
    pq.write_table(pa.table({"x": [1]}), out)
    with pytest.raises(UserError, match="not of features"):
        embed_file(encoder, folder, out, config=HERE)


def test_what_is_damaged_is_named_and_left_out(encoder: Path, folder: Path, tmp_path: Path, caplog) -> None:
    (folder / "bad.mp4").write_bytes(b"no video")
    torn = write_video(folder / "torn.mp4", num_frames=64, options={"g": "8"})
    with av.open(str(torn)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = places[20]
    torn.write_bytes(torn.read_bytes()[:position] + b"\xff" * size + torn.read_bytes()[position + size :])
    out = tmp_path / "features.parquet"
    done = embed_file(encoder, folder, out, config=HERE)
    assert {Path(path).name for path in done.bad} == {"bad.mp4", "torn.mp4"}
    assert caplog.text.count("Left out") == 2
    starts = [round(30 * row["start"]) for row in rows(pq.read_table(out)) if "torn" in row["path"]]
    assert starts == [0, 32, 48]
    for path in folder.glob("[ls]*"):
        path.write_bytes(b"no video")
    torn.unlink()
    with pytest.raises(UserError, match="None of the 3 videos can be used") as error:
        embed(encoder, folder, config=HERE)
    assert "long.mp4" in str(error.value)


def test_too_few_frames_in_a_window(encoder: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="shorter than a clip of 4 frames"):
        embed(encoder, folder, config=Embed(window="3 frames"))
    with pytest.raises(UserError, match=r"has 3 frames in 0.1 s; a clip has 4"):
        embed(encoder, folder, config=Embed(window="0.1 s", num_workers=0))
    with pytest.raises(UserError, match="of pool 'attentive'"):
        Embed(probe="there")


def test_processes_share_the_windows(encoder: Path, folder: Path, tmp_path: Path) -> None:
    for number in range(7):
        write_video(folder / f"{number}.mp4", num_frames=20 + number)
    (folder / "bad.mp4").write_bytes(b"no video")
    alone, shared = tmp_path / "alone.parquet", tmp_path / "shared.parquet"
    options = ("--num-workers", 0, "--dtype", "float32", "--window", "16 frames")
    embed_file(encoder, folder, alone, config=HERE)
    done = mam2("embed", encoder, folder, "--out", shared, *options, processes=2)
    assert done.returncode == 0, done.stderr
    assert "18 windows (18 new; 10 videos; of 1 something was left out" in " ".join(done.stdout.split())
    one, two = rows(pq.read_table(alone)), rows(pq.read_table(shared))
    assert len(one) == 18
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(torch.tensor(a.pop("embedding")), torch.tensor(b.pop("embedding")))
        assert a == b
    meta = json.loads(pq.read_schema(shared).metadata[b"mam2"])
    assert meta["source"] == str(encoder)


def test_real_clips_of_all_formats(encoder: Path, real_data: Path) -> None:
    """Also one whose metadata is not UTF-8."""
    table = embed(encoder, real_data / "clips", config=Embed(num_workers=0, window="2 s"))
    paths = set(table["path"].to_pylist())
    assert len(paths) == len(list((real_data / "clips").iterdir()))
    [cartwheel] = [path for path in paths if "cartwheel" in path]
    assert read_clip(cartwheel, SIZES).float().std() > 10
    assert torch.tensor(table["embedding"].to_pylist()).isfinite().all()
