"""Crops, RandAugment and erasing against computations by hand and Pillow."""

import collections
import math
import random
import statistics

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional

from mam2.data import rand_augment, transforms
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD

GREY = (124, 116, 104)


def coordinates(height: int, width: int, num_frames: int = 2) -> torch.Tensor:
    """A clip whose first channel is the row, whose second is the column and whose third is the frame."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    return torch.stack([torch.stack([rows, columns, torch.full_like(rows, t)]) for t in range(num_frames)]).to(
        torch.uint8
    )


def test_multi_scale_crop_takes_the_sizes_and_places_of_the_reference(monkeypatch):
    taken = []
    monkeypatch.setattr(transforms, "resized_crop", lambda clip, *box: taken.append(box))
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
    monkeypatch.setattr(transforms, "resized_crop", lambda clip, *box: taken.add(box[2]))
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
    monkeypatch.setattr(transforms, "resized_crop", lambda clip, *box: taken.append(box))
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


def test_random_resized_crop_of_a_very_wide_frame_is_central(monkeypatch):
    taken = []
    monkeypatch.setattr(transforms, "resized_crop", lambda clip, *box: taken.append(box))
    clip = torch.zeros(1, 3, 30, 900, dtype=torch.uint8)
    transforms.random_resized_crop(clip, size=16, rng=random.Random(0))
    assert taken == [(0, 430, 30, 40, 16)]


def test_flip_mirrors_the_whole_clip():
    clip = coordinates(4, 6)
    rng = random.Random(0)
    both = [transforms.flip(clip, rng) for _ in range(20)]
    assert {torch.equal(found, clip) for found in both} == {True, False}
    assert all(torch.equal(found, clip) or torch.equal(found, clip.flip(-1)) for found in both)
    flipped = sum(bool(transforms.flip(clip, rng)[0, 1, 0, 0] == 5) for _ in range(1000))
    assert 450 < flipped < 550


@pytest.mark.parametrize("size", [(31, 17), (96, 64), (40, 56), (40, 57)])
@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "crop"])
@pytest.mark.parametrize("bytes_too", [True, False])
def test_resized_frames_are_those_of_torchvision_to_the_bit(monkeypatch, size, num_frames, layout, bytes_too):
    if not bytes_too:  # as on a processor without vector instructions
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    clip = torch.randint(256, (num_frames, 3, 40, 56), dtype=torch.uint8, generator=torch.manual_seed(0))
    if layout == "channels last":
        clip = clip.contiguous(memory_format=torch.channels_last)
    if layout == "crop":
        clip = clip[..., 3:38, 5:50]
    found, expected = transforms.resized(clip, *size), functional.resize(clip, list(size), antialias=True)
    assert torch.equal(found, expected)
    assert found.stride()[1:] == expected.stride()[1:]


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


class Positive(random.Random):
    """Draws that turn no sign round."""

    def random(self) -> float:
        return 0.0


class Negative(random.Random):
    def random(self) -> float:
        return 0.9


def picture(num_frames: int = 2, height: int = 40, width: int = 56) -> torch.Tensor:
    """Smooth random clips that use most of the range, as the decoder gives them: channels last in memory."""
    coarse = torch.rand(num_frames, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 230 + 12
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)
    return fine.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


# What timm's "increasing" operations do with Pillow, at three magnitudes and, for those with a direction, both signs.
# (name, share of the largest magnitude, draws, the same with Pillow)
PILLOW = [
    ("auto_contrast", 0.9, Positive(), ImageOps.autocontrast),
    ("equalize", 0.9, Positive(), ImageOps.equalize),
    ("invert", 0.9, Positive(), ImageOps.invert),
    ("rotate", 0.9, Positive(), lambda i: i.rotate(27, Image.Resampling.BILINEAR, fillcolor=GREY)),
    ("rotate", 1.0, Negative(), lambda i: i.rotate(-30, Image.Resampling.BILINEAR, fillcolor=GREY)),
    ("posterize", 0.0, Positive(), lambda i: ImageOps.posterize(i, 4)),
    ("posterize", 0.7, Positive(), lambda i: ImageOps.posterize(i, 2)),
    ("posterize", 0.9, Positive(), lambda i: ImageOps.posterize(i, 1)),
    ("posterize", 1.0, Positive(), lambda i: ImageOps.posterize(i, 1)),
    ("solarize", 0.0, Positive(), lambda i: i),
    ("solarize", 0.5, Positive(), lambda i: ImageOps.solarize(i, 128)),
    ("solarize", 0.9, Positive(), lambda i: ImageOps.solarize(i, 26)),
    ("solarize", 1.0, Positive(), ImageOps.invert),
    ("solarize_add", 0.0, Positive(), lambda i: i),
    ("solarize_add", 0.9, Positive(), lambda i: i.point(lambda v: min(255, v + 99) if v < 128 else v)),
    ("solarize_add", 1.0, Positive(), lambda i: i.point(lambda v: min(255, v + 110) if v < 128 else v)),
    ("colour", 0.9, Positive(), lambda i: ImageEnhance.Color(i).enhance(1.81)),
    ("colour", 1.0, Negative(), lambda i: ImageEnhance.Color(i).enhance(0.1)),
    ("contrast", 0.9, Positive(), lambda i: ImageEnhance.Contrast(i).enhance(1.81)),
    ("contrast", 0.5, Negative(), lambda i: ImageEnhance.Contrast(i).enhance(0.55)),
    ("brightness", 0.9, Positive(), lambda i: ImageEnhance.Brightness(i).enhance(1.81)),
    ("brightness", 1.0, Negative(), lambda i: ImageEnhance.Brightness(i).enhance(0.1)),
    ("sharpness", 0.9, Positive(), lambda i: ImageEnhance.Sharpness(i).enhance(1.81)),
    ("sharpness", 0.5, Negative(), lambda i: ImageEnhance.Sharpness(i).enhance(0.55)),
    ("shear_x", 0.9, Positive(), lambda i: affine(i, 1, 0.27, 0, 0, 1, 0)),
    ("shear_x", 1.0, Negative(), lambda i: affine(i, 1, -0.3, 0, 0, 1, 0)),
    ("shear_y", 0.9, Positive(), lambda i: affine(i, 1, 0, 0, 0.27, 1, 0)),
    ("shear_y", 1.0, Negative(), lambda i: affine(i, 1, 0, 0, -0.3, 1, 0)),
    ("translate_x", 1.0, Positive(), lambda i: affine(i, 1, 0, -25, 0, 1, 0)),
    ("translate_x", 0.5, Negative(), lambda i: affine(i, 1, 0, 13, 0, 1, 0)),
    ("translate_y", 1.0, Positive(), lambda i: affine(i, 1, 0, 0, 0, 1, -18)),
    ("translate_y", 0.5, Negative(), lambda i: affine(i, 1, 0, 0, 0, 1, 9)),
]


@pytest.mark.parametrize(("name", "share", "rng", "pillow"), PILLOW, ids=[f"{row[0]}-{row[1]}" for row in PILLOW])
def test_rand_augment_does_what_timm_does_with_pillow(name, share, rng, pillow):
    clip = picture()
    wanted = [np.asarray(pillow(Image.fromarray(frame))) for frame in clip.permute(0, 2, 3, 1).numpy()]
    wanted = torch.from_numpy(np.stack(wanted)).permute(0, 3, 1, 2)
    found = rand_augment.RAND_AUGMENT[name](clip, share, rng)
    difference = (found.int() - wanted.int()).abs()
    assert found.dtype == torch.uint8
    assert found.shape == clip.shape
    # They round differently, and where grey meets picture only torchvision blends the two.
    assert (difference <= 2).float().mean() > (0.95 if name in ("rotate", "shear_x", "shear_y") else 0.9999)
    assert difference.float().mean() < 1


def test_rand_augment_knows_the_15_operations_and_each_is_tested():
    assert len(rand_augment.RAND_AUGMENT) == 15
    assert set(rand_augment.RAND_AUGMENT) == {row[0] for row in PILLOW}


@pytest.mark.parametrize(("settings", "applied", "mean"), [({}, 1.0, 0.9), ({"magnitude": 7, "num_ops": 4}, 2.0, 0.7)])
def test_rand_augment_draws_operations_and_magnitudes(monkeypatch, settings, applied, mean):
    taken = []
    for name in rand_augment.RAND_AUGMENT:
        monkeypatch.setitem(
            rand_augment.RAND_AUGMENT, name, lambda clip, share, rng, name=name: taken.append((name, share)) or clip
        )
    rng, clip = random.Random(0), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    for _ in range(3000):
        rand_augment.rand_augment(clip, rng=rng, **settings)
    counts = collections.Counter(name for name, _ in taken)
    shares = [share for _, share in taken]
    assert len(taken) / 3000 == pytest.approx(applied, abs=0.06)
    assert set(counts) == set(rand_augment.RAND_AUGMENT)
    assert max(counts.values()) < 1.6 * min(counts.values())
    assert statistics.mean(shares) == pytest.approx(mean, abs=0.003)
    assert statistics.stdev(shares) == pytest.approx(0.05, abs=0.003)
    assert max(shares) <= 1


def test_rand_augment_clips_magnitudes(monkeypatch):
    taken = []
    for name in rand_augment.RAND_AUGMENT:
        monkeypatch.setitem(rand_augment.RAND_AUGMENT, name, lambda clip, share, rng: taken.append(share) or clip)
    rng, clip = random.Random(0), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    monkeypatch.setattr(rand_augment, "PROBABILITY", 1.0)
    for magnitude, magnitude_std in ((9, 0), (10, 3), (0, 3)):
        monkeypatch.setattr(rand_augment, "MAGNITUDE_STD", magnitude_std)
        for _ in range(100):
            rand_augment.rand_augment(clip, rng=rng, magnitude=magnitude)
    assert set(taken[:200]) == {0.9}
    assert (min(taken), max(taken)) == (0, 1)


@pytest.mark.parametrize("name", sorted(rand_augment.RAND_AUGMENT))
def test_rand_augment_treats_all_frames_alike_and_keeps_its_input(name):
    clip = picture(num_frames=1).repeat(3, 1, 1, 1)
    before, op = clip.clone(), rand_augment.RAND_AUGMENT[name]
    out = op(clip.contiguous(), 0.9, random.Random(2))
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert torch.equal(clip, before)
    assert not torch.equal(out, clip)
    assert torch.equal(out, op(clip.contiguous(memory_format=torch.channels_last), 0.9, random.Random(2)))


def test_rand_augment_follows_from_its_draws_alone():
    clip, before = picture(), torch.random.get_rng_state()
    out = [rand_augment.rand_augment(clip, rng=random.Random(seed)) for seed in range(20)]
    again = [rand_augment.rand_augment(clip.contiguous(), rng=random.Random(seed)) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True))
    unchanged = [a is clip for a in out]
    assert 1 < sum(unchanged) < 10  # a quarter
    assert all(a.is_contiguous(memory_format=torch.channels_last) for a in out)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "colour", "contrast", "sharpness"])
def test_a_clip_of_one_grey_survives(name):
    for value in (0, 124, 255):
        clip = torch.full((2, 3, 8, 8), value, dtype=torch.uint8)
        out = rand_augment.RAND_AUGMENT[name](clip, 0.9, random.Random(0))
        assert (out.int() - clip.int()).abs().max() <= 1  # torchvision cuts decimals off


def test_the_means_are_the_encoders():
    assert torch.allclose(transforms.MEAN_C11.flatten() / 255, torch.tensor(IMAGENET_MEAN))
    assert torch.allclose(transforms.STD_C11.flatten() / 255, torch.tensor(IMAGENET_STD))
    assert tuple(rand_augment.GREY_C11.flatten().int().tolist()) == GREY


def test_erased_boxes_keep_to_area_and_aspect():
    rng = random.Random(0)
    boxes = [transforms.erased_box(224, 224, rng) for _ in range(3000)]
    areas = [height * width / 224**2 for _, _, height, width in boxes]
    aspects = [height / width for _, _, height, width in boxes]
    assert 0.019 < min(areas) < 0.022
    assert 0.32 < max(areas) < 0.335
    assert 0.29 < min(aspects) < 0.32
    assert 3.1 < max(aspects) < 3.4
    assert abs(statistics.median(map(math.log, aspects))) < 0.05
    assert all(0 <= top <= 224 - height and 0 <= left <= 224 - width for top, left, height, width in boxes)
    assert {top == 0 for top, *_ in boxes} == {True, False}


def test_erasing_takes_the_same_box_from_all_frames():
    clip = torch.zeros(4, 3, 32, 48, dtype=torch.uint8)
    for seed in range(20):
        out = transforms.random_erasing(clip, rng=random.Random(seed), prob=1)
        rows, columns = ((out != 0).any(0).any(0).any(axis) for axis in (1, 0))
        box = rows[:, None] & columns[None]  # a rectangle
        assert not out[..., ~box].any()
        assert (out[..., box] != 0).float().mean() > 0.9  # noise of mean 124 or less is rarely 0
        assert not torch.equal(out[0], out[1])  # of noise that is new in each frame
        assert not clip.any()


def test_erasing_leaves_the_rest_and_happens_as_often_as_asked():
    clip, rng = picture(), random.Random(0)
    erased = [transforms.random_erasing(clip, rng=rng) for _ in range(1000)]
    assert 210 < sum(out is not clip for out in erased) < 290
    assert transforms.random_erasing(clip, rng=rng, prob=0) is clip
    tiny = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    assert transforms.random_erasing(tiny, rng=rng, prob=1) is tiny  # no box fits


def test_erased_pixels_are_noise_of_unit_variance_after_normalisation():
    clip = torch.zeros(8, 3, 96, 96, dtype=torch.uint8)
    out = transforms.random_erasing(clip, rng=random.Random(5), prob=1)
    rows, columns = ((out != 0).any(0).any(0).any(axis) for axis in (1, 0))
    box = out[:, :, rows][..., columns].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    noise = (box - mean) / std
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(1, abs=0.06)  # some is cut off at 0 and 255
