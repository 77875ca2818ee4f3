"""Attention, blocks, encoder, regressor, decoders against plain re-computations, and their initial weights."""

import logging
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mam2.config import UserError
from mam2.masks import MaskConfig, take
from mam2.model import blocks
from mam2.model.attention import (
    LOCAL_GAIN,
    WRITTEN_OUT_UP_TO_KEYS,
    AttentionKind,
    CrossAttention,
    SelfAttention,
    attend,
)
from mam2.model.blocks import BlockOptions, CrossBlock, JointBlock, Residual, SpaceTimeBlock, init_weights
from mam2.model.classifier import Classifier
from mam2.model.clip_order import OrderDecoder
from mam2.model.decoders import AppearanceHead, Decoder, MotionHead
from mam2.model.encoder import EncoderConfig, VideoEncoder, vit_b, vit_l
from mam2.model.positions import Positions, local_sine_cosine, sine_cosine
from mam2.model.regressor import Context, Latent, Regressor
from mam2.model.weights import copy_encoder
from mam2.patches import DIFFERENCE_STD
from mam2.train.optim import layer_id

WIDTH, HEADS = 24, 3
TINY = EncoderConfig(width=WIDTH, depth=2, num_heads=HEADS, frames=4, size=32, patch_size=8)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def without_layer_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own layers leave parameters as allocated: only this project's initialisation sets them."""
    for layer in (nn.Linear, nn.Conv2d, nn.LayerNorm):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)


def scrambled(module: nn.Module) -> nn.Module:
    """The module with every parameter random, so that no zero bias or unit norm hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


def plain_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """softmax(q k / √d) v, one head after the other, of (S, D) and (S', D)."""
    parts = []
    for q_h, k_h, v_h in zip(*(x.chunk(num_heads, dim=-1) for x in (q, k, v)), strict=True):
        weights = (q_h @ k_h.T / math.sqrt(q_h.shape[-1])).softmax(dim=-1)
        parts.append(weights @ v_h)
    return torch.cat(parts, dim=-1)


def plain_self_attention(attention: SelfAttention, x_SD: Tensor) -> Tensor:
    q, k, v = attention.qkv(x_SD).chunk(3, dim=-1)
    return attention.out(plain_attention(q, k, v, attention.num_heads))


# Attention


def test_self_attention_is_plain_softmax_attention() -> None:
    attention = scrambled(SelfAttention(WIDTH, HEADS))
    x = torch.randn(2, 3, 5, WIDTH)
    expected = torch.stack([torch.stack([plain_self_attention(attention, row) for row in each]) for each in x])
    torch.testing.assert_close(attention(x), expected)
    torch.testing.assert_close(attention(x[0]), expected[0])


def test_cross_attention_is_plain_softmax_attention() -> None:
    attention = scrambled(CrossAttention(WIDTH, HEADS))
    query, key, value = torch.randn(2, 4, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    expected = [
        attention.out(plain_attention(attention.q(q), attention.k(k), attention.v(v), HEADS))
        for q, k, v in zip(query, key, value, strict=True)
    ]
    torch.testing.assert_close(attention(query, key, value), torch.stack(expected))


@pytest.mark.parametrize(
    ("device", "dtype", "keys", "written_out"),
    [
        ("cpu", torch.bfloat16, WRITTEN_OUT_UP_TO_KEYS, True),
        ("cpu", torch.bfloat16, WRITTEN_OUT_UP_TO_KEYS + 1, False),
        ("cpu", torch.float32, 4, False),
        ("meta", torch.bfloat16, 4, False),
    ],
)
def test_attention_is_written_out_on_cpus_in_bf16_for_few_keys_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, keys: int, written_out: bool
) -> None:
    calls = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: calls.append(q) or q)
    k = torch.zeros(1, 1, keys, 2, dtype=dtype, device=device)
    attend(k[:, :, :3], k, k)
    assert (not calls) is written_out


# Blocks


def test_space_time_block_is_time_then_space_then_mlp() -> None:
    block = scrambled(SpaceTimeBlock(WIDTH, HEADS))
    x = torch.randn(2, 3, 5, WIDTH)
    expected = x.clone()
    for b in range(2):
        for n in range(5):  # each tube by itself
            expected[b, :, n] = x[b, :, n] + plain_self_attention(block.time, block.norm_time(x[b, :, n]))
    after_time = expected.clone()
    for b in range(2):
        for t in range(3):  # each frame by itself
            frame = after_time[b, t]
            expected[b, t] = frame + plain_self_attention(block.space, block.norm_space(frame))
    expected = expected + block.mlp(block.norm_mlp(expected))
    torch.testing.assert_close(block(x), expected)


