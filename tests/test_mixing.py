"""Mixup and cutmix against computations by hand."""

import math
import random
import statistics

import pytest
import torch
import torch.nn.functional as F

from mam2.config import UserError
from mam2.data import mixing
from mam2.data.mixing import mix


class Draws(random.Random):
    """λ is 0.75, the box's centre is the frame's top left corner."""

    def betavariate(self, alpha: float, beta: float) -> float:
        return 0.75

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0


def batch(*values: float, size: int = 8) -> torch.Tensor:
    """Clips of 2 frames, each of one value all over."""
    return torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, size, size).contiguous()


def test_without_mixing_the_target_is_the_smoothed_label():
    clip, label = batch(0.1, 0.2), torch.tensor([2, 0])
    mixed, target = mix(clip, label, num_classes=4, rng=random.Random(0), mixup=0, cutmix=0)
    assert torch.equal(mixed, clip)
    assert torch.allclose(target, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5], [0.0, 1.0, -2.0, 0.7]])
    assert F.cross_entropy(logits, target).item() == pytest.approx(
        F.cross_entropy(logits, label, label_smoothing=0.1).item(), abs=1e-6
    )
    _, target = mix(clip, label, num_classes=4, rng=random.Random(0), mixup=0, cutmix=0, smoothing=1)
    assert target.unique().tolist() == [0.25]


def test_mixup_by_hand():
    clip, label = batch(0.0, 0.2, 0.6, 1.0), torch.tensor([0, 1, 1, 2])
    mixed, target = mix(clip, label, num_classes=4, rng=Draws(), cutmix=0, smoothing=0)
    assert torch.allclose(mixed, batch(0.25, 0.3, 0.5, 0.75))  # 0.75 of itself, 0.25 of the batch the other way round
    wanted = [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0.25, 0, 0.75, 0]]
    assert torch.allclose(target, torch.tensor(wanted))
    _, target = mix(clip, label, num_classes=4, rng=Draws(), cutmix=0, smoothing=0.1)
    assert torch.allclose(target[0], torch.tensor([0.7, 0.025, 0.25, 0.025]))


def test_cutmix_by_hand():
    clip, label = batch(0.0, 0.2, 0.6, 1.0), torch.tensor([0, 1, 1, 2])
    mixed, target = mix(clip, label, num_classes=3, rng=Draws(), mixup=0, smoothing=0)
    # 1/4 of 8 x 8 is a box of 4 x 4; three quarters of it lie outside the frame, as its centre is the corner.
    wanted = clip.clone()
    wanted[..., :2, :2] = clip.flip(0)[..., :2, :2]
    assert torch.equal(mixed, wanted)
    assert torch.allclose(target[0], torch.tensor([1 - 4 / 64, 0, 4 / 64]))
    assert torch.allclose(target[1], torch.tensor([0.0, 1, 0]))


@pytest.mark.parametrize("size", [8, 17, 32])
@pytest.mark.parametrize("settings", [{}, {"mixup": 0}, {"cutmix": 0}])
def test_a_target_holds_as_much_of_a_label_as_the_clip_of_its_video(size, settings):
    clip, label = batch(1.0, 0.0, 1.0, 0.0, size=size), torch.tensor([1, 0, 1, 0])
    shares = []
    for seed in range(60):
        mixed, target = mix(clip, label, num_classes=2, rng=random.Random(seed), smoothing=0, **settings)
        assert torch.allclose(mixed.mean((1, 2, 3, 4)), target[:, 1], atol=1e-6)
        assert torch.allclose(target.sum(1), torch.ones(4))
        assert torch.equal(mixed[:, 0], mixed[:, 1])  # one box for all frames
        assert torch.equal(mixed[0], mixed[2])  # one λ, one box for the batch
        shares.append(target[0, 1].item())
    assert min(shares) < 0.4
    assert max(shares) > 0.9


def test_mixup_draws_lambda_from_its_beta_distribution():
    clip, label = batch(1.0, 0.0, size=1), torch.tensor([1, 0])
    rng = random.Random(0)
    drawn = [mix(clip, label, num_classes=2, rng=rng, cutmix=0, smoothing=0)[1][0, 1].item() for _ in range(3000)]
    assert statistics.mean(drawn) == pytest.approx(0.5, abs=0.02)
    assert statistics.pvariance(drawn) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "share"),
    [({}, 0.5), ({"cutmix": 0}, 0), ({"mixup": 0}, 1), ({"mixup": 0, "cutmix": 0}, 0)],
)
def test_one_of_the_two_a_batch(monkeypatch, settings, share):
    boxes = []
    monkeypatch.setattr(mixing, "box_of", lambda *arguments: boxes.append(arguments) or (0, 1, 0, 1))
    clip, label, rng = batch(0.0, 1.0, size=2), torch.tensor([0, 1]), random.Random(0)
    for _ in range(1000):
        mix(clip, label, num_classes=2, rng=rng, **settings)
    assert len(boxes) / 1000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(("draw", "alpha"), [(0.499, 1.0), (0.5, 0.8)])
