"""What training and testing see of one video, for every setting."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import write_video

from mam2.config import UserError
from mam2.data import sampling, transforms
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data, augmented, stride_of, train_clips, views_of
from mam2.data.loader import TrainLoader
from mam2.data.rand_augment import rand_augment
from mam2.data.shape import ClipShape, Listing
from mam2.data.video.open import open_video

PLAIN = Data(stride_frames=2, flip=False)
TABLE_8 = Data(stride_frames=2, augment="random_resized_crop", rand_augment_ops=2, repeats=2)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 frames of 32 × 48."""
    path = tmp_path_factory.mktemp("clips") / "forty.mp4"
    write_video(path, num_frames=40, size=(32, 48))
    return str(path)


def test_repeats_are_other_augmentations_of_the_same_frames(video: str) -> None:
    twice = train_clips(video, TABLE_8, ClipShape(4, 16), rng=random.Random(3)).clips
    assert [tuple(clip.shape) for clip in twice] == [(4, 3, 16, 16)] * 2
    assert not torch.equal(*twice)
    # By hand: one draw of frames, then an augmentation after the other from the same random numbers.
    rng = random.Random(3)
    with open_video(video) as opened:
        frames = opened.frames(sampling.dense(40, clip_frames=4, stride_frames=2, rng=rng))
    for clip in twice:
        assert torch.equal(clip, augmented(frames, TABLE_8, size=16, rng=rng))
        assert clip.is_contiguous()


def test_augmentations_come_in_the_order_of_table_8() -> None:
    clip = torch.randint(256, (4, 3, 32, 48), dtype=torch.uint8)
    data = replace(TABLE_8, erasing=1.0)
    rng = random.Random(1)
    expected = rand_augment(clip, rng=rng, magnitude=9.0, num_ops=2)
    expected = transforms.random_resized_crop(expected, size=16, rng=rng)
    expected = transforms.flip(expected, rng)
    expected = transforms.random_erasing(expected, rng=rng, prob=1.0)
    assert torch.equal(augmented(clip, data, size=16, rng=random.Random(1)), expected)
    assert not torch.equal(augmented(clip, replace(data, erasing=0.0), size=16, rng=random.Random(1)), expected)


def test_without_settings_a_clip_is_cropped_and_flipped_only() -> None:
    clip = torch.randint(256, (4, 3, 32, 48), dtype=torch.uint8)
    expected = transforms.multi_scale_crop(clip, size=16, rng=random.Random(7))
    assert torch.equal(augmented(clip, PLAIN, size=16, rng=random.Random(7)), expected)


def test_uniform_clips_span_the_video(video: str) -> None:
    data = replace(PLAIN, sampling="uniform")
    (clip,) = train_clips(video, data, ClipShape(8, 16), rng=random.Random(0)).clips
    rng = random.Random(0)
    indices = sampling.uniform(40, clip_frames=8, rng=rng)
    assert all(5 * i <= index < 5 * (i + 1) for i, index in enumerate(indices))
    with open_video(video) as opened:
        expected = transforms.multi_scale_crop(opened.frames(indices), size=16, rng=rng)
    assert torch.equal(clip, expected)

    views = views_of(video, data, ClipShape(8, 16), clips=2, crops=3).views_VTCHW
    assert views.shape == (6, 8, 3, 16, 16)
    with open_video(video) as opened:
        for clip_number, indices in enumerate(sampling.uniform_views(40, clip_frames=8, clips=2)):
            crops = transforms.test_crops(opened.frames(indices), size=16, crops=3)
            for crop_number, crop in enumerate(crops):
                assert torch.equal(views[3 * clip_number + crop_number], crop)


def test_the_stride_follows_the_frame_rate_when_asked() -> None:
    data = Data(stride_frames=4, target_fps=30)
    assert [stride_of(fps, data) for fps in (30.0, 60.0, 15.0, 25.0, 5.0, None)] == [4, 8, 2, 3, 1, 4]
    assert stride_of(60.0, Data(stride_frames=4)) == 4


def test_a_batch_holds_the_repeats_side_by_side(video: str) -> None:
    catalog = read_catalog(Listing(root=Path(video).parent), labelled=False)
    data = replace(TABLE_8, num_workers=0)
    (batch,) = TrainLoader(catalog, data, ClipShape(4, 16), batch_size=3, seed=0, num_steps=3, start_step=2)
    assert batch.clip_BTCHW.shape == (6, 4, 3, 16, 16)
    assert batch.sample_B.tolist() == list(range(12, 18))  # (step 2 · batch 3 + position) · 2 + repeat
    second = batch.part(1, of=3)
    assert second.sample_B.tolist() == [14, 15]
    assert torch.equal(second.clip_BTCHW, batch.clip_BTCHW[2:4])
    halves = [
        TrainLoader(catalog, data, ClipShape(4, 16), batch_size=4, seed=0, num_steps=1, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    (whole,) = TrainLoader(catalog, data, ClipShape(4, 16), batch_size=4, seed=0, num_steps=1)
    assert torch.equal(torch.cat([next(iter(half)).clip_BTCHW for half in halves]), whole.clip_BTCHW)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeats": 0}, "repeats is 0; accepted: at least 1"),
        ({"erasing": 1.5}, r"erasing is 1\.5; accepted: at least 0, at most 1"),
        ({"rand_augment_magnitude": 11}, "at least 0, at most 10"),
        ({"sampling": "random"}, "accepted: dense, spread, uniform"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Data(**fields)