def test_factorised_is_joint_attention_for_a_single_frame() -> None:
    block = scrambled(SpaceTimeBlock(WIDTH, HEADS))
    x = torch.randn(2, 1, 6, WIDTH)
    value = block.time.qkv(block.norm_time(x)).chunk(3, dim=-1)[2]
    after_time = x + block.time.out(value)  # attention over one token is its value
    joint = torch.stack([plain_self_attention(block.space, s) for s in block.norm_space(after_time).flatten(1, 2)])
    expected = after_time + joint.unflatten(1, (1, 6))
    expected = expected + block.mlp(block.norm_mlp(expected))
    torch.testing.assert_close(block(x), expected)


def test_space_time_block_does_not_mind_the_order_of_patches_or_clips() -> None:
    block = scrambled(SpaceTimeBlock(WIDTH, HEADS))
    x, order = torch.randn(2, 3, 5, WIDTH), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[:, :, order]), block(x)[:, :, order])
    torch.testing.assert_close(block(x.flip(0)), block(x).flip(0))


def test_drop_path_drops_whole_clips_in_training_only() -> None:
    block = scrambled(SpaceTimeBlock(WIDTH, HEADS, BlockOptions(drop_path=1 - 1e-7)))
    x = torch.randn(3, 2, 4, WIDTH)
    assert torch.equal(block(x), x)
    always = SpaceTimeBlock(WIDTH, HEADS)
    always.load_state_dict(block.state_dict())
    assert torch.equal(block.eval()(x), always(x))
    state = torch.get_rng_state()
    always.train()(x)
    assert torch.equal(torch.get_rng_state(), state)  # without drop path nothing is drawn


def test_drop_path_is_drawn_for_each_clip_and_keeps_the_mean() -> None:
    kept = Residual(4, layer_scale=0.0, drop_path=0.25).train()(torch.ones(400, 2, 3, 4)).flatten(1)
    assert torch.equal(kept.amin(dim=1), kept.amax(dim=1))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=0.15)  # five standard deviations


def test_cross_block_adds_positions_to_queries_and_keys_only() -> None:
    block = scrambled(CrossBlock(WIDTH, HEADS))
    query, context = torch.randn(1, 4, WIDTH), torch.randn(1, 7, WIDTH)
    query_position, context_position = torch.randn(1, 4, WIDTH), torch.randn(1, 7, WIDTH)
    cross = block.cross
    gathered = plain_attention(
        cross.q(block.norm_query(query + query_position))[0],
        cross.k(block.norm_key(context + context_position))[0],
        cross.v(block.norm_value(context))[0],
        HEADS,
    )
    x = query + cross.out(gathered)
    expected = x + block.mlp(block.norm_mlp(x))
    actual = block(query, context, query_position=query_position, context_position=context_position)
    torch.testing.assert_close(actual, expected)


# Positions


def test_positions_are_a_frames_plus_a_patchs() -> None:
    positions = scrambled(Positions(4, (3, 2), WIDTH))
    expected = torch.stack([torch.stack([t + s for s in positions.space_ND]) for t in positions.time_TD])
    assert torch.equal(positions(4, (3, 2)), expected)


