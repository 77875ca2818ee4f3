"""Training batches and test views: the same for any number of processes, and past faulty videos."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import psutil
import pytest
import torch
from helpers import write_video
from PIL import Image

from mam2.config import UserError, from_json, seed_of, to_json
from mam2.data import clips, sampling, transforms
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.loader import TrainLoader, steps_per_epoch, video_of
from mam2.data.shape import ClipShape, Listing
from mam2.data.video.pyav import PyAVVideo
from mam2.data.views import ViewLoader

SMALL = Data(stride_frames=2, num_workers=0)
train_loader = partial(TrainLoader, shape=ClipShape(4, 16))
view_loader = partial(ViewLoader, shape=ClipShape(4, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven videos of 16 frames, 3 of class 0 and 4 of class 1."""
    root = tmp_path_factory.mktemp("seven")
    for number in range(7):
        path = root / ("ab"[number >= 3]) / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, num_frames=16, size=(24 + 2 * number, 32))
    return root


@pytest.fixture(scope="module")
def catalog(folder):
    return read_catalog(Listing(root=folder), labelled=True)


@pytest.fixture
def damaged(folder, tmp_path):
    """The seven videos, of which number 4 is damaged."""
    for path in folder.glob("*/*.mp4"):
        link = tmp_path / path.relative_to(folder)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "b" / "4.mp4").unlink()
    (tmp_path / "b" / "4.mp4").write_bytes(b"no video")
    return read_catalog(Listing(root=tmp_path), labelled=True)


def assert_equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.clip_BTCHW, other.clip_BTCHW)
        assert torch.equal(batch.label_B, other.label_B)
        assert torch.equal(batch.sample_B, other.sample_B)


def test_an_epoch_shows_each_video_at_most_once():
    numbers = {"num_videos": 23, "batch_size": 5, "seed": 3}
    assert steps_per_epoch(23, 5) == 4
    epochs = [
        [video_of(step, place, **numbers) for step in range(first, first + 4) for place in range(5)]
        for first in (0, 4, 8)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert set(epoch) <= set(range(23))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])
    assert video_of(0, 0, **{**numbers, "seed": 4}) != video_of(0, 0, **numbers)


def test_a_batch_larger_than_the_data_set_is_filled_by_fresh_shuffles():
    assert steps_per_epoch(3, 8) == 1
    batch = [video_of(0, place, num_videos=3, batch_size=8, seed=0) for place in range(8)]
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
    assert len(set(batch[6:])) == 2
    second = [video_of(1, place, num_videos=3, batch_size=8, seed=0) for place in range(8)]
    assert batch != second


def test_replacements_reach_every_video():
    drawn = [video_of(2, 1, num_videos=6, batch_size=2, seed=0, attempt=attempt) for attempt in range(6)]
    assert sorted(drawn) == list(range(6))
    assert drawn[0] == video_of(2, 1, num_videos=6, batch_size=2, seed=0)


def test_a_sample_is_made_as_its_parts_say(catalog):
    (batch,) = train_loader(catalog, SMALL, batch_size=3, seed=5, start_step=8, num_steps=9)
    assert batch.clip_BTCHW.shape == (3, 4, 3, 16, 16)
    assert batch.clip_BTCHW.dtype == torch.uint8
    assert batch.clip_BTCHW.is_contiguous()
    assert batch.sample_B.tolist() == [24, 25, 26]
    for position in range(3):
        item = catalog.items[video_of(8, position, num_videos=7, batch_size=3, seed=5)]
        rng = random.Random(seed_of(5, 1, 8, position))
        with PyAVVideo(item.path) as video:
            clip = video.frames(sampling.dense(16, clip_frames=4, stride_frames=2, rng=rng))
        clip = transforms.flip(transforms.multi_scale_crop(clip, size=16, rng=rng), rng)
        assert torch.equal(batch.clip_BTCHW[position], clip)
        assert batch.label_B[position] == item.label


def test_fine_tuning_takes_the_other_crop(catalog):
    common = {"stride_frames": 2, "num_workers": 0}
    data = Data(augment="random_resized_crop", flip=False, **common)
    (batch,) = train_loader(catalog, data, batch_size=1, seed=5, num_steps=1)
    rng = random.Random(seed_of(5, 1, 0, 0))
    with PyAVVideo(catalog.items[video_of(0, 0, num_videos=7, batch_size=1, seed=5)].path) as video:
        clip = video.frames(sampling.dense(16, clip_frames=4, stride_frames=2, rng=rng))
    assert torch.equal(batch.clip_BTCHW[0], transforms.random_resized_crop(clip, size=16, rng=rng))


