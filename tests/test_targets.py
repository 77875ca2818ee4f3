"""Patches come back as they went, the motion target is the next frame less this one, and targets have no gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mam2.config import UserError
from mam2.data.synthetic import render
from mam2.losses import zero_motion_loss
from mam2.masks import MaskConfig
from mam2.patches import patchify, to_float, unpatchify
from mam2.targets.maker import TargetMaker, Targets
from mam2.targets.motion import clip_order, rgb_difference
from mam2.targets.table import APPEARANCE_TARGETS, MOTION_TARGETS, TargetsConfig, TargetSizes, target_sizes
from mam2.targets.tokenizers.codes import save_tokenizer
from mam2.targets.tokenizers.random_projection import RandomProjection
from mam2.targets.tokenizers.vq import VQ, VQConfig
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig

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
    tokens = encoder.embed(clip).x_BTVD - encoder.position(clip)
    torch.testing.assert_close(tokens, expected)


def test_to_float() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert to_float(torch.tensor([0.25], dtype=torch.float64)).dtype == torch.float32
    assert to_float(torch.tensor([0.25])).item() == 0.25
    assert to_float(torch.tensor([-0.04, 1.1])).tolist() == pytest.approx([-0.04, 1.1])  # resizing overshoots
    assert to_float(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.tensor([0, 255]), r"torch\.int64; accepted: uint8"),
        (torch.tensor([0.0, 255.0]), r"from 0\.00 to 255\.00; accepted: floats from 0 to 1"),
        (torch.tensor([-2.1, 2.6]), r"from -2\.10 to 2\.60; .*not normalised"),
    ],
)
def test_frames_in_another_range_are_refused(frames: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_float(frames)


def targets_of(clip: torch.Tensor, **fields: Any) -> Targets:
    config = TargetsConfig(**{"appearance": "random_projection", "num_codes": 64} | fields)
    return TargetMaker(config, patch_size=8, device=CPU)(clip, sample_B=torch.arange(len(clip)), seed=0)


def test_motion_is_the_next_frame_less_this_one() -> None:
    clip = moving_clips()
    motion = targets_of(clip).motion
    assert motion.shape == (2, 5, 16, 192)
    for t in range(5):
        assert torch.equal(motion[:, t], patchify(to_float(clip[:, t + 1]) - to_float(clip[:, t]), 8))


def test_predicting_no_motion_costs_one_at_clip_scale() -> None:
    clip = to_float(moving_clips())
    motion, raw = targets_of(clip, motion_scale="clip").motion, targets_of(clip).motion
    for scaled, plain in zip(motion, raw, strict=True):  # each clip by itself, whatever its speed
        assert zero_motion_loss(scaled).item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(scaled * plain.square().mean().sqrt(), plain)
    # A tenth of the contrast costs the same, until motion is smaller than a grey level.
    faint = targets_of(0.5 + clip / 10, motion_scale="clip").motion
    assert zero_motion_loss(faint).item() == pytest.approx(1, abs=1e-3)


def test_a_still_clip_has_no_motion() -> None:
    still = torch.rand(1, 1, 3, 8, 8).expand(1, 4, 3, 8, 8)
    for scale in ("raw", "clip", "patch"):
        assert not targets_of(still, motion_scale=scale).motion.any()
    noise = still + torch.randn(1, 4, 3, 8, 8) / 2550  # a tenth of a grey level
    assert zero_motion_loss(targets_of(noise, motion_scale="clip").motion).item() < 0.05


@pytest.mark.parametrize("field", ["motion", "appearance"])
def test_patches_are_normalised_one_by_one(field: str) -> None:
    clip = torch.rand(2, 4, 3, 16, 16)
    patches = getattr(targets_of(clip, appearance="pixels", motion_scale="patch"), field)
    assert patches.shape == (2, 3 if field == "motion" else 4, 4, 192)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(patches.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.std(-1), torch.ones(patches.shape[:-1]), atol=1e-3, rtol=0)
    raw = patchify(rgb_difference(clip) if field == "motion" else clip, 8)
    expected = (raw[1, 2, 3] - raw[1, 2, 3].mean()) / raw[1, 2, 3].std()
    torch.testing.assert_close(patches[1, 2, 3], expected, atol=1e-4, rtol=1e-4)


def test_targets_of_clips() -> None:
    maker = TargetMaker(RANDOM, patch_size=8, device=CPU)
    clip = moving_clips()
    codes = maker(clip, sample_B=torch.arange(2), seed=0).appearance
    assert codes.shape == (2, 6, 16)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() < codes.max() < 64
    assert torch.equal(codes[1, 2], maker.tokenizer(to_float(clip[1, 2:3]))[0])


def test_targets_are_the_same_for_uint8_and_floats() -> None:
    clip = moving_clips()
    first, second = targets_of(clip), targets_of(clip.float() / 255)
    assert torch.equal(first.appearance, second.appearance)
    assert torch.equal(first.motion, second.motion)


def test_only_what_is_asked_for_is_made(tmp_path: Path) -> None:
    clip = moving_clips()
    config = TargetsConfig(file=str(tmp_path / "absent"), flow_file=str(tmp_path / "absent"), motion="optical_flow")
    neither = TargetMaker(config, patch_size=8, device=CPU, appearance=False, motion=False)
    assert neither(clip, sample_B=torch.arange(2), seed=0) == Targets(None, None)


def test_a_tokenizer_with_smaller_patches_sees_a_smaller_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the f8 tokenizers: 112² for a 224² clip, one code for every patch of 16²."""
    half = RandomProjection(patch_size=4, num_codes=64)
    row = replace(APPEARANCE_TARGETS["random_projection"], load=lambda config, patch_size, device: half)
    monkeypatch.setitem(APPEARANCE_TARGETS, "half", row)
    clip = to_float(moving_clips())
    codes = targets_of(clip, appearance="half").appearance
    assert codes.shape == (2, 6, 16)
    small = torch.nn.functional.avg_pool2d(clip[1], 2)
    # Antialiased bilinear halving weighs a little wider than 2 × 2 pixels, so a few codes differ.
    assert (codes[1] == half(small)).float().mean() > 0.7