def test_positions_start_as_sines_and_cosines() -> None:
    positions = Positions(4, (3, 2), WIDTH)
    init_weights(positions)
    assert torch.equal(positions.time_TD, sine_cosine(torch.arange(4), WIDTH))
    assert torch.equal(positions.time_TD[0], torch.tensor([0.0] * 12 + [1.0] * 12))
    angles = [3 / 10_000 ** (i / 12) for i in range(12)]  # of frame 3
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(positions.time_TD[3].detach(), torch.tensor(expected))
    # Patch 5 of a grid of 3 rows and 2 columns is row 2, column 1.
    half = torch.cat([sine_cosine(torch.tensor([place]), WIDTH // 2)[0] for place in (2, 1)])
    assert torch.equal(positions.space_ND[5], half)
    assert len({tuple(row) for row in positions(4, (3, 2)).flatten(0, 1).tolist()}) == 24


def test_local_positions_tell_neighbours_apart() -> None:
    def likeness(table_TD: Tensor) -> list[float]:
        return F.cosine_similarity(table_TD[:1], table_TD).tolist()

    positions = Positions(8, (3, 2), 48)
    init_weights(positions, "local")
    assert torch.equal(positions.time_TD, local_sine_cosine(torch.arange(8), 48))
    angles = [math.tau * 5 / (2 * 8 ** (i / 24)) for i in range(24)]  # of frame 5, wavelengths from 2 up to 16
    torch.testing.assert_close(
        positions.time_TD[5].detach(), torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    )
    assert max(likeness(positions.time_TD.detach())[1:]) < 0.5
    assert likeness(sine_cosine(torch.arange(8), 48))[1] > 0.9


def test_positions_of_another_shape_are_interpolated() -> None:
    positions = scrambled(Positions(4, (3, 2), WIDTH))
    space = positions(8, (3, 2)) - positions(4, (3, 2))[:1]
    assert positions(8, (6, 4)).shape == (8, 24, WIDTH)
    # More frames change the time part only, and not its ends by much: linear between the trained ones.
    torch.testing.assert_close(space, space[:, :1].expand_as(space), atol=1e-5, rtol=0)
    image = positions.space_ND.T.view(1, WIDTH, 3, 2)
    expected = F.interpolate(image, size=(6, 4), mode="bicubic").view(WIDTH, 24).T
    torch.testing.assert_close(positions(4, (6, 4))[1], positions.time_TD[1] + expected)
    time = positions(8, (3, 2))[:, 0] - positions.space_ND[0]
    torch.testing.assert_close(time[1], 0.75 * positions.time_TD[0] + 0.25 * positions.time_TD[1])


def test_constant_positions_stay_constant_when_interpolated() -> None:
    positions = Positions(4, (3, 2), WIDTH)
    nn.init.constant_(positions.time_TD, 2.0)
    nn.init.constant_(positions.space_ND, -0.5)
    torch.testing.assert_close(positions(7, (5, 5)), torch.full((7, 25, WIDTH), 1.5))


# Encoder


def test_encoder_gives_a_feature_for_each_patch_of_each_frame() -> None:
    encoder = VideoEncoder(TINY).eval()
    features = encoder(torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8))
    assert features.shape == (2, 4, 16, WIDTH)
    # The final LayerNorm of a fresh encoder: zero mean, unit variance.
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 4, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.var(-1, unbiased=False), torch.ones(2, 4, 16), atol=1e-3, rtol=0)


def test_uint8_and_float_clips_have_the_same_features() -> None:
    encoder = VideoEncoder(TINY).eval()
    clip = torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(encoder(clip), encoder(clip.float() / 255))
    assert encoder.bfloat16()(clip).dtype == torch.bfloat16


def test_clips_are_normalised_with_imagenets_figures() -> None:
    encoder = VideoEncoder(TINY).eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1).expand(1, 4, 3, 32, 32)
    tokens = encoder.embed(mean).x_BTVD - encoder.position(mean)
    torch.testing.assert_close(tokens, encoder.patch_embed.bias.expand_as(tokens), atol=1e-5, rtol=0)
    bright = mean + torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    tokens = encoder.embed(bright).x_BTVD - encoder.position(bright)
    expected = encoder.patch_embed.weight.flatten(1).sum(dim=1) + encoder.patch_embed.bias
    torch.testing.assert_close(tokens, expected.expand_as(tokens), atol=1e-4, rtol=0)
    assert {"mean", "std"}.isdisjoint(encoder.state_dict())


def test_a_tubelet_is_a_convolution_over_its_frames() -> None:
    encoder = scrambled(VideoEncoder(replace(TINY, tubelet=2))).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    normalised = ((clip - encoder.mean) / encoder.std).transpose(1, 2)
    weight = encoder.patch_embed.weight.unflatten(1, (2, 3)).transpose(1, 2)  # D, C, frames of a tubelet, P, P
    expected = F.conv3d(normalised, weight, encoder.patch_embed.bias, stride=weight.shape[2:])
    tokens = encoder.embed(clip).x_BTVD - encoder.position(clip)
    torch.testing.assert_close(tokens, expected.flatten(3).permute(0, 2, 3, 1), atol=1e-4, rtol=0)
    assert encoder(clip).shape == (2, 2, 16, WIDTH)
    turned = clip.transpose(3, 4)
    assert torch.equal(encoder.embed(turned).x_BTVD, encoder.embed(turned.contiguous()).x_BTVD)


@pytest.mark.parametrize("differences", [True, False])
def test_an_encoder_with_and_one_without_differences_are_told_apart(differences: bool) -> None:
    source, target = (VideoEncoder(replace(TINY, differences=x)) for x in (differences, not differences))
    with pytest.raises(UserError, match="--encoder.differences" if differences else "--encoder.no-differences"):
        copy_encoder(source, target, "it")


@pytest.mark.parametrize("tubelet", [1, 2])
def test_differences_are_three_more_channels(tubelet: int) -> None:
    encoder = scrambled(VideoEncoder(replace(TINY, tubelet=tubelet, differences=True))).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    frames = ((clip - encoder.mean) / encoder.std).unflatten(1, (-1, tubelet)).flatten(2, 3)
    first = clip[:, ::tubelet]
    differences = torch.stack([*(first[:, 1:] - first[:, :-1]).unbind(1), torch.zeros(2, 3, 32, 32)], dim=1)
    x = torch.cat([frames, differences / DIFFERENCE_STD], dim=2)
    expected = F.conv2d(x.flatten(0, 1), encoder.patch_embed.weight, encoder.patch_embed.bias, stride=8)
    tokens = encoder.embed(clip).x_BTVD - encoder.position(clip)
    expected = expected.flatten(2).mT.unflatten(0, (2, -1))
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    assert encoder.embed((255 * clip).byte()).x_BTVD.shape == tokens.shape


