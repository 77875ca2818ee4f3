"""The README's picture: scenes follow from their seed, car and balloon move, and predictions are drawn as colours."""

from dataclasses import replace

import pytest
import readme_picture
import torch
from readme_picture import NUM_FRAMES, SIDE, config, errors, predicted, random_scene, render, sheet

from mam2.config import Steps
from mam2.data.synthetic import write_video
from mam2.masks import Mask
from mam2.model.encoder import EncoderConfig
from mam2.objectives.contract import Reconstruction
from mam2.pictures.canvas import patch_mask
from mam2.targets.maker import Targets
from mam2.train.pretrain import pretrain
from mam2.trained import open_model


def test_a_video_follows_from_its_seed() -> None:
    video_TCHW = render(3)
    assert video_TCHW.shape == (NUM_FRAMES, 3, SIDE, SIDE)
    assert video_TCHW.dtype == torch.uint8
    assert torch.equal(video_TCHW, render(3))
    assert not torch.equal(video_TCHW[0], render(4)[0])


def test_the_car_moves_below_and_the_balloon_above(monkeypatch: pytest.MonkeyPatch) -> None:
    def moving_rows(**change: object) -> list[int]:
        scene = replace(random_scene(3), **change)
        monkeypatch.setattr(readme_picture, "random_scene", lambda seed: scene)
        video_TCHW = render(0).int()
        return (video_TCHW != video_TCHW[:1]).any(3).any(1).any(0).nonzero()[:, 0].tolist()

    assert moving_rows(car_speed=0.0, balloon_speed=(0.0, 0.0)) == []
    assert min(moving_rows(balloon_speed=(0.0, 0.0))) > 0.6 * SIDE
    assert max(moving_rows(car_speed=0.0)) < 0.6 * SIDE


def test_a_perfect_prediction_is_drawn_as_the_video(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "video.mp4", render(5))
    settings = config(tmp_path)
    settings = replace(
        settings,
        encoder=EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=32, patch_size=8),
        objective=replace(settings.objective, width=16, num_heads=2),
        optim=replace(settings.optim, warmup=Steps(0)),
        loop=replace(settings.loop, duration=Steps(1), batch_size=1),
    )
    assert pretrain(settings, tmp_path / "run")
    model = open_model(tmp_path / "run", whole=True)
    assert model.pretrained is not None

    def perfect(clip_BTCHW: torch.Tensor, mask: Mask, target: Targets) -> Reconstruction:
        true = target.at(mask)
        assert true.motion is not None
        return Reconstruction(true.appearance, torch.cat([true.motion, true.motion[:, -1:]], 1))

    monkeypatch.setattr(model.pretrained.objective, "reconstruct", perfect)
    prediction = predicted(model, tmp_path / "video.mp4", seed=0)
    hidden = patch_mask(prediction.masked_TN, (4, 4), (32, 32)).expand(-1, 3, -1, -1)
    assert hidden.float().mean() == 0.75
    assert errors(prediction) == pytest.approx((0, 0), abs=1e-6)
    assert prediction.motion_TCHW is not None
    none = replace(prediction, motion_TCHW=torch.zeros_like(prediction.motion_TCHW))
    assert errors(none) == pytest.approx((0, 1), abs=1e-6)
    height, width = sheet(prediction).canvas_CHW.shape[1:]
    assert height > 5 * 128  # input, mask, appearance, and two rows of motion
    assert 3 * 128 < width < 3 * 128 + 300  # three of the four frames