def test_clip_order_swaps_half_of_the_tubes_by_sample_and_seed() -> None:
    first = clip_order(100, sample_B=torch.arange(50), seed=0)
    assert first.shape == (50, 100)
    assert set(first.unique().tolist()) == {0, 1}
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(clip_order(100, sample_B=torch.tensor([7]), seed=0)[0], first[7])
    assert not torch.equal(clip_order(100, sample_B=torch.tensor([7]), seed=1)[0], first[7])
    targets = targets_of(moving_clips(), motion="clip_order")
    assert targets.clip_order
    assert torch.equal(targets.motion, clip_order(16, sample_B=torch.arange(2), seed=0))


@pytest.mark.parametrize("kind", ["tube", "random"])
@pytest.mark.parametrize("motion", ["rgb_difference", "clip_order"])
@pytest.mark.parametrize("appearance", ["random_projection", "pixels"])
def test_targets_at_a_mask_are_those_of_the_masked_patches(kind: str, motion: str, appearance: str) -> None:
    mask = MaskConfig(kind=kind)(6, (4, 4), sample_B=torch.arange(2), seed=0)
    targets = targets_of(moving_clips(), motion=motion, appearance=appearance)
    masked = targets.at(mask)
    where = mask.masked_BTM
    for b, t in ((0, 0), (1, 4)):
        assert torch.equal(masked.appearance[b, t], targets.appearance[b, t][where[b, t]])
        if motion == "clip_order":
            assert torch.equal(masked.motion[b], targets.motion[b][where[b, 0]])
        else:
            assert torch.equal(masked.motion[b, t], targets.motion[b, t][where[b, t]])
    assert masked.clip_order == targets.clip_order


@pytest.mark.parametrize("appearance", ["vqgan_16384", "vqgan_8192", "dalle", "random_projection", "pixels"])
@pytest.mark.parametrize("motion", MOTION_TARGETS)
def test_sizes_say_what_the_decoders_must_put_out(appearance: str, motion: str) -> None:
    config = TargetsConfig(appearance=appearance, motion=motion, num_codes=64)
    expected = {"vqgan_16384": 16384, "vqgan_8192": 8192, "dalle": 8192, "random_projection": 64, "pixels": 768}
    numbers = {"rgb_difference": 768, "optical_flow": 512, "clip_order": 2}
    sizes = target_sizes(config, patch_size=16)
    assert sizes == TargetSizes(expected[appearance], numbers[motion], motion == "clip_order")


@pytest.mark.parametrize("field", ["appearance", "motion"])
def test_a_misspelt_target_is_refused(field: str) -> None:
    with pytest.raises(UserError, match="mam2 targets"):
        TargetsConfig(**{field: "vqgann"})


def test_targets_have_no_gradient() -> None:
    maker = TargetMaker(RANDOM, patch_size=8, device=CPU)
    targets = maker(to_float(moving_clips()).requires_grad_(), sample_B=torch.arange(2), seed=0)
    assert not targets.motion.requires_grad
    assert not any(parameter.requires_grad for parameter in maker.tokenizer.parameters())
    assert not maker.tokenizer.training


def test_a_missing_tokenizer_is_a_users_error(tmp_path: Path) -> None:
    for appearance in ("vqgan_16384", "vqgan_8192", "dalle", "vq"):
        config = TargetsConfig(appearance=appearance, file=str(tmp_path / "absent.safetensors"))
        with pytest.raises(UserError, match=r"absent\.safetensors"):
            TargetMaker(config, patch_size=16, device=CPU)
    with pytest.raises(UserError):
        TargetMaker(TargetsConfig(), patch_size=16, device=CPU)


def test_a_tokenizer_of_another_patch_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vq.safetensors"
    sizes = VQConfig(patch_size=8, num_codes=16, code_dim=4, width=16)
    save_tokenizer(VQ(sizes).state_dict(), file, config=sizes)
    config = TargetsConfig(appearance="vq", file=str(file))
    assert TargetMaker(config, patch_size=8, device=CPU).sizes.appearance == 16
    with pytest.raises(UserError, match="patches of 8 pixels, the encoder has 16"):
        TargetMaker(config, patch_size=16, device=CPU)


def test_bf16_is_for_the_layers_and_not_for_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = VQGANConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32, embed_dim=8, num_codes=32)
    vqgan, seen, searched = VQGAN(config, with_decoder=False), list[torch.dtype](), list[torch.dtype]()
    vqgan.encoder.conv_out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    search = torch.Tensor.argmin
    monkeypatch.setattr(torch.Tensor, "argmin", lambda x, *a: searched.append(x.dtype) or search(x, *a))
    monkeypatch.setattr("mam2.targets.tokenizers.vqgan.load_vqgan", lambda file, quantizer: vqgan)
    clip, of = moving_clips()[:, :2], {"sample_B": torch.arange(2), "seed": 0}
    codes = {}
    for precision in ("fp32", "bf16"):
        made = TargetMaker(TargetsConfig(precision=precision), patch_size=8, device=CPU)
        codes[precision] = made(clip, **of).appearance
    assert seen == [torch.float32, torch.bfloat16]
    assert searched == [torch.float32, torch.float32]
    assert (codes["fp32"] == codes["bf16"]).float().mean() > 0.8