def test_encoder_runs_on_any_subset_of_patches() -> None:
    encoder = scrambled(VideoEncoder(TINY)).eval()
    tokens = encoder.embed(torch.rand(2, 4, 3, 32, 32))
    mask = MaskConfig(ratio=0.5)(4, TINY.grid, sample_B=torch.arange(2), seed=0)
    some = tokens.at(mask.visible_BTV)
    expected = take(tokens.x_BTVD, mask.visible_BTV)
    assert torch.equal(some.x_BTVD, expected)
    for block in encoder.blocks:
        expected = block(expected)
    actual = encoder.encode(some, norm=False)
    assert torch.equal(actual, expected)
    assert torch.equal(encoder.encode(some), encoder.norm(expected))


def test_another_shape_is_interpolated_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = VideoEncoder(TINY).eval()
    with caplog.at_level(logging.WARNING, logger="mam2"):
        encoder(torch.rand(1, 4, 3, 32, 32))
        assert not caplog.records
        for _ in range(3):
            assert encoder(torch.rand(1, 4, 3, 32, 48)).shape == (1, 4, 24, WIDTH)
        assert len(caplog.records) == 1
        assert "4 frames of 32×48" in caplog.text
        assert encoder(torch.rand(1, 6, 3, 32, 32)).shape == (1, 6, 16, WIDTH)
        assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "shape", [(4, 3, 32, 32), (1, 3, 4, 32, 32), (1, 4, 3, 30, 32), (1, 4, 3, 32, 4), (0, 4, 3, 32, 32)]
)
def test_clips_of_another_layout_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"accepted: \(B, T, 3, H, W\)"):
        VideoEncoder(TINY)(torch.zeros(shape))
    with pytest.raises(UserError, match="T a multiple of 2"):
        VideoEncoder(replace(TINY, tubelet=2))(torch.zeros(1, 3, 3, 32, 32))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"^encoder\.depth is 0"):
        EncoderConfig(depth=0)
    with pytest.raises(UserError, match="no multiple of patch_size"):
        EncoderConfig(size=100)
    with pytest.raises(UserError, match="no multiple of tubelet"):
        EncoderConfig(frames=5, tubelet=2)
    with pytest.raises(UserError, match="multiple of num_heads"):
        EncoderConfig(width=100)


def test_drop_path_rises_linearly_to_the_last_block() -> None:
    for rates in ([0], [0, 0.2], [0, 0.05, 0.1, 0.15, 0.2]):
        config = replace(TINY, depth=len(rates), drop_path=0.2)
        assert [block.add_mlp.drop_path for block in VideoEncoder(config).blocks] == pytest.approx(rates)


def test_named_sizes() -> None:
    assert (vit_b().width, vit_b().depth, vit_b().num_heads, vit_b().grid) == (768, 12, 12, (14, 14))
    assert (vit_l().width, vit_l().depth, vit_l().num_heads, vit_l().grid) == (1024, 24, 16, (14, 14))


# Classifier


def test_classifier_pools_before_its_own_norm() -> None:
    classifier = scrambled(Classifier(VideoEncoder(TINY), 5)).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    features = classifier.encoder.encode(classifier.encoder.embed(clip), norm=False)
    expected = classifier.norm(features.flatten(1, 2).mean(dim=1)) @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(clip), expected)


def test_a_classifier_pooled_over_space_tells_the_order_of_frames() -> None:
    classifier = scrambled(Classifier(VideoEncoder(TINY), 5, pooling="space")).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    features = classifier.encoder.encode(classifier.encoder.embed(clip), norm=False)
    weight_KTD = classifier.head.weight.unflatten(1, (4, -1))
    expected = torch.einsum("btd,ktd->bk", classifier.norm(features.mean(dim=2)), weight_KTD) + classifier.head.bias
    torch.testing.assert_close(classifier(clip), expected)
    with pytest.raises(UserError, match=r"has 2 frames; this classifier, whose pooling is 'space', takes 4"):
        classifier(clip[:, :2])