def test_unlabelled_videos_have_label_minus_one(folder):
    (batch,) = train_loader(
        read_catalog(Listing(root=folder), labelled=False), SMALL, batch_size=2, seed=0, num_steps=1
    )
    assert batch.label_B.tolist() == [-1, -1]
    assert batch.label_B.dtype == batch.sample_B.dtype == torch.int64


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_equals_uninterrupted(catalog, num_workers):
    data = Data(stride_frames=2, num_workers=num_workers)
    whole = list(train_loader(catalog, SMALL, batch_size=4, seed=1, num_steps=6))
    assert_equal(whole[3:], train_loader(catalog, data, batch_size=4, seed=1, start_step=3, num_steps=6))
    assert not torch.equal(whole[0].clip_BTCHW, whole[1].clip_BTCHW)


def test_a_loader_can_be_read_twice(catalog):
    loader = train_loader(catalog, SMALL, batch_size=4, seed=1, num_steps=2)
    assert loader.steps_per_epoch == 1
    assert_equal(loader, loader)


@pytest.mark.parametrize("catalog_name", ["catalog", "damaged"])
def test_two_processes_share_the_batch_of_one(catalog_name, request):
    catalog = request.getfixturevalue(catalog_name)
    one = list(train_loader(catalog, SMALL, batch_size=4, seed=1, num_steps=3))
    first, second = (
        list(train_loader(catalog, SMALL, batch_size=4, seed=1, num_steps=3, rank=rank, world_size=2))
        for rank in range(2)
    )
    for whole, left, right in zip(one, first, second, strict=True):
        assert torch.equal(whole.clip_BTCHW, torch.cat([left.clip_BTCHW, right.clip_BTCHW]))
        assert torch.equal(whole.label_B, torch.cat([left.label_B, right.label_B]))
        assert torch.equal(whole.sample_B, torch.cat([left.sample_B, right.sample_B]))


def test_the_random_numbers_of_the_run_are_left_alone(catalog):
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(3), random.random()
    torch.manual_seed(0)
    random.seed(0)
    list(train_loader(catalog, SMALL, batch_size=2, seed=1, num_steps=1))
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_video_is_replaced_and_reported_once(damaged, num_workers, caplog):
    data = Data(stride_frames=2, num_workers=num_workers)
    loader = train_loader(damaged, data, batch_size=7, seed=1, num_steps=4)
    with caplog.at_level(logging.WARNING, logger="mam2"):
        batches = list(loader)
    assert [batch.clip_BTCHW.shape[0] for batch in batches] == [7] * 4
    assert list(loader.bad.reasons) == [damaged.items[4].path]
    assert "4.mp4 can't be decoded" in loader.bad.reasons[damaged.items[4].path]
    assert [record.getMessage() for record in caplog.records] == [
        "Left out: " + loader.bad.reasons[damaged.items[4].path]
    ]
    assert_equal(batches[2:], train_loader(damaged, SMALL, batch_size=7, seed=1, start_step=2, num_steps=4))
    # The next of the shuffle stands in for it.
    places = [place for place in range(7) if video_of(0, place, num_videos=7, batch_size=7, seed=1) == 4]
    stand_in = video_of(0, places[0], num_videos=7, batch_size=7, seed=1, attempt=1)
    assert batches[0].label_B[places[0]] == damaged.items[stand_in].label


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_videos_end_the_run_with_their_reasons(damaged, num_workers):
    data = Data(stride_frames=2, num_workers=num_workers, max_bad_share=0)
    with pytest.raises(UserError, match=r"^1 of 7 videos can't be used; data\.max_bad_share = 0 forgives 0\.") as error:
        list(train_loader(damaged, data, batch_size=7, seed=1, num_steps=4))
    assert "The first 1:\n" in str(error.value)
    assert "4.mp4 can't be decoded: " in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("num_bad", [1, 6])
