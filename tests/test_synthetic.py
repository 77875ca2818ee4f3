"""Rendered videos: the label is the motion, and nothing but the motion."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mam2.config import UserError, seed_of
from mam2.data import synthetic
from mam2.data.synthetic import MOTIONS, render, write_dataset, write_video
from mam2.data.video.pyav import PyAVVideo

PAIRS = (("left", "right"), ("up", "down"), ("counter_clockwise", "clockwise"), ("recede", "approach"))
SEEDS = range(8)


def flow(clip_TCHW: Tensor) -> dict[str, float]:
    """A clip's average motion of each kind: the affine flow that keeps brightness constant, by least squares.

    Around the frame's middle, with x to the right and y down, dI/dt = -(u dI/dx + v dI/dy), where
    u = a + b x + c y and v = d + e x + f y.
    """
    gray = clip_TCHW.float().mean(dim=1)
    middle = (gray[:-1] + gray[1:])[:, 1:-1, 1:-1] / 2
    dt = (gray[1:] - gray[:-1])[:, 2:-2, 2:-2]
    dx = (middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2]) / 2
    dy = (middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1]) / 2
    axis = torch.linspace(-1, 1, dt.shape[-1])
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    columns = torch.stack([dx, dx * x, dx * y, dy, dy * x, dy * y], dim=-1).flatten(0, 2)
    a, b, c, d, e, f = torch.linalg.lstsq(columns, -dt.flatten()[:, None]).solution[:, 0].tolist()
    return {"right": a, "down": d, "clockwise": e - c, "approach": b + f}


def test_a_video_follows_from_its_motion_and_seed() -> None:
    first = render("left", seed=3)
    assert first.shape == (20, 3, 48, 48)
    assert first.dtype == torch.uint8
    torch.manual_seed(99)  # the global random numbers play no part
    assert torch.equal(render("left", seed=3), first)
    assert not torch.equal(render("left", seed=4), first)
    assert not torch.equal(render("up", seed=3), first)


def test_rendering_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    render("up", seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_length_and_size() -> None:
    assert render("approach", seed=0, num_frames=5, size=32).shape == (5, 3, 32, 32)


@pytest.mark.parametrize(("back", "forth"), PAIRS)
def test_motion_goes_the_way_the_label_says(back: str, forth: str) -> None:
    for motion, sign in ((back, -1), (forth, 1)):
        found = [flow(render(motion, seed=seed, num_frames=17))[forth] for seed in SEEDS]
        assert sum(found) * sign > 0, motion
        assert sum(value * sign > 0 for value in found) >= 7, motion


@pytest.mark.parametrize(("back", "forth"), PAIRS)
def test_opposite_motions_share_their_middle_frame(back: str, forth: str) -> None:
    for seed in SEEDS:
        assert torch.equal(render(back, seed=seed, num_frames=5)[2], render(forth, seed=seed, num_frames=5)[2])


@pytest.mark.parametrize(("back", "forth"), PAIRS)
def test_a_reversed_video_is_one_of_the_opposite_motion(back: str, forth: str) -> None:
    """But for noise and the background's small drift: so no single frame tells the two apart."""
    reverse, straight = 0.0, 0.0
    for seed in SEEDS:
        first, second = (render(motion, seed=seed, num_frames=9).float() for motion in (back, forth))
        reverse += (first.flip(0) - second).abs().mean().item()
        straight += (first - second).abs().mean().item()
    assert reverse < 0.6 * straight


def outlines(monkeypatch: pytest.MonkeyPatch, motion: str) -> Tensor:
    """Videos of white shapes on black: (clips, T, H, W), from 0 to 1."""
    shades = itertools.cycle((0.0, 1.0))  # the background is painted first, then the shape
    monkeypatch.setattr(synthetic, "_texture", lambda x, y, rng: torch.full((len(x), 3, *x.shape[1:]), next(shades)))
    videos = [render(motion, seed=seed_of(7, seed), num_frames=8, size=24) for seed in range(100)]
    return torch.stack(videos)[:, :, 0].float() / 255


def test_single_frames_of_all_motions_have_the_shape_in_like_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame drawn from any video, moving or not that way, has its shape as far out and as large as any other."""
    axis = torch.linspace(-1, 1, 24)
    figures = {}
    for motion in MOTIONS:
        shape = outlines(monkeypatch, motion).flatten(0, 1)
        area = shape.mean(dim=(1, 2))
        x = (shape.mean(dim=1) * axis).mean(dim=1) / area
        y = (shape.mean(dim=2) * axis).mean(dim=1) / area
        figures[motion] = torch.stack([x.mean(), y.mean(), x.std(), y.std(), area.mean(), area.std()])
    # Over 100 videos chance moves each by some 0.02; shapes that rest in the middle would differ by 0.2.
    for motion in MOTIONS:
        torch.testing.assert_close(figures[motion], figures["left"], atol=0.06, rtol=0, msg=motion)


def test_an_unknown_motion_is_refused() -> None:
    with pytest.raises(UserError, match="'sideways' is no motion; accepted: left, right"):
        render("sideways", seed=0)


def test_a_written_video_reads_back_as_it_was(tmp_path: Path) -> None:
    clip = render("right", seed=1, num_frames=6, size=32)
    write_video(tmp_path / "clip.mp4", clip)
    with PyAVVideo(tmp_path / "clip.mp4") as video:
        read = video.frames(range(6))
    assert read.shape == clip.shape
    assert (read.float() - clip.float()).abs().mean() < 8  # of 255: chroma is halved, and H.264 loses a little


def test_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    blocks = []
    for seed in range(10):
        clip = render("approach", seed=seed, num_frames=20, size=28)
        written = set()
        for round_ in range(3):
            blocks.append(bytes(10_000 * seed + round_))  # so that the encoder's memory lies elsewhere
            write_video(file, clip)
            written.add(file.read_bytes())
        assert len(written) == 1


def test_a_dataset_has_a_folder_a_class_and_keeps_what_is_there(tmp_path: Path) -> None:
    kept = tmp_path / "left" / "00001.mp4"
    kept.parent.mkdir()
    kept.write_bytes(b"already here")
    write_dataset(tmp_path, videos_per_class=2, seed=5, num_frames=4, size=32)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted(f"{motion}/{i:05d}.mp4" for motion in MOTIONS for i in range(2))
    assert kept.read_bytes() == b"already here"
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")}
    assert len(set(written.values())) == 16
    write_dataset(str(tmp_path), videos_per_class=2, seed=5, num_frames=4, size=32)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")} == written