def test_classifier_trains_every_parameter_but_the_unused_norm() -> None:
    classifier = Classifier(VideoEncoder(TINY), 5)
    nn.functional.cross_entropy(classifier(torch.rand(2, 4, 3, 32, 32)), torch.tensor([0, 3])).backward()
    frozen = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
    assert frozen == {"encoder.norm.weight", "encoder.norm.bias"}
    without = {name for name, parameter in classifier.named_parameters() if parameter.grad is None}
    assert without == frozen


def test_a_new_head_says_next_to_nothing() -> None:
    classifier = Classifier(VideoEncoder(TINY), 400)
    assert classifier.head.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    assert not classifier.head.bias.any()
    assert classifier(torch.rand(1, 4, 3, 32, 32)).abs().max() < 1e-2


def test_layer_ids_run_from_the_patches_to_the_head() -> None:
    classifier = Classifier(VideoEncoder(TINY), 5)
    ids: dict[int, set[str]] = {}
    for name, _ in classifier.named_parameters():
        ids.setdefault(layer_id(name, TINY.depth), set()).add(name)
    assert sorted(ids) == [0, 1, 2, 3]
    assert ids[0] == {
        "encoder.patch_embed.weight",
        "encoder.patch_embed.bias",
        "encoder.positions.time_TD",
        "encoder.positions.space_ND",
    }
    for number in (1, 2):
        assert all(name.startswith(f"encoder.blocks.{number - 1}.") for name in ids[number])
    assert ids[3] == {
        "encoder.norm.weight",
        "encoder.norm.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


# Regressor and decoders


def regressor_of(context: Context = "visible") -> Regressor:
    return scrambled(Regressor(width=WIDTH, depth=2, num_heads=HEADS, context=context))


def regressor_inputs(num_visible: int, num_masked: int) -> dict[str, Tensor]:
    return {
        "query_BSD": torch.randn(WIDTH).expand(2, num_masked, WIDTH),
        "context_position_BSD": torch.randn(2, num_visible, WIDTH),
        "query_position_BSD": torch.randn(2, num_masked, WIDTH),
    }


def test_regressor_is_its_blocks_on_the_mask_queries() -> None:
    regressor = regressor_of()
    context, inputs = torch.randn(2, 5, WIDTH), regressor_inputs(5, 7)
    expected = inputs["query_BSD"]
    for block in regressor.blocks:
        expected = block(
            expected,
            context,  # the same in every block: the visible tokens are never updated
            query_position=inputs["query_position_BSD"],
            context_position=inputs["context_position_BSD"],
        )
    assert torch.equal(regressor.regress(context_BSD=context, **inputs), regressor.norm(expected))


def test_regressor_sees_the_visible_tokens_only() -> None:
    """Masked queries do not see each other: what one gets depends on the context and its own place."""
    regressor = regressor_of()
    context, inputs = torch.randn(2, 5, WIDTH), regressor_inputs(5, 7)
    whole = regressor.regress(context_BSD=context, **inputs)
    third = {name: inputs[name][:, 2:3] for name in ("query_BSD", "query_position_BSD")}
    alone = regressor.regress(context_BSD=context, **(inputs | third))
    torch.testing.assert_close(alone, whole[:, 2:3])
    changed = context.clone()
    changed[0, 3] += 1
    assert (regressor.regress(context_BSD=changed, **inputs)[0] != whole[0]).any(dim=-1).all()
    torch.testing.assert_close(regressor.regress(context_BSD=changed, **inputs)[1], whole[1])


def test_positions_of_the_context_do_not_enter_the_values() -> None:
    """Where all visible tokens are alike, attention to any of them gives the same."""
    regressor = regressor_of()
    context = torch.randn(2, 1, WIDTH).expand(2, 5, WIDTH)
    inputs = regressor_inputs(5, 7)
    first = regressor.regress(context_BSD=context, **inputs)
    second = regressor.regress(context_BSD=context, **{**inputs, "context_position_BSD": torch.randn(2, 5, WIDTH)})
    torch.testing.assert_close(first, second)


def test_regressor_does_not_mind_the_order_of_the_visible_tokens() -> None:
    regressor = regressor_of()
    context, inputs, order = torch.randn(2, 5, WIDTH), regressor_inputs(5, 7), torch.tensor([4, 2, 0, 1, 3])
    shuffled = {**inputs, "context_position_BSD": inputs["context_position_BSD"][:, order]}
    torch.testing.assert_close(
        regressor.regress(context_BSD=context[:, order], **shuffled), regressor.regress(context_BSD=context, **inputs)
    )


def test_regressor_with_concatenated_context_sees_the_current_queries_too() -> None:
    regressor = regressor_of("concat")
    context, inputs = torch.randn(2, 5, WIDTH), regressor_inputs(5, 7)
    positions = torch.cat([inputs["context_position_BSD"], inputs["query_position_BSD"]], dim=1)
    expected = inputs["query_BSD"]
    for block in regressor.blocks:
        keys = torch.cat([context, expected], dim=1)  # as CAE: what the block before made of the queries
        expected = block(expected, keys, query_position=inputs["query_position_BSD"], context_position=positions)
    assert torch.equal(regressor.regress(context_BSD=context, **inputs), regressor.norm(expected))


def test_decoder_is_positions_blocks_norm_and_projection() -> None:
    decoder = decoder_of(AppearanceHead(WIDTH, 11))
    x, position = torch.randn(2, 4, 6, WIDTH), torch.randn(2, 4, 6, WIDTH)
    expected = x + position
    for block in decoder.blocks:
        expected = block(expected)
    expected = decoder.norm(expected)
    hidden = decoder(Latent(x, position, 6))
    assert torch.equal(hidden, expected)
    assert torch.equal(decoder(Latent(x, position, 2)), expected[:, :, 4:])  # the masked patches are the last
    head = decoder.heads["head"]
    assert torch.equal(head(hidden), hidden @ head.project.weight.T + head.project.bias)


def test_a_head_owns_its_loss() -> None:
    hidden, motion = torch.randn(2, 4, 6, WIDTH), torch.randn(2, 3, 6, 12)
    codes = torch.randint(11, (2, 4, 6))
    appearance, moving = AppearanceHead(WIDTH, 11), MotionHead(WIDTH, 12)
    expected = F.cross_entropy(appearance(hidden).flatten(0, 2), codes.flatten())
    torch.testing.assert_close(appearance.loss(hidden, codes), expected)
    expected = (moving(hidden)[:, :3] - motion).square().mean()
    torch.testing.assert_close(moving.loss(hidden, motion), expected)
    moving.reduction = "sum"
    torch.testing.assert_close(moving.loss(hidden, motion), 12 * expected)
    pixels = torch.randn(2, 4, 6, 11)
    expected = (appearance(hidden) - pixels).square().mean()
    torch.testing.assert_close(appearance.loss(hidden, pixels), expected)
    appearance.distance = "l1"
    torch.testing.assert_close(appearance.loss(hidden, pixels), (appearance(hidden) - pixels).abs().mean())


def decoder_of(head: AppearanceHead | MotionHead) -> Decoder:
    decoder = Decoder(width=WIDTH, depth=2, num_heads=HEADS, attention="factorised", heads={"head": head})
    return scrambled(decoder)


def order_decoder() -> OrderDecoder:
    return scrambled(OrderDecoder(decoder_of(MotionHead(WIDTH, 2)), WIDTH))


def order_logits(decoder: OrderDecoder, x: Tensor, position: Tensor, swapped_BM: Tensor) -> Tensor:
    return decoder.heads["head"](decoder(Latent(x, position, x.shape[2]), swapped_BM))


@pytest.mark.parametrize("num_frames", [4, 5])
def test_order_decoder_swaps_the_halves_of_the_tubes_it_is_told_to(num_frames: int) -> None:
    decoder = order_decoder()
    x, position = torch.randn(2, num_frames, 6, WIDTH), torch.randn(2, num_frames, 6, WIDTH)
    swapped = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]])
    half = num_frames // 2
    by_hand = x.clone()
    for b, tube in swapped.nonzero().tolist():
        by_hand[b, :, tube] = x[b, :, tube].roll(-half, dims=0)
    logits = order_logits(decoder, x, position, swapped)
    assert logits.shape == (2, 6, 2)
    assert torch.equal(logits, order_logits(decoder, by_hand, position, torch.zeros_like(swapped)))
    assert not torch.allclose(logits, order_logits(decoder, x, position, torch.zeros_like(swapped)))


