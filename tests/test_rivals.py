"""Rival methods: VideoMAE against Hugging Face's, targets and masks against plain re-computations."""

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from mam2.config import Steps
from mam2.masks import Mask, MaskConfig, take
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.objectives.mae import MAE, MAEConfig
from mam2.objectives.masked_input import MaskedInputConfig
from mam2.objectives.vjepa import VJEPAConfig
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD
from mam2.recipes import get_recipe
from mam2.targets.hog import hog, num_hog
from mam2.targets.maker import TargetMaker, Targets
from mam2.targets.table import TargetsConfig, TargetSizes, target_sizes

CPU = torch.device("cpu")
ENCODER = EncoderConfig(
    width=32, depth=2, num_heads=2, frames=4, size=32, patch_size=8, tubelet=2, attention="joint", positions="sequence"
)
VIDEOMAE = TargetsConfig(appearance="pixels_of_tubelets")


def hf_blocks(tensors: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """Blocks of Hugging Face's ViTs by our names; what their keys lack, a bias, is 0 and stays 0."""
    made = {}
    for name in {key.removeprefix(theirs).split(".")[0] for key in tensors if key.startswith(theirs)}:
        block = {key.removeprefix(f"{theirs}{name}."): value for key, value in tensors.items()}
        attention = [block[f"attention.attention.{part}.weight"] for part in ("query", "key", "value")]
        query, value = (block[f"attention.attention.{part}.bias"] for part in ("query", "value"))
        made[f"{ours}{name}.joint.qkv.weight"] = torch.cat(attention)
        made[f"{ours}{name}.joint.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        for there, here in {
            "attention.output.dense": "joint.out",
            "layernorm_before": "norm_joint",
            "layernorm_after": "norm_mlp",
            "intermediate.dense": "mlp.0",
            "output.dense": "mlp.2",
        }.items():
            for part in ("weight", "bias"):
                made[f"{ours}{name}.{here}.{part}"] = block[f"{there}.{part}"]
    return made


def from_hf(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or their gradients, of Hugging Face's VideoMAE by our names and in our layouts."""
    patch, patch_bias = (tensors[f"videomae.embeddings.patch_embeddings.projection.{part}"] for part in WEIGHTS)

    def pixels_first(x: Tensor) -> Tensor:  # a token's numbers: frame, row, column, channel there; channel first here
        return x.unflatten(0, (2, 8, 8, 3)).movedim(3, 0).flatten(0, 3)

    return {
        "encoder.patch_embed.weight": patch.transpose(1, 2).flatten(1, 2),
        "encoder.patch_embed.bias": patch_bias,
        **hf_blocks(tensors, "videomae.encoder.layer.", "encoder.blocks."),
        **{f"encoder.norm.{part}": tensors[f"videomae.layernorm.{part}"] for part in WEIGHTS},
        "decoder.project.weight": tensors["encoder_to_decoder.weight"],
        "decoder.mask_tokens.mask_query.value_D": tensors["mask_token"].flatten(),
        **hf_blocks(tensors, "decoder.decoder_layers.", "decoder.transformer.blocks."),
        **{f"decoder.transformer.norm.{part}": tensors[f"decoder.norm.{part}"] for part in WEIGHTS},
        **{f"decoder.head.project.{part}": pixels_first(tensors[f"decoder.head.{part}"]) for part in WEIGHTS},
    }


WEIGHTS = ("weight", "bias")


def test_videomae_equals_hugging_faces_in_loss_and_gradients() -> None:
    theirs = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=128, decoder_hidden_size=16, decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2, decoder_intermediate_size=64, layer_norm_eps=1e-6, use_mean_pooling=False,
        )
    ).eval()  # fmt: skip
    theirs.decoder.norm.eps = 1e-6  # the original's; they have 1e-5
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = MAE(MAEConfig(width=16, depth=2, num_heads=2), ENCODER, target_sizes(VIDEOMAE, patch_size=8, tubelet=2))
    ours.load_state_dict(from_hf(theirs.state_dict()))

    clip = torch.rand(3, 4, 3, 32, 32)
    sample_B = torch.arange(3)
    mask = MaskConfig(ratio=0.75)(2, (4, 4), sample_B=sample_B, seed=1)
    masked_BTN = torch.zeros(3, 2, 16, dtype=torch.bool).scatter(2, mask.masked_BTM, True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    found = theirs((clip - mean) / std, bool_masked_pos=masked_BTN.flatten(1)).loss
    found.backward()
    target = TargetMaker(VIDEOMAE, patch_size=8, tubelet=2, device=CPU)(clip, sample_B=sample_B, seed=0)
    losses = ours(clip, mask, target, 0)
    losses.total.backward()

    torch.testing.assert_close(losses.total, found, rtol=1e-5, atol=0)
    gradients = from_hf({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    assert set(gradients) == {name for name, p in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        largest = gradients[name].abs().max().item()
        assert largest > 1e-6
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=2e-5 * largest, msg=name)


def test_st_mae_predicts_the_first_frame_of_each_tubelet_normalised_jointly() -> None:
    clip = torch.rand(2, 4, 3, 16, 16)
    config = TargetsConfig(appearance="pixels")
    made = TargetMaker(config, patch_size=8, tubelet=2, device=CPU)(clip, sample_B=torch.arange(2), seed=0).appearance
    assert made is not None
    assert made.shape == (2, 2, 4, 192)
    patch = clip[1, 2, :, 8:, :8]  # the second tubelet, the lower left patch
    expected = (patch - patch.mean()) / (patch.var() + 1e-6 * 0.225**2).sqrt()  # theirs are divided by 0.225 first
    torch.testing.assert_close(made[1, 1, 2], expected.flatten())
    dark = TargetMaker(config, patch_size=8, tubelet=2, device=CPU)(clip / 1000, sample_B=torch.arange(2), seed=0)
    assert dark.appearance is not None
    assert 0.7 < dark.appearance.std() < 1


@pytest.mark.parametrize(("size", "cell"), [(16, 8), (4, 4)])
def test_hog_is_that_of_a_plain_loop(size: int, cell: int) -> None:
    torch.manual_seed(0)
    frame = torch.rand(3, 16, 32)
    made = hog(frame[None, None, None], size)
    assert made.shape == (1, 1, 16 * 32 // size**2, num_hog(size, 1))
    expected = torch.zeros(16 // size, 32 // size, 3, 9, size // cell, size // cell)  # patch, channel, bin, cell
    padded = torch.nn.functional.pad(frame[None], (1, 1, 1, 1), mode="reflect")[0]
    for channel in range(3):
        for y in range(16):
            for x in range(32):
                box = padded[channel, y : y + 3, x : x + 3]
                across = (box[:, 0] - box[:, 2]) @ torch.tensor([1.0, 2, 1])
                down = (box[0] - box[2]) @ torch.tensor([1.0, 2, 1])
                turn = math.floor(math.atan2(across, down) / math.pi * 9) % 9
                place = (y // size, x // size, channel, turn, y % size // cell, x % size // cell)
                expected[place] += math.hypot(across, down)
    expected /= expected.norm(dim=3, keepdim=True)
    torch.testing.assert_close(made[0, 0], expected.flatten(2).flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_hog_of_a_vertical_edge_and_of_nothing() -> None:
    frame = torch.zeros(3, 8, 8)
    assert hog(frame[None, None, None], 8).abs().max() == 0
    frame[:, :, 4:] = 1
    cells = hog(frame[None, None, None], 8).view(3, 9)
    torch.testing.assert_close(cells, torch.eye(9)[4].expand(3, 9))  # across is half of half a turn
    with pytest.raises(ValueError, match=r"cells of 8 pixels; encoder\.patch_size 12"):
        target_sizes(TargetsConfig(appearance="hog"), patch_size=12)


def test_positions_in_sequence_are_those_of_a_plain_loop() -> None:
    table = VideoEncoder(ENCODER).positions(2, (4, 4)).flatten(0, 1)
    for place in (0, 1, 17, 31):
        for j in (0, 1, 6, 31):
            angle = place / 10_000 ** (2 * (j // 2) / 32)
            expected = math.cos(angle) if j % 2 else math.sin(angle)
            assert table[place, j].item() == pytest.approx(expected, abs=1e-6)
    assert VideoEncoder(replace(ENCODER, size=48)).positions(2, (4, 4)).shape == (2, 16, 32)
    assert not [name for name in VideoEncoder(ENCODER).state_dict() if "positions" in name]


def clip_and_mask(encoder: EncoderConfig, masking: MaskConfig) -> tuple[Tensor, Mask]:
    torch.manual_seed(3)
    clip = torch.rand(2, encoder.frames, 3, encoder.size, encoder.size)
    return clip, masking(encoder.tubelets, encoder.grid, sample_B=torch.arange(2), seed=1)


def test_v_jepa_predicts_the_averages_normalised_features_of_masked_patches() -> None:
    config = VJEPAConfig(width=16, depth=1, num_heads=2, momentum=0.9, final_momentum=1.0, momentum_rise=Steps(10))
    torch.manual_seed(0)
    model = config.build(ENCODER, TargetSizes(1, 1))
    torch.nn.init.normal_(model.predictor.head.project.weight)
    torch.nn.init.normal_(model.teacher.patch_embed.weight, std=0.3)  # another than the encoder
    two = MaskConfig(kind="short_range", ratio=0.6, second_kind="long_range", second_ratio=0.8)
    clip, mask = clip_and_mask(ENCODER, two)
    losses = model(clip, mask, Targets(None, None), 5)
    losses.total.backward()

    features = model.teacher(clip)
    mean, var = features.mean(dim=-1, keepdim=True), features.var(dim=-1, keepdim=True, correction=0)
    target = (features - mean) / (var + 1e-5).sqrt()
    errors = []
    assert mask.second is not None
    for each, masked in ((mask, 10), (mask.second, 13)):
        assert each.masked_BTM.shape == (2, 2, masked)
        visible = model.encoder.features_of(clip, each.visible_BTV)
        predicted = model.predictor.head(model.predictor(visible, each, (2, (4, 4))))
        errors.append((predicted - take(target, each.masked_BTM)).abs().mean())
    torch.testing.assert_close(losses.total, (errors[0] + errors[1]) / 2)
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.encoder.parameters())

    before = model.teacher.norm.bias.clone()
    torch.nn.init.ones_(model.encoder.norm.bias)
    model.after_step()  # half way up: it keeps 0.95
    torch.testing.assert_close(model.teacher.norm.bias, 0.95 * before + 0.05)


def test_masked_input_sees_mask_tokens_in_place_of_masked_patches() -> None:
    torch.manual_seed(0)
    encoder = replace(ENCODER, positions="separable")
    model = MaskedInputConfig().build(encoder, TargetSizes(5, 1))
    clip, mask = clip_and_mask(encoder, MaskConfig(ratio=0.5))
    tokens = model.encoder.embed(clip)
    for b in range(2):
        for t in range(2):
            for n in mask.masked_BTM[b, t]:
                tokens.x_BTVD[b, t, n] = model.mask_token.value_D + model.encoder.position(clip)[t, n]
    torch.testing.assert_close(model.predict(clip, mask), model.encoder.encode(tokens))
    codes = torch.randint(5, (2, 2, 16))
    logits = model.head(take(model.encoder.encode(tokens), mask.masked_BTM))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), codes.gather(2, mask.masked_BTM).flatten())
    torch.testing.assert_close(model(clip, mask, Targets(codes, None), 0).total, expected)


@pytest.mark.parametrize(("kind", "blocks", "share"), [("short_range", 8, 0.15), ("long_range", 2, 0.7)])
def test_v_jepas_masks_are_blocks_of_its_sizes(kind: str, blocks: int, share: float) -> None:
    """As many patches as V-JEPA masks on average: the union of so many blocks, drawn here by another program."""
    rng = random.Random(0)
    shares = []
    for _ in range(400):
        aspect = rng.uniform(0.75, 1.5)
        rows, columns = (min(14, round((share * 196 * a) ** 0.5)) for a in (aspect, 1 / aspect))
        union = set()
        for _ in range(blocks):
            top, left = rng.randrange(15 - rows), rng.randrange(15 - columns)
            union |= {(y, x) for y in range(top, top + rows) for x in range(left, left + columns)}
        shares.append(len(union) / 196)
    run = get_recipe("vjepa_b_k400")
    ratio = run.mask.ratio if kind == "short_range" else run.mask.second_ratio
    assert sum(shares) / len(shares) == pytest.approx(ratio, abs=0.02)
    mask = MaskConfig(kind=kind, ratio=ratio)(3, (14, 14), sample_B=torch.arange(4), seed=0)
    assert mask.masked_BTM.shape == (4, 3, round(ratio * 196))
    assert mask.same_in_all_frames()
    masked_BN = torch.zeros(4, 196).scatter(1, mask.masked_BTM[:, 0], 1).view(4, 1, 14, 14)
    side = 4 if kind == "short_range" else 9  # a block that is not the last holds a square of this side
    whole = torch.nn.functional.avg_pool2d(masked_BN, side, stride=1).flatten(1).amax(dim=1)
    assert (whole > 0.999).all()


def test_motion_guides_half_of_the_visible_patches() -> None:
    motion_BN = torch.rand(3, 64)
    mask = MaskConfig(kind="motion", ratio=0.75)(2, (8, 8), sample_B=torch.arange(3), seed=0, motion_BN=motion_BN)
    assert mask.same_in_all_frames()
    moving_BV = motion_BN.gather(1, mask.visible_BTV[:, 0]) > motion_BN.median(dim=1, keepdim=True).values
    assert moving_BV.sum(dim=1).tolist() == [8, 8, 8]  # of 16
    again = MaskConfig(kind="motion", ratio=0.75)(2, (8, 8), sample_B=torch.arange(3), seed=0)
    assert (again.visible_BTV != mask.visible_BTV).any()
    assert len(torch.unique(again.visible_BTV[:, 0])) > 20  # where nothing moves: anywhere


def test_motion_of_patches_is_the_mean_length_of_the_rgb_difference() -> None:
    clip = torch.zeros(1, 6, 3, 16, 16)
    clip[0, 2:, :, :8, 8:] = 0.5  # from the second tubelet on, the upper right patch is brighter
    maker = TargetMaker(TargetsConfig(appearance="pixels"), patch_size=8, tubelet=2, device=CPU, motion=False)
    expected = 0.5 * math.sqrt(3) / 2  # one of two differences
    torch.testing.assert_close(maker.motion_of(clip), torch.tensor([[0, expected, 0, 0]]))


def test_a_second_mask_averages_any_methods_loss() -> None:
    torch.manual_seed(0)
    sizes = target_sizes(VIDEOMAE, patch_size=8, tubelet=2)
    model = MAEConfig(width=16, depth=1, num_heads=2).build(ENCODER, sizes)
    clip, mask = clip_and_mask(ENCODER, MaskConfig(ratio=0.5, second_kind="cube", second_ratio=0.75))
    target = TargetMaker(VIDEOMAE, patch_size=8, tubelet=2, device=CPU)(clip, sample_B=torch.arange(2), seed=0)
    first, second = (model(clip, replace(each, second=None), target, 0).total for each in mask.all())
    assert first != second
    torch.testing.assert_close(model(clip, mask, target, 0).total, (first + second) / 2)
