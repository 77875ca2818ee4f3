"""The yardstick of motion: what a regression can and can't predict, and how a model's predictions are judged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import motion_yardstick as yardstick
import pytest
import torch
from helpers import TINY, mam2
from torch import Tensor

from mam2.masks import Mask, take
from mam2.objectives.contract import Objective, Reconstruction
from mam2.patches import patchify, to_float
from mam2.recipes import get_recipe
from mam2.targets.maker import TargetMaker, Targets
from mam2.targets.motion import rgb_difference
from mam2.train.pretrain import Pretrain


@pytest.fixture
def config() -> Pretrain:
    """Clips of 3 frames of 16², and patches of 4²."""
    tiny = cast(Pretrain, get_recipe("mam2_tiny"))
    return replace(tiny, encoder=replace(tiny.encoder, frames=3, size=16, patch_size=4))


def clips(num_chunks: int, *, same_everywhere: bool) -> list[Tensor]:
    """Noise of every pixel; or pixels that all change alike, by another amount in each frame and clip."""
    generator = torch.Generator().manual_seed(1)
    size = (1, 1) if same_everywhere else (16, 16)
    shape = (num_chunks, yardstick.CHUNK, 3, 3, *size)
    noise = torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator)
    return list(noise.expand(-1, -1, -1, -1, 16, 16))


@pytest.mark.parametrize("unit", yardstick.UNITS)
def test_the_regression_finds_what_is_linear_and_nothing_in_noise(config: Pretrain, unit: str) -> None:
    mask = yardstick.mask_of(config, 0)
    for same_everywhere, lowest, highest in ((True, 0, 0.01), (False, 0.95, 1.15)):
        train, test = clips(10, same_everywhere=same_everywhere), clips(12, same_everywhere=same_everywhere)[10:]
        share, penalty = yardstick.shares_of_regression(train, test, mask, config, unit)
        assert lowest <= share <= highest
        assert penalty < 0.1 if same_everywhere else penalty == yardstick.STRENGTHS[-1]


class Knows:
    """Predicts a share of the true motion, in RGB or over the clip's root mean square."""

    def __init__(self, share: float, scaled: bool) -> None:
        self.share, self.scaled = share, scaled

    def reconstruct(self, clip_BTCHW: Tensor, mask: Mask, targets: Targets) -> Reconstruction:
        motion = rgb_difference(to_float(clip_BTCHW))
        if self.scaled:
            motion = motion / motion.square().mean(dim=(1, 2, 3, 4), keepdim=True).sqrt()
        true_BTMD = take(patchify(motion, 4), mask.masked_BTM[:, :2])
        last = torch.full_like(true_BTMD[:, :1], 100)  # the last frame has no target
        return Reconstruction(None, torch.cat([self.share * true_BTMD, last], dim=1))


@pytest.mark.parametrize("scale", ["raw", "clip"])
@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_model_is_judged_by_its_error_over_that_of_none(
    config: Pretrain, scale: Literal["raw", "clip"], share: float
) -> None:
    config = replace(config, targets=replace(config.targets, motion_scale=scale))
    targets = TargetMaker(config.targets, patch_size=4, device=torch.device("cpu"), appearance=False)
    model = cast(Objective, Knows(share, scale == "clip"))
    mask = yardstick.mask_of(config, 3)
    found = yardstick.shares_of_model(model, targets, config, clips(2, same_everywhere=True), mask)
    expected = pytest.approx((1 - share) ** 2, abs=1e-5)
    assert found == {"clip": expected, "rgb": expected}


@pytest.mark.slow
def test_the_program_compares_runs(videos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        done = mam2(
            "pretrain", "mam2_tiny", "--data.root", videos, "--out", tmp_path / str(seed), *TINY,
            "--loop.duration", "2 steps", "--loop.seed", seed,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    words = ["--train", str(videos), "--test", str(videos), "--train-clips", "100", "--test-clips", "50"]
    out = tmp_path / "yardstick.json"
    yardstick.main([str(tmp_path / "0"), str(tmp_path / "1"), *words, "--masks", "2", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["steps"] == ["2 steps", "2 steps"]
    for masks in report["masks"].values():
        assert len(masks) == 2
        for shares in masks:
            assert 0 < shares["ridge"] < 2
            assert len(set(shares["models"])) == 2
    for nonsense in (["--test-clips", "10"], ["--masks", "0"]):
        with pytest.raises(SystemExit):
            yardstick.main([str(tmp_path / "0"), *words, *nonsense])
