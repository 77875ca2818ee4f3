import random

import pytest
import torch

from mam2.data import transforms


def coordinates(height: int, width: int, num_frames: int = 2) -> torch.Tensor:
    """A clip whose first channel is the row, whose second is the column and whose third is the frame."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    return torch.stack([torch.stack([rows, columns, torch.full_like(rows, t)]) for t in range(num_frames)]).to(
        torch.uint8
    )


def test_multi_scale_crop_takes_the_sizes_and_places_of_the_reference(monkeypatch):
    taken = []
    monkeypatch.setattr(transforms, "_resized_crop", lambda clip, *box: taken.append(box))
    rng = random.Random(0)
    for _ in range(4000):
        transforms.multi_scale_crop(torch.zeros(1, 3, 240, 320, dtype=torch.uint8), size=112, rng=rng)
    sides = [240, 210, 180, 158]
    allowed = {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert {(height, width) for _, _, height, width, _ in taken} == allowed
    places = {(top // ((240 - 180) // 4), left // ((320 - 180) // 4)) for top, left, h, w, _ in taken if h == w == 180}
    corners_and_centre = {(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)}
    half_way = {(0, 2), (2, 0), (2, 4), (4, 2), (1, 1), (1, 3), (3, 1), (3, 3)}
    assert places == corners_and_centre | half_way
    assert all(top + height <= 240 and left + width <= 320 for top, left, height, width, _ in taken)


@pytest.mark.parametrize(
    ("short_side", "size", "crop"),
    [
        (226, 224, 224),
        (227, 224, 227),
        (224, 224, 224),
        (222, 224, 222),
    ],  # the last: no crop beyond the frame
)
def test_multi_scale_crop_snaps_to_the_output(monkeypatch, short_side, size, crop):
    taken = set()
    monkeypatch.setattr(transforms, "_resized_crop", lambda clip, *box: taken.add(box[2]))
    rng = random.Random(0)
    for _ in range(100):
        transforms.multi_scale_crop(torch.zeros(1, 3, short_side, 400, dtype=torch.uint8), size=size, rng=rng)
    assert max(taken) == crop


def test_a_crop_of_the_output_size_is_not_resampled():
    clip = coordinates(112, 112)
    rng = random.Random(3)
    crops = [transforms.multi_scale_crop(clip, size=112, rng=rng) for _ in range(30)]
    assert any(torch.equal(crop, clip) for crop in crops)


@pytest.mark.parametrize("crop", [transforms.multi_scale_crop, transforms.random_resized_crop])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (32, 32), (20, 200)])
def test_one_crop_for_all_frames(crop, shape):
    rng = random.Random(0)
    for _ in range(20):
        out = crop(coordinates(*shape, num_frames=3), size=32, rng=rng)
        assert out.shape == (3, 3, 32, 32)
        assert out.dtype == torch.uint8
        assert torch.equal(out[0, :2], out[2, :2])
        assert out[:, 2].amax((1, 2)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("crop", [transforms.multi_scale_crop, transforms.random_resized_crop])
def test_crops_follow_from_the_seed(crop):
    clip = coordinates(60, 90)
    assert torch.equal(crop(clip, size=32, rng=random.Random(7)), crop(clip, size=32, rng=random.Random(7)))
    assert not torch.equal(crop(clip, size=32, rng=random.Random(7)), crop(clip, size=32, rng=random.Random(8)))


def test_the_layout_in_memory_does_not_change_the_crop():
    clip = coordinates(60, 90)
    channels_last = clip.contiguous(memory_format=torch.channels_last)
    first, second = (transforms.multi_scale_crop(c, size=32, rng=random.Random(1)) for c in (clip, channels_last))
    assert torch.equal(first, second)


def test_random_resized_crop_keeps_to_area_and_ratio(monkeypatch):
    taken = []
    monkeypatch.setattr(transforms, "_resized_crop", lambda clip, *box: taken.append(box))
    rng = random.Random(0)
    clip = torch.zeros(1, 3, 240, 320, dtype=torch.uint8)
    for _ in range(2000):
        transforms.random_resized_crop(clip, size=112, rng=rng)
    areas = [h * w / (240 * 320) for _, _, h, w, _ in taken]
    ratios = [w / h for _, _, h, w, _ in taken]
    assert 0.079 < min(areas) < 0.1
    assert 0.9 < max(areas) <= 1
    assert 0.73 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.36
    taken.clear()
    transforms.random_resized_crop(clip, size=112, rng=rng, area=(1, 1), ratio=(4 / 3, 4 / 3))
    assert taken == [(0, 0, 240, 320, 112)]


def test_random_resized_crop_of_a_very_wide_frame_is_central(monkeypatch):
    taken = []
    monkeypatch.setattr(transforms, "_resized_crop", lambda clip, *box: taken.append(box))
    clip = torch.zeros(1, 3, 30, 900, dtype=torch.uint8)
    transforms.random_resized_crop(clip, size=16, rng=random.Random(0), area=(0.5, 1))
    assert taken == [(0, 430, 30, 40, 16)]


def test_flip_mirrors_the_whole_clip():
    clip = coordinates(4, 6)
    assert torch.equal(transforms.flip(clip, random.Random(0), p=1.0), clip.flip(-1))
    assert torch.equal(transforms.flip(clip, random.Random(0), p=0.0), clip)
    rng = random.Random(0)
    flipped = sum(bool(transforms.flip(clip, rng)[0, 1, 0, 0] == 5) for _ in range(1000))
    assert 450 < flipped < 550


def test_test_crops_lie_along_the_long_side():
    clip = coordinates(32, 62)
    left, middle, right = transforms.test_crops(clip, size=32, crops=3)
    assert [crop[0, 1, 0, 0].item() for crop in (left, middle, right)] == [0, 15, 30]
    assert torch.equal(right, clip[..., 30:62])
    assert torch.equal(transforms.test_crops(clip, size=32, crops=1)[0], middle)
    tall = transforms.test_crops(clip.transpose(-1, -2), size=32, crops=3)
    assert [crop[0, 1, 0, 0].item() for crop in tall] == [0, 15, 30]


def test_test_crops_resize_the_short_side():
    crops = transforms.test_crops(coordinates(48, 64), size=24, crops=2)
    assert [tuple(crop.shape) for crop in crops] == [(2, 3, 24, 24)] * 2
    assert abs(crops[1][0, 1].float().mean() - (64 - 24 - 0.5)) < 1
