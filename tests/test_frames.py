"""Folders of JPEG frames: written whole, read as videos are."""

import errno
import json
import logging
import os
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_video as write_test_video
from PIL import Image
from torchvision.transforms.v2 import functional

from mam2.config import UserError
from mam2.data.catalog import read_catalog
from mam2.data.prepare import extract
from mam2.data.prepare.extract import Extract, estimate_bytes, write_all_frames, write_frames
from mam2.data.prepare.manifest import Prepare, prepare
from mam2.data.shape import Listing
from mam2.data.synthetic import render, write_video
from mam2.data.video.index import VideoError
from mam2.data.video.jpeg_folder import JpegFolder
from mam2.data.video.open import open_video
from mam2.data.video.pyav import PyAVVideo


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Decibels; both uint8."""
    return 10 * np.log10(255**2 / max(1e-9, (a.double() - b.double()).square().mean().item()))


def write_jpeg(path: Path, level: int, size: tuple[int, int] = (20, 30), **save: object) -> None:
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path, "JPEG", **save)


def bytes_on_disk(folder: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.iterdir())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "a[1] clip.mp4"
    write_video(path, render("left", seed=1, num_frames=25, size=96), fps=12)
    return path


def test_frames_of_a_folder_equal_the_video(video, tmp_path):
    written = write_frames(video, tmp_path / "new" / "folder")
    with PyAVVideo(video) as source, open_video(tmp_path / "new" / "folder") as frames:
        assert type(frames) is JpegFolder
        assert written.path == frames.path
        assert (frames.num_frames, frames.num_missing, frames.height, frames.width) == (25, 0, 96, 96)
        assert frames.fps == source.fps == pytest.approx(12)
        for indices in (range(25), [24, 3, 3, 0]):
            clip, expected = frames.frames(indices), source.frames(indices)
            assert clip.dtype == torch.uint8
            assert clip.shape == expected.shape
            assert min(psnr(a, b) for a, b in zip(clip, expected, strict=True)) > 35
        # Each frame is nearest to itself.
        every = source.frames(range(25)).float()
        for i in range(0, 25, 4):
            assert (every - frames.frames([i]).float()).abs().mean((1, 2, 3)).argmin() == i
        for indices in ([25], [-1], []):
            with pytest.raises(IndexError, match="has frames 0 to 24"):
                frames.frames(indices)
    with open_video(video) as opened:
        assert type(opened) is PyAVVideo


def test_large_frames_of_a_folder_are_scaled_while_they_are_read(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (9, 15, 3), np.uint8)).resize((600, 360), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for name, options in (("1.jpg", {}), ("2.jpg", {"exif": exif})):
        folder = tmp_path / name[0]
        folder.mkdir()
        smooth.save(folder / name, quality=95, **options)
        whole = open_video(folder).frames([0])
        with open_video(folder, short_side=48) as small:
            frame = small.frames([0])
        assert tuple(frame.shape[2:]) == ((48, 80) if name == "1.jpg" else (80, 48))
        expected = functional.resize(whole, list(frame.shape[2:]), antialias=True)
        assert (frame.float() - expected.float()).abs().mean() < 2
        assert torch.equal(open_video(folder, short_side=360).frames([0]), whole)
    smooth.resize((300, 180)).save(tmp_path / "1" / "2.jpg")
    with pytest.raises(VideoError, match=r"2\.jpg has 300 × 180 pixels, the first 600 × 360"):
        open_video(tmp_path / "1", short_side=48).frames([1])


def test_frames_are_made_smaller_never_larger(video, tmp_path):
    wide = write_test_video(tmp_path / "wide.mp4", size=(48, 64), num_frames=4, rotation=90)
    frames = write_frames(wide, tmp_path / "small", Extract(short_side=24, quality=95))
    assert (frames.height, frames.width) == (32, 24)
    with PyAVVideo(wide) as source:
        expected = functional.resize(source.frames(range(4)), [32, 24], antialias=True)
    assert psnr(frames.frames(range(4)), expected) > 30
    assert write_frames(wide, tmp_path / "same", Extract(short_side=49)).width == 48


def test_meta_tells_how_the_frames_were_made(video, tmp_path):
    write_frames(video, tmp_path / "f", Extract(short_side=64, quality=80))
    meta = json.loads((tmp_path / "f" / "meta.json").read_text())
    assert meta["fps"] == pytest.approx(12)
    assert (meta["count"], meta["short_side"], meta["quality"]) == (25, 64, 80)
    source = meta["source"]
    assert (source["name"], source["height"], source["width"]) == (video.name, 96, 96)
    assert source["bytes"] == video.stat().st_size
    assert len(source["sha256"]) == 64
    assert sorted(os.listdir(tmp_path / "f")) == [*(f"{i:06d}.jpg" for i in range(25)), "meta.json"]


def test_what_is_there_is_kept_or_refused(video, tmp_path, monkeypatch):
    folder = tmp_path / "f"
    folder.mkdir()
    write_frames(video, folder)  # an empty folder is as good as none
    monkeypatch.setattr(extract, "_jpeg", None)  # nothing is written again
    assert write_frames(video, folder).num_frames == 25
    with pytest.raises(UserError, match=r"there already and holds its frames with short_side 256 and quality 90\."):
        write_frames(video, folder, Extract(quality=80))
    other = write_test_video(tmp_path / "other.mp4", num_frames=2)
    for there in (folder, tmp_path / "other.mp4"):
        with pytest.raises(UserError, match=r"holds something else than the frames of this video\. Remove it"):
            write_frames(other, there)


class Full:
    """A disk with room for so many frames."""

    def __init__(self, room: int, error: BaseException) -> None:
        self.room, self.error, self.plain = room, error, extract._jpeg

    def __call__(self, *arguments):
        self.room -= 1
        if self.room < 0:
            raise self.error
        return self.plain(*arguments)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_run_that_fails_leaves_nothing(video, tmp_path, monkeypatch, error):
    monkeypatch.setattr(extract, "_jpeg", Full(10, error))
    failed = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError
    with pytest.raises(failed) as caught:
        write_frames(video, tmp_path / "f")
    if failed is UserError:
        assert "f can't be written: No space left on device. Nothing of it is kept" in str(caught.value)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    assert write_frames(video, tmp_path / "f").num_frames == 25


def test_what_a_killed_run_left_is_removed(video, tmp_path):
    for name in (".f.abc.partial", ".f.xyz.partial", ".g.abc.partial"):
        (tmp_path / name / "frames").mkdir(parents=True)
    write_frames(video, tmp_path / "f")
    assert sorted(os.listdir(tmp_path)) == [".g.abc.partial", "f"]


def test_two_writers_of_one_folder_get_along(video, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    plain, results = extract._is_written, []

    def together(*arguments):
        there = plain(*arguments)
        if len(results) == 0 and not there:
            both.wait()
        return there

    monkeypatch.setattr(extract, "_is_written", together)
    threads = [
        threading.Thread(target=lambda: results.append(write_frames(video, tmp_path / "f").num_frames))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [25, 25]
    assert os.listdir(tmp_path) == ["f"]


def test_a_damaged_video_makes_no_folder(tmp_path):
    path = write_test_video(tmp_path / "cut.mp4", container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(VideoError, match="its header promises 40 frames"):
        write_frames(path, tmp_path / "f")
    with pytest.raises(VideoError, match=r"nowhere\.mp4 can't be decoded: No such file"):
        write_frames(tmp_path / "nowhere.mp4", tmp_path / "f")
    assert os.listdir(tmp_path) == ["cut.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_can_not_be_written(video, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="f can't be written: Permission denied"):
        write_frames(video, tmp_path / "f")


def test_a_place_under_a_file(video, tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(UserError, match=r"f can't be written: (Not a directory|File exists)"):
        write_frames(video, tmp_path / "notes" / "f")


@pytest.mark.parametrize("quality", [50, 90])
def test_the_estimate_holds(video, tmp_path, quality):
    write_frames(video, tmp_path / "f", Extract(quality=quality))
    blocks = bytes_on_disk(tmp_path / "f")
    assert estimate_bytes(video, Extract(quality=quality)) == pytest.approx(blocks, rel=0.2)


def test_the_estimate_of_real_videos(real_data, tmp_path):
    path = real_data / "clips" / "RATRACE_wave_f_nm_np1_fr_goo_37.avi"
    write_frames(path, tmp_path / "f", Extract(short_side=128))
    blocks = bytes_on_disk(tmp_path / "f")
    assert estimate_bytes(path, Extract(short_side=128)) == pytest.approx(blocks, rel=0.15)
    with PyAVVideo(path) as source, JpegFolder(tmp_path / "f") as frames:
        expected = functional.resize(source.frames(range(0, 72, 9)), [128, 299], antialias=True)
        assert psnr(frames.frames(range(0, 72, 9)), expected) > 34


def test_settings_are_checked():
    for settings, reason in (
        ({"quality": 0}, "quality is 0; accepted: at least 1, at most 100"),
        ({"quality": 101}, "quality is 101"),
        ({"short_side": 0}, "short_side is 0"),
    ):
        with pytest.raises(UserError, match=reason):
            Extract(**settings)


@pytest.mark.parametrize("form", ["{}.jpg", "img_{:05d}.jpeg", "clip7_{}.JPG", "2 of 9, {:02d}.Jpg"])
def test_frames_are_sorted_by_number(tmp_path, form):
    numbers = [0, 2, 9, 10, 11, 100]
    for number in random.Random(0).sample(numbers, 6):
        write_jpeg(tmp_path / form.format(number), 2 * number)
    (tmp_path / ".hidden.jpg").touch()
    (tmp_path / "Thumbs.db").touch()
    with JpegFolder(tmp_path) as frames:
        assert (frames.num_frames, frames.fps, frames.height, frames.width) == (6, None, 20, 30)
        clip = frames.frames([5, 0, 1, 2, 3, 4, 5])
    assert clip[:, 0, 9, 9].tolist() == [200, 0, 4, 18, 20, 22, 200]


def test_grey_and_turned_frames(tmp_path):
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(tmp_path / "0.jpg")
    assert (JpegFolder(tmp_path).frames([0]) == 90).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    write_jpeg(tmp_path / "0.jpg", 90, exif=exif)
    frames = JpegFolder(tmp_path)
    assert frames.frames([0]).shape == (1, 3, frames.height, frames.width) == (1, 3, 30, 20)


def test_folders_that_can_not_be_read(video, tmp_path):
    def refused(reason: str) -> None:
        with pytest.raises(
            VideoError, match=rf"can't be read as frames: {reason}.*Write the folder again or remove it"
        ):
            JpegFolder(tmp_path)

    refused(r"it holds no frames \(numbered files ending in \.jpg, \.jpeg\)")
    write_jpeg(tmp_path / "0001.jpg", 9)
    write_jpeg(tmp_path / "cover.jpg", 9)
    refused("cover.jpg has no number")
    (tmp_path / "cover.jpg").rename(tmp_path / "1.jpg")
    refused(r"0001\.jpg and 1\.jpg have the same number")
    (tmp_path / "1.jpg").unlink()
    meta = tmp_path / "meta.json"
    for text, reason in (
        ('{"count": 3}', "its meta.json promises 3 frames, but 1 are there"),
        ("{", "its meta.json can't be read"),
        ("[1]", "its meta.json is of another kind: it is"),
        ('{"fps": "25"}', "its meta.json is of another kind: fps is '25'"),
        ('{"count": 1.5}', "its meta.json is of another kind: count is 1.5"),
    ):
        meta.write_text(text)
        refused(reason)
    meta.write_text('{"fps": 25, "other": 3}')
    assert JpegFolder(tmp_path).fps == 25
    (tmp_path / "0001.jpg").write_bytes(b"")
    refused(r"0001\.jpg: cannot identify image file")
    with pytest.raises(VideoError, match="can't be read as frames: No such file"):
        JpegFolder(tmp_path / "nowhere")


def test_damaged_frames_are_an_error_only_where_they_are(video, tmp_path):
    write_frames(video, tmp_path / "f")
    cut = tmp_path / "f" / "000007.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    write_jpeg(tmp_path / "f" / "000011.jpg", 9, size=(8, 8))
    shutil.copy(video, tmp_path / "f" / "000013.jpg")
    with JpegFolder(tmp_path / "f") as frames:
        assert frames.frames([0, 6, 8, 24]).shape == (4, 3, 96, 96)
        for index, reason in (
            (7, "image file is truncated"),
            (11, "has 8 × 8 pixels, the first 96 × 96"),
            (13, "cannot"),
        ):
            with pytest.raises(VideoError, match=rf"0000{index:02d}\.jpg:? {reason}.*Write the folder again"):
                frames.frames([0, index])
        (tmp_path / "f" / "000020.jpg").unlink()
        with pytest.raises(VideoError, match=r"000020\.jpg: No such file"):
            frames.frames([20])
    with pytest.raises(VideoError, match="promises 25 frames, but 24 are there"):
        JpegFolder(tmp_path / "f")


def test_all_videos_of_a_manifest_become_folders_that_train_as_the_videos_do(videos, tmp_path, caplog):
    table, out = tmp_path / "videos.csv", tmp_path / "frames"
    paths = sorted(videos.glob("*/*.mp4"))
    (tmp_path / "bad.mp4").write_text("no video")
    lines = [f"{path},{path.parent.name},{('train', 'val')[number % 2]}" for number, path in enumerate(paths)]
    table.write_text("\n".join(["path,label,split", *lines, f"{tmp_path / 'bad.mp4'},left,train"]))
    with caplog.at_level(logging.INFO, logger="mam2"):
        done = write_all_frames(table, Extract(frames=out), num_workers=2, max_bad_share=0.2)
    assert done.num_videos == len(paths) == 8
    assert done.bad.keys() == {str(tmp_path / "bad.mp4")}
    assert done.estimated_bytes > 8 * 10 * 100
    assert "9 of 9 videos to extract" in caplog.text
    catalog = read_catalog(Listing(root=done.manifest, split="val"), labelled=True)
    assert catalog.classes == ("approach", "left")
    assert len(catalog.items) == 4
    with open_video(catalog.items[0].path) as frames, PyAVVideo(paths[1]) as video:
        assert frames.num_frames == video.num_frames
        difference = frames.frames([0, 9]).float() - video.frames([0, 9]).float()
        assert difference.abs().mean() < 8  # what JPEG loses of a picture so small and colourful

    # A second run finds all of it; after a kill, what is missing is made.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    gone = Path(catalog.items[0].path)
    shutil.rmtree(gone)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="mam2"):
        write_all_frames(table, Extract(frames=out), num_workers=1, max_bad_share=0.2)
    assert "2 of 9 videos to extract" in caplog.text  # the lost one, and the damaged one again
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg") if gone not in path.parents}
    assert kept.items() <= before.items()
    assert len(kept) == len(before) - 10
    assert gone.is_dir()


def test_frames_that_do_not_fit_on_the_disk_are_not_begun(videos, tmp_path, monkeypatch):
    table = tmp_path / "videos.csv"
    table.write_text("path\n" + "\n".join(map(str, videos.glob("*/*.mp4"))))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="Make room"):
        write_all_frames(table, Extract(frames=tmp_path / "frames"))
    assert not list((tmp_path / "frames").iterdir())


def test_frame_folders_are_prepared_again(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("a", "b"):
        write_video(tmp_path / "videos" / f"{name}.mp4", render("left", seed=ord(name), num_frames=4, size=32))
    manifest = prepare(Prepare(name="folder", root=tmp_path / "videos", num_workers=0)).manifest
    made = write_all_frames(manifest, Extract(frames=tmp_path / "frames"), num_workers=0)
    report = prepare(Prepare(name="folder", root=made.manifest, num_workers=1))
    assert (report.missing.count, report.unreadable.count, report.duplicates.count) == (0, 0, 0)
    rows = report.manifest.read_text().splitlines()[1:]
    assert [row.split(",")[2] for row in rows] == ["4", "4"]