def test_nothing_but_bad_videos(tmp_path, num_bad):
    for number in range(num_bad):
        (tmp_path / f"{number}.mp4").write_bytes(b"no video")
    catalog = read_catalog(Listing(root=tmp_path), labelled=False)
    data = Data(stride_frames=2, num_workers=0, max_bad_share=1)
    with pytest.raises(UserError, match=f"^{num_bad} of {num_bad} videos can't be used") as error:
        list(train_loader(catalog, data, batch_size=2, seed=1, num_steps=1))
    assert str(error.value).count("can't be decoded") == min(num_bad, 5)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_video_that_a_list_holds_many_times_is_one_bad_video(folder, tmp_path, num_workers):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    rows = [*sorted(folder.rglob("*.mp4"))[:2], *[bad] * 6]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{path}\n" for path in rows))
    catalog = read_catalog(Listing(root=tmp_path / "list.csv"), labelled=False)
    loader = train_loader(catalog, replace(SMALL, num_workers=num_workers), batch_size=8, seed=1, num_steps=3)
    assert [len(batch) for batch in loader] == [8] * 3
    assert loader.bad.num_videos == 3
    assert list(loader.bad.reasons) == [str(bad)]
    views = view_loader(catalog, SMALL, clips=1, crops=1)
    assert [found.index for found in views] == [0, 1]
    (tmp_path / "list.csv").write_text("path\n" + f"{bad}\n" * 8)
    catalog = read_catalog(Listing(root=tmp_path / "list.csv"), labelled=False)
    with pytest.raises(UserError, match=r"^1 of 1 videos can't be used"):
        list(train_loader(catalog, SMALL, batch_size=8, seed=1, num_steps=3))


def test_images_are_a_share_of_the_samples_and_stand_still(catalog, tmp_path):
    colours = (40, 200)
    for grey in colours:
        Image.new("RGB", (30, 20), (grey,) * 3).save(tmp_path / f"{grey}.png")
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    data = replace(SMALL, images=str(tmp_path), image_share=0.25, max_bad_share=0.5)
    loader = train_loader(catalog, data, batch_size=8, seed=1, num_steps=50)
    clips = torch.cat([batch.clip_BTCHW for batch in loader])
    flat = clips.flatten(1).float()
    still = flat.std(dim=1) == 0
    assert still.sum().item() == pytest.approx(0.25 * len(clips), abs=30)
    assert set(flat[still, 0].tolist()) == set(colours)
    assert [path.endswith("damaged.jpg") for path in loader.bad.reasons] == [True]
    again = train_loader(catalog, data, batch_size=8, seed=1, num_steps=50, start_step=49)
    assert torch.equal(next(iter(again)).clip_BTCHW, clips[-8:])
    videos = torch.cat([b.clip_BTCHW for b in train_loader(catalog, SMALL, batch_size=8, seed=1, num_steps=50)])
    assert torch.equal(videos[~still], clips[~still])  # images replace videos; the others are the same
    with pytest.raises(UserError, match="holds no images"):
        train_loader(catalog, replace(data, images=str(tmp_path / "none")), batch_size=8, seed=1, num_steps=1)


def test_a_stride_that_is_shrunk_for_most_videos_is_said_once(catalog, caplog):
    for stride, said in ((5, 1), (4, 0)):  # the videos have 16 frames
        loader = train_loader(catalog, replace(SMALL, stride_frames=stride), batch_size=3, seed=1, num_steps=9)
        list(loader)
        assert caplog.text.count("100% of the videos are too short for 4 frames 5 apart") == said
        caplog.clear()


def test_videos_too_short_for_the_policy_are_bad(catalog):
    data = Data(stride_frames=5, num_workers=0, short="skip")
    with pytest.raises(UserError, match=r"mp4 has 16 frames; 4 frames 5 apart need at least 20\. Use --data\.short"):
        list(train_loader(catalog, data, batch_size=2, seed=1, num_steps=4))
    data = Data(stride_frames=5, num_workers=0, short="repeat")
    (batch,) = train_loader(catalog, data, shape=ClipShape(20, 16), batch_size=1, seed=1, num_steps=1)
    assert torch.equal(batch.clip_BTCHW[0, 3], batch.clip_BTCHW[0, 19])