def test_order_decoder_puts_a_cls_token_at_the_mean_of_a_tubes_positions() -> None:
    decoder = order_decoder()
    x, position = torch.randn(2, 4, 6, WIDTH), torch.randn(2, 4, 6, WIDTH)
    first = decoder.cls.value_D + position.mean(dim=1, keepdim=True)
    expected = decoder.decoder.decode(torch.cat([first, x + position], dim=1))[:, 0]
    torch.testing.assert_close(decoder(Latent(x, position, 6), torch.zeros(2, 6)), expected)


def test_order_decoder_reads_each_tubes_cls_token() -> None:
    """With temporal attention and MLP alone, a tube's logits depend on that tube only."""
    decoder = order_decoder()
    for block in decoder.decoder.blocks:
        for weight in block.space.out.parameters():
            nn.init.zeros_(weight)
    x, position = torch.randn(1, 4, 3, WIDTH), torch.randn(1, 4, 3, WIDTH)
    swapped = torch.zeros(1, 3)
    before = order_logits(decoder, x, position, swapped)
    x[:, :, 1] += 1
    after = order_logits(decoder, x, position, swapped)
    assert ((before != after).any(dim=-1)).tolist() == [[False, True, False]]


# Joint blocks and layer scale


def test_factorised_is_joint_where_there_is_one_frame() -> None:
    """With its time branch silent, and the same weights, space attention over one frame is joint attention."""
    factorised, joint = scrambled(SpaceTimeBlock(WIDTH, HEADS)), scrambled(JointBlock(WIDTH, HEADS))
    names = {"joint": "space", "norm_joint": "norm_space"}
    state = factorised.state_dict()
    joint.load_state_dict(
        {name: state[".".join([names.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]])]
         for name in joint.state_dict()}
    )  # fmt: skip
    for weight in factorised.time.out.parameters():
        nn.init.zeros_(weight)
    x = torch.randn(2, 1, 5, WIDTH)
    torch.testing.assert_close(factorised(x), joint(x))
    many = torch.randn(2, 3, 5, WIDTH)
    assert not torch.allclose(factorised(many), joint(many))


