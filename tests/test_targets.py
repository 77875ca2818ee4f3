"""Patches come back as they went, the motion target is the next frame less this one, and targets have no gradient."""

from pathlib import Path

import pytest
import torch

from mam2.config import UserError
from mam2.data.synthetic import render
from mam2.targets import TargetMaker, TargetsConfig, load_tokenizer
from mam2.targets.motion import constant_predictor_loss, motion_scale, rgb_difference
from mam2.targets.pixels import patchify, to_float, unpatchify
from mam2.targets.vq import VQ, VQConfig, save_vq

RANDOM = TargetsConfig(appearance="random_projection", num_codes=64)
CPU = torch.device("cpu")


def moving_clips() -> torch.Tensor:
    """uint8 (2, 6, 3, 32, 32)."""
    return torch.stack([render(motion, seed=1, num_frames=6, size=32) for motion in ("left", "approach")])


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_unpatchify_is_the_inverse_of_patchify(lead: tuple[int, ...]) -> None:
    frames = torch.randn(*lead, 3, 8, 12)
    patches = patchify(frames, 4)
    assert patches.shape == (*lead, 6, 48)
    assert torch.equal(unpatchify(patches, 4, (2, 3)), frames)


def test_patches_run_row_by_row_and_hold_channel_row_column() -> None:
    frame = torch.arange(2 * 4 * 6).view(2, 4, 6)
    patches = patchify(frame, 2)
    assert patches.shape == (6, 8)
    assert patches[1].tolist() == frame[:, 0:2, 2:4].flatten().tolist()
    assert patches[3].tolist() == frame[:, 2:4, 0:2].flatten().tolist()


def test_patches_are_numbered_as_the_encoder_numbers_them() -> None:
    from mam2.model.encoder import EncoderConfig, VideoEncoder

    encoder = VideoEncoder(EncoderConfig(width=8, depth=1, num_heads=2, frames=1, size=16, patch_size=4)).eval()
    clip = torch.rand(1, 1, 3, 16, 16)
    normalised = (clip - encoder.mean) / encoder.std
    weight = encoder.patch_embed.weight.flatten(1)
    expected = patchify(normalised, 4) @ weight.T + encoder.patch_embed.bias
    tokens = encoder.embed(clip) - encoder.position(clip)
    torch.testing.assert_close(tokens, expected)


def test_to_float() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert to_float(torch.tensor([0.25], dtype=torch.float64)).dtype == torch.float32
    assert to_float(torch.tensor([0.25])).item() == 0.25


def test_motion_is_the_next_frame_less_this_one() -> None:
    clip = torch.rand(2, 4, 3, 8, 8)
    motion = rgb_difference(clip, 4, unit_scale=False)
    assert motion.shape == (2, 3, 4, 48)
    for t in range(3):
        assert torch.equal(motion[:, t], patchify(clip[:, t + 1] - clip[:, t], 4))


def test_predicting_no_motion_costs_one_at_unit_scale() -> None:
    clip = to_float(moving_clips())
    motion = rgb_difference(clip, 8, unit_scale=True)
    for each in motion:  # each clip by itself, whatever its speed
        assert constant_predictor_loss(each).item() == pytest.approx(1, abs=1e-5)
    raw = rgb_difference(clip, 8, unit_scale=False)
    torch.testing.assert_close(motion * motion_scale(clip)[:, None, None, None], raw)
    # A tenth of the contrast costs the same, until motion is smaller than a grey level.
    faint = rgb_difference(0.5 + clip / 10, 8, unit_scale=True)
    assert constant_predictor_loss(faint).item() == pytest.approx(1, abs=1e-3)


def test_a_still_clip_has_no_motion() -> None:
    still = torch.rand(1, 1, 3, 8, 8).expand(1, 4, 3, 8, 8)
    assert motion_scale(still).item() == pytest.approx(1 / 255)
    assert not rgb_difference(still, 4, unit_scale=True).any()
    noise = still + torch.randn(1, 4, 3, 8, 8) / 2550  # a tenth of a grey level
    assert constant_predictor_loss(rgb_difference(noise, 4, unit_scale=True)).item() < 0.05


def test_targets_of_clips() -> None:
    maker = TargetMaker(RANDOM, patch_size=8, device=CPU)
    clip = moving_clips()
    targets = maker(clip)
    assert targets.codes_BTN.shape == (2, 6, 16)
    assert targets.codes_BTN.dtype == torch.int64
    assert 0 <= targets.codes_BTN.min() < targets.codes_BTN.max() < 64
    assert targets.motion_BTND.shape == (2, 5, 16, 192)
    assert torch.equal(targets.codes_BTN[1, 2], maker.tokenizer(to_float(clip[1, 2:3]))[0])
    assert torch.equal(targets.motion_BTND, rgb_difference(to_float(clip), 8, unit_scale=False))


def test_targets_are_the_same_for_uint8_and_floats() -> None:
    maker = TargetMaker(RANDOM, patch_size=8, device=CPU)
    clip = moving_clips()
    first, second = maker(clip), maker(clip.float() / 255)
    assert torch.equal(first.codes_BTN, second.codes_BTN)
    assert torch.equal(first.motion_BTND, second.motion_BTND)


def test_motion_scale_clip_divides_by_each_clips_deviation() -> None:
    clip = moving_clips()
    scaled = TargetMaker(TargetsConfig(appearance="random_projection", motion_scale="clip"), patch_size=8, device=CPU)
    assert torch.equal(scaled(clip).motion_BTND, rgb_difference(to_float(clip), 8, unit_scale=True))


def test_targets_have_no_gradient() -> None:
    maker = TargetMaker(RANDOM, patch_size=8, device=CPU)
    targets = maker(to_float(moving_clips()).requires_grad_())
    assert not targets.motion_BTND.requires_grad
    assert not any(parameter.requires_grad for parameter in maker.tokenizer.parameters())
    assert not maker.tokenizer.training


def test_a_missing_tokenizer_is_a_users_error(tmp_path: Path) -> None:
    for appearance in ("vqgan", "vq"):
        config = TargetsConfig(appearance=appearance, file=str(tmp_path / "absent.safetensors"))
        with pytest.raises(UserError, match=r"absent\.safetensors"):
            TargetMaker(config, patch_size=16, device=CPU)
    with pytest.raises(UserError):
        TargetMaker(TargetsConfig(), patch_size=16, device=CPU)


def test_a_tokenizer_of_another_patch_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vq.safetensors"
    save_vq(VQ(VQConfig(patch_size=8, num_codes=16, code_dim=4, width=16)), file)
    config = TargetsConfig(appearance="vq", file=str(file))
    assert load_tokenizer(config, patch_size=8).patch_size == 8
    with pytest.raises(UserError, match="patches of 8 pixels, the encoder of 16"):
        load_tokenizer(config, patch_size=16)