def test_leaving_early_stops_the_workers_quietly(folder):
    program = f"""
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.loader import TrainLoader
from mam2.data.shape import ClipShape, Listing
catalog = read_catalog(Listing(root={str(folder)!r}), labelled=True)
data = Data(stride_frames=2, num_workers=2)
for batch in TrainLoader(catalog, data, ClipShape(4, 16), batch_size=4, seed=0, num_steps=1000):
    break
kept = iter(TrainLoader(catalog, data, ClipShape(4, 16), batch_size=4, seed=0, num_steps=1000))
next(kept)
print("left")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_views_are_clips_by_crops(catalog, num_workers):
    data = Data(stride_frames=2, num_workers=num_workers)
    loaded = list(view_loader(catalog, data, clips=3, crops=2))
    assert [views.index for views in loaded] == list(range(7))
    assert [views.label for views in loaded] == [0, 0, 0, 1, 1, 1, 1]
    with PyAVVideo(catalog.items[5].path) as video:
        expected = [
            crop
            for window in sampling.views(16, clip_frames=4, stride_frames=2, clips=3)
            for crop in transforms.test_crops(video.frames(window), size=16, crops=2)
        ]
    assert torch.equal(loaded[5].views_VTCHW, torch.stack(expected))
    assert loaded[5].views_VTCHW.dtype == torch.uint8
    assert loaded[5].views_VTCHW.is_contiguous()


def test_processes_share_the_videos_without_repeats(catalog):
    shares = [
        [views.index for views in view_loader(catalog, SMALL, clips=1, crops=1, rank=rank, world_size=3)]
        for rank in range(3)
    ]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_views_leave_out_a_damaged_video_but_no_short_one(damaged, caplog):
    data = Data(stride_frames=2, num_workers=0, short="skip")
    loader = view_loader(damaged, data, shape=ClipShape(20, 16), clips=2, crops=1)
    assert [views.index for views in loader] == [0, 1, 2, 3, 5, 6]
    assert list(loader.bad.reasons) == [damaged.items[4].path]
    strict = Data(num_workers=0, max_bad_share=0)
    with pytest.raises(UserError, match="1 of 7 videos can't be used"):
        list(view_loader(damaged, strict, clips=1, crops=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride_frames": 0}, r"data\.stride_frames is 0; accepted: at least 1"),
        ({"num_workers": -1}, r"data\.num_workers is -1; accepted: at least 0"),
        ({"max_bad_share": 5.0}, r"data\.max_bad_share is 5\.0"),
        ({"short": "pad"}, r"data\.short is 'pad'; accepted: shrink, repeat, skip"),
        ({"augment": "none"}, r"data\.augment is 'none'; accepted: multi_scale_crop, random_resized_crop"),
    ],
)
def test_data_refuses_what_makes_no_sense(fields, message):
    with pytest.raises(UserError, match=message):
        Data(**fields)


def test_data_is_written_and_read_back():
    data = Data(root="videos", short="skip", max_bad_share=0.1)
    assert from_json(Data, to_json(data)) == data


def test_loaders_refuse_what_makes_no_sense(catalog):
    with pytest.raises(UserError, match="batch size is 5; it must be a positive multiple of the number of proc"):
        train_loader(catalog, SMALL, batch_size=5, seed=0, num_steps=1, world_size=2)
    with pytest.raises(UserError, match="both must be at least 1"):
        view_loader(catalog, SMALL, clips=0, crops=1)


def test_real_clips_in_two_workers(real_data):
    catalog = read_catalog(Listing(root=real_data / "arid6" / "val"), labelled=True)
    data = Data(stride_frames=2, num_workers=2)
    loader = TrainLoader(catalog, data, ClipShape(16, 32), batch_size=8, seed=0, num_steps=2)
    for batch in loader:
        assert batch.clip_BTCHW.shape == (8, 16, 3, 32, 32)
        assert batch.clip_BTCHW.float().std(dim=1).mean() > 0.5  # frames differ
    assert not loader.bad.reasons


@pytest.mark.parametrize("fault", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_video_that_ends_or_stalls_its_process_is_left_out(catalog, monkeypatch, caplog, fault):
    """What no exception tells: a crash in the decoder, or a read that never ends."""
    guilty = catalog.items[4].path
    honest = clips.open_video

    def treacherous(path, **settings):
        if path == guilty:
            os.kill(os.getpid(), signal.SIGKILL) if fault == "dies" else time.sleep(60)
        return honest(path, **settings)

    monkeypatch.setattr(clips, "open_video", treacherous)  # worker processes are forked, and inherit it
    data = replace(SMALL, num_workers=1, timeout_seconds=2)
    loader = train_loader(catalog, data, batch_size=7, seed=0, num_steps=2)
    batches = list(loader)
    assert [batch.clip_BTCHW.shape[0] for batch in batches] == [7, 7]
    assert loader.bad.reasons.keys() == {guilty}
    assert "A decoding process failed" in caplog.text
    views = list(view_loader(catalog, data, clips=1, crops=1))
    assert sorted(view.index for view in views) == [0, 1, 2, 3, 5, 6]


def test_a_process_that_dies_does_not_raise_in_the_midst_of_a_step(catalog):
    loader = iter(
        train_loader(catalog, replace(SMALL, num_workers=2, timeout_seconds=20), batch_size=1, seed=0, num_steps=40)
    )
    next(loader)
    before = signal.getsignal(signal.SIGCHLD)
    for child in psutil.Process().children():
        child.kill()
    time.sleep(0.5)  # a step: nothing may be raised here
    assert signal.getsignal(signal.SIGCHLD) == before == signal.SIG_DFL
    assert len(list(loader)) == 39


def test_a_process_that_dies_is_noticed_long_before_the_time_is_up(catalog):
    data = replace(SMALL, num_workers=1, timeout_seconds=600)
    loader = iter(train_loader(catalog, data, batch_size=1, seed=0, num_steps=40))
    next(loader)
    (child,) = psutil.Process().children()
    child.kill()
    start = time.monotonic()
    assert len(list(loader)) == 39
    assert time.monotonic() - start < 60


SCRIPT = """
import multiprocessing, sys
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.loader import TrainLoader
from mam2.data.shape import ClipShape, Listing