def test_joint_block_lets_every_token_see_every_other() -> None:
    block = scrambled(JointBlock(WIDTH, HEADS))
    x = torch.randn(1, 3, 5, WIDTH)
    before = block(x)
    x[0, 2, 4] += 1
    assert (block(x) != before).any(dim=-1).all()
    order = torch.randperm(15)
    shuffled = x.flatten(1, 2)[:, order].view(1, 3, 5, WIDTH)
    torch.testing.assert_close(block(shuffled).flatten(1, 2), block(x).flatten(1, 2)[:, order])


@pytest.mark.parametrize("attention", ["factorised", "joint"])
def test_layer_scale_multiplies_every_branch(attention: AttentionKind) -> None:
    plain = VideoEncoder(replace(TINY, attention=attention))
    scaled = VideoEncoder(replace(TINY, attention=attention, layer_scale=0.5))
    missing, unexpected = scaled.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {name.split(".")[-1] for name in missing} == {"scale_D"}
    assert len(missing) == TINY.depth * (3 if attention == "factorised" else 2)
    assert all((scaled.get_parameter(name) == 0.5).all() for name in missing)
    clip = torch.rand(1, 4, 3, 32, 32)
    assert not torch.allclose(scaled(clip), plain(clip))
    for block in plain.blocks:  # a branch ends in a linear layer, so half of that is the same
        for name, part in block.named_modules():
            if name.split(".")[-1] == "out" or name == "mlp.2":
                part.weight.data *= 0.5
    torch.testing.assert_close(scaled(clip), plain(clip), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["factorised", "joint"])
def test_attention_received_sums_to_one_over_a_frame(attention: AttentionKind) -> None:
    encoder = scrambled(VideoEncoder(replace(TINY, attention=attention, depth=3))).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    received_BTN = encoder.attention_received(clip)
    first, second, third = encoder.blocks
    assert torch.equal(received_BTN, third.received(second(first(encoder.embed(clip).x_BTVD))))
    assert received_BTN.shape == (2, 4, 16)
    torch.testing.assert_close(received_BTN.sum(-1), torch.ones(2, 4))
    assert received_BTN.std(dim=-1).min() > 1e-4
    # The keys that fetch the attention: with none, every patch gets the same.
    last = encoder.blocks[-1].space if attention == "factorised" else encoder.blocks[-1].joint
    with torch.no_grad():
        last.qkv.weight[WIDTH : 2 * WIDTH] = 0
    torch.testing.assert_close(encoder.attention_received(clip), torch.full((2, 4, 16), 1 / 16))


def test_attention_received_is_the_mean_over_heads_and_queries() -> None:
    attention, x = scrambled(SelfAttention(WIDTH, HEADS)), torch.randn(2, 5, WIDTH)
    expected = []
    for q, k in zip(*attention.qkv(x).chunk(3, dim=-1)[:2], strict=True):
        heads = zip(q.chunk(HEADS, dim=-1), k.chunk(HEADS, dim=-1), strict=True)
        expected.append(torch.cat([(q_h @ k_h.T / math.sqrt(8)).softmax(dim=-1) for q_h, k_h in heads]).mean(dim=0))
    torch.testing.assert_close(attention.received(x), torch.stack(expected))


def test_joint_attention_is_received_from_all_frames() -> None:
    block, x = scrambled(JointBlock(WIDTH, HEADS)), torch.randn(1, 3, 5, WIDTH)
    before = block.received(x)
    whole = block.joint.received(block.norm_joint(x).view(1, 15, WIDTH)).view(1, 3, 5)
    torch.testing.assert_close(before, whole / whole.sum(dim=-1, keepdim=True))
    x[0, 2, 4] = torch.randn(WIDTH)
    assert (block.received(x) != before)[0, 0].all()