def test_the_defaults_are_table_8s(monkeypatch, draw, alpha):
    rng, asked = Draws(), []
    monkeypatch.setattr(rng, "random", lambda: draw)
    monkeypatch.setattr(rng, "betavariate", lambda *parameters: asked.append(parameters) or 0.75)
    mix(batch(0.0, 1.0), torch.tensor([0, 1]), num_classes=2, rng=rng)
    assert asked == [(alpha, alpha)]  # of cutmix, of mixup


def test_boxes_cover_what_they_should_and_stay_inside():
    rng = random.Random(0)
    seen = torch.zeros(20, 30)
    for _ in range(3000):
        kept = rng.random()
        top, bottom, left, right = mixing.box_of(20, 30, kept, rng)
        assert 0 <= top <= bottom <= 20
        assert 0 <= left <= right <= 30
        assert bottom - top <= 20 * math.sqrt(1 - kept)
        assert right - left <= 30 * math.sqrt(1 - kept)
        seen[top:bottom, left:right] += 1
    assert seen.min() > 100
    assert mixing.box_of(20, 30, 0.0, Draws()) == (0, 10, 0, 15)
    top, bottom, left, right = mixing.box_of(20, 30, 1.0, rng)
    assert (bottom - top) * (right - left) == 0


def test_copies_of_a_video_are_mixed_with_other_videos():
    label = torch.tensor([0, 0, 1, 1, 2, 2])  # repeated augmentation: copies are neighbours
    _, target = mix(batch(*range(6)), label, num_classes=3, rng=Draws(), cutmix=0, smoothing=0)
    middle, ends = [0.0, 1, 0], [0.75, 0, 0.25]
    assert torch.allclose(target, torch.tensor([ends, ends, middle, middle, ends[::-1], ends[::-1]]))


@pytest.mark.parametrize("settings", [{"mixup": 0}, {"cutmix": 0}])
def test_the_middle_of_an_odd_batch_stays_as_it_is(settings):
    clip = torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mixed, target = mix(clip, torch.tensor([0, 1, 2]), num_classes=3, rng=Draws(), smoothing=0, **settings)
    assert torch.equal(mixed[1], clip[1])
    assert target[1].tolist() == [0, 1, 0]
    assert not torch.equal(mixed[0], clip[0])
    alone, target = mix(clip[:1], torch.tensor([2]), num_classes=3, rng=Draws(), smoothing=0, **settings)
    assert torch.equal(alone, clip[:1])
    assert target.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("settings", [{"mixup": 0}, {"cutmix": 0}, {"mixup": 0, "cutmix": 0}])
def test_pixels_become_floats_and_nothing_given_is_changed(settings):
    label = torch.tensor([0, 1])
    for clip in (torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([-2.0, 2.0])):
        clip = clip.view(2, 1, 1, 1, 1).repeat(1, 2, 3, 8, 8)
        before, label_before = clip.clone(), label.clone()
        mixed, target = mix(clip, label, num_classes=2, rng=Draws(), **settings)
        assert mixed.dtype == target.dtype == torch.float32
        assert torch.equal(clip, before)
        assert torch.equal(label, label_before)
        low, high = (0, 1) if clip.dtype == torch.uint8 else (-2, 2)
        edge = 0.25 * (high - low) if settings == {"cutmix": 0} else 0  # λ = 0.75 brings both clips nearer
        assert (mixed.min(), mixed.max()) == (low + edge, high - edge)


def test_the_mix_follows_from_its_draws_alone():
    clip = torch.rand(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    label, before = torch.arange(4), torch.random.get_rng_state()
    first, again, other = (mix(clip, label, num_classes=4, rng=random.Random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -1}, r"mixup is -1; it must be from 0 \(off\) up\."),
        ({"cutmix": -0.5}, r"cutmix is -0\.5; it must be from 0 \(off\) up\."),
        ({"smoothing": 1.5}, r"smoothing is 1\.5; it must be from 0 to 1\."),
        ({"smoothing": float("nan")}, r"smoothing is nan; it must be from 0 to 1\."),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        mix(batch(0.0, 1.0), torch.tensor([0, 1]), num_classes=2, rng=random.Random(0), **settings)