def main():
    catalog = read_catalog(Listing(root={folder!r}), labelled=True)
    data = Data(stride_frames=2, num_workers=1)
    loader = TrainLoader(catalog, data, ClipShape(4, 16), batch_size=4, seed=0, num_steps=3)
    try:
        print(len(list(loader)), loader.bad.reasons)
    except ValueError as error:
        print(error)

multiprocessing.set_start_method("spawn", force=True)
{guard}main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["", 'if __name__ == "__main__": '])
def test_a_script_without_a_main_guard_is_told_so_at_once(folder, tmp_path, guard):
    (tmp_path / "script.py").write_text(SCRIPT.format(folder=str(folder), guard=guard))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0
    if guard:
        assert done.stdout == "3 {}\n"
    else:
        assert "The decoding processes end as soon as they start" in done.stdout
        assert "begin training under `if __name__ == '__main__':`" in done.stdout


def test_full_shared_memory_is_told_at_once(catalog, monkeypatch, caplog):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # worker processes are forked, and inherit it
    with pytest.raises(UserError, match=r"/dev/shm has .* MiB free \(unable to allocate .*--shm-size"):
        list(train_loader(catalog, replace(SMALL, num_workers=1), batch_size=3, seed=0, num_steps=4))
    assert not caplog.text


@pytest.mark.slow
def test_a_process_that_dies_once_costs_nothing(catalog, monkeypatch, tmp_path):
    expected = list(train_loader(catalog, SMALL, batch_size=3, seed=0, num_steps=4))
    honest, died = clips.open_video, tmp_path / "died"

    def dies_once(path, **settings):
        if path == catalog.items[2].path and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(path, **settings)

    monkeypatch.setattr(clips, "open_video", dies_once)
    loader = train_loader(catalog, replace(SMALL, num_workers=2, timeout_seconds=20), batch_size=3, seed=0, num_steps=4)
    assert_equal(loader, expected)
    assert died.exists()
    assert not loader.bad.reasons


def test_fixed_clips_are_few_and_come_again_under_their_numbers(catalog):
    data = replace(SMALL, fixed_clips=2)
    seen: dict[int, torch.Tensor] = {}
    batches = list(train_loader(catalog, data, batch_size=7, seed=5, num_steps=8))
    for batch in batches:
        assert [number // 2 for number in batch.fixed_B.tolist()] != list(range(7))  # shuffled
        for number, clip in zip(batch.fixed_B.tolist(), batch.clip_BTCHW, strict=True):
            assert torch.equal(seen.setdefault(number, clip), clip)
    assert len(seen) == 14  # 7 videos, 2 of each: every one was drawn in 8 epochs
    assert len({clip.numpy().tobytes() for clip in seen.values()}) > 10
    assert batches[3].part(1, of=7).fixed_B.tolist() == batches[3].fixed_B[1:2].tolist()
    other = next(iter(train_loader(catalog, data, batch_size=7, seed=6, num_steps=1)))
    assert any(not torch.equal(seen[n], clip) for n, clip in zip(other.fixed_B.tolist(), other.clip_BTCHW, strict=True))


def test_fixed_clips_of_repeats_have_numbers_of_their_own(catalog):
    (batch,) = train_loader(catalog, replace(SMALL, fixed_clips=3, repeats=2), batch_size=4, seed=5, num_steps=1)
    numbers = batch.fixed_B.tolist()
    assert numbers[1::2] == [number + 1 for number in numbers[::2]]
    assert all(number % 2 == 0 and number < 7 * 3 * 2 for number in numbers[::2])
    assert next(iter(train_loader(catalog, SMALL, batch_size=4, seed=5, num_steps=1))).fixed_B is None