# Compiling


def test_blocks_can_be_compiled_on_a_gpu_with_triton_and_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(blocks, "has_triton", lambda: True)
    for compiler in ("cc", "gcc", "clang"):
        monkeypatch.setattr(shutil, "which", lambda name, there=compiler: name if name == there else None)
        assert blocks.can_compile(gpu)
        assert not blocks.can_compile(cpu)
    monkeypatch.setattr(blocks, "has_triton", lambda: False)
    assert not blocks.can_compile(gpu)
    monkeypatch.setattr(blocks, "has_triton", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not blocks.can_compile(gpu)


@pytest.mark.parametrize(("limit", "raised"), [(3, 8), (99, 99)])
def test_each_block_is_compiled_for_each_of_its_shapes(
    monkeypatch: pytest.MonkeyPatch, limit: int, raised: int
) -> None:
    config = SimpleNamespace(recompile_limit=limit, optimize_ddp=True)
    monkeypatch.setitem(vars(torch), "_dynamo", SimpleNamespace(config=config))
    asked = []
    monkeypatch.setattr(torch, "compile", lambda forward, **settings: asked.append((forward, settings)) or abs)
    encoder = VideoEncoder(TINY)
    before = [block.forward for block in encoder.blocks]
    blocks.compile_blocks(encoder)
    assert asked == [(forward, {"dynamic": False}) for forward in before]
    assert [block.forward for block in encoder.blocks] == [abs, abs]
    assert (config.recompile_limit, config.optimize_ddp) == (raised, False)


# Weights at the start


@pytest.mark.usefixtures("empty_is_nan")
def test_every_parameter_of_an_encoder_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    without_layer_defaults(monkeypatch)
    assert nn.Linear(4, 4).weight.isnan().all()  # the trap is armed
    encoder = VideoEncoder(TINY)
    assert [name for name, parameter in encoder.named_parameters() if not parameter.isfinite().all()] == []


def test_weights_start_xavier_uniform_with_zero_biases_and_unit_norms() -> None:
    encoder = VideoEncoder(TINY)
    for name, part in encoder.named_modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            rows, columns = part.weight.flatten(1).shape
            bound = math.sqrt(6 / (rows + columns))
            assert part.weight.abs().max().item() <= bound, name
            assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
            assert part.bias is None or not part.bias.any(), name
        elif isinstance(part, nn.LayerNorm):
            assert (part.weight == 1).all(), name
            assert not part.bias.any(), name


def test_local_weights_start_by_attending_to_near_positions() -> None:
    positions = Positions(8, (8, 8), 48)
    init_weights(positions, "local")
    x_SD = F.layer_norm(positions(8, (8, 8)), (48,)).flatten(0, 1).detach()
    near = 8 * 8 * 3 + 27  # of patch 27 in frame 3

    def nearness(start: blocks.Start) -> tuple[Tensor, Tensor]:
        """Attention of a token to itself and to all, over what an even one would give itself."""
        cross = CrossAttention(48, 3)
        init_weights(cross, start)
        q, k = (layer(x_SD).unflatten(-1, (3, -1)).transpose(0, 1) for layer in (cross.q, cross.k))
        weights = (q[:, near : near + 1] @ k.mT / 4).softmax(dim=-1).mean(dim=(0, 1))
        return weights[near] * len(x_SD), weights

    at_itself, weights = nearness("local")
    assert at_itself > 20
    assert weights.argmax() == near
    assert nearness("xavier")[0] < 5
    attention = SelfAttention(48, 3)
    init_weights(attention, "local")
    q, k, v = attention.qkv.weight.chunk(3)
    assert torch.equal(q, k)
    torch.testing.assert_close(q @ q.T, LOCAL_GAIN**2 * torch.eye(48), atol=1e-5, rtol=0)
    assert v.abs().max() <= math.sqrt(6 / (48 + 144))


def test_weights_follow_from_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(VideoEncoder(TINY).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["patch_embed.weight"], states[2]["patch_embed.weight"])


@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (49, 49), (12, 30), (8, WRITTEN_OUT_UP_TO_KEYS + 1)])
def test_attention_written_out_is_torchs(queries: int, keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 8, dtype=torch.bfloat16, requires_grad=True) for n in (queries, keys, keys))
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    attend(q, k, v).float().square().sum().backward()
    F.scaled_dot_product_attention(*exact).square().sum().backward()
    for rounded, wanted in zip((q, k, v), exact, strict=True):
        torch.testing.assert_close(rounded.grad.float(), wanted.grad, rtol=0.05, atol=0.05)
    torch.testing.assert_close(attend(q, k, v).float(), F.scaled_dot_product_attention(*exact), rtol=0.02, atol=0.02)
