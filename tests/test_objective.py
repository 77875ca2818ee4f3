"""MAM2 as Fig. 1 draws it: who sees what, where gradients go, and how Eq. 4 adds up."""

import copy
import shutil
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mam2.config import Duration, Epochs, Steps, UserError
from mam2.losses import alignment_loss, motion_loss, standardised
from mam2.masks import Mask, MaskConfig, take
from mam2.model.blocks import compile_blocks, recompute_blocks
from mam2.model.encoder import EncoderConfig
from mam2.model.regressor import Latent
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.patches import patchify, unpatchify
from mam2.targets.maker import Targets
from mam2.targets.table import TargetSizes

ENCODER = EncoderConfig(width=24, depth=2, num_heads=3, frames=4, size=32, patch_size=8)
CONFIG = MAM2Config(width=24, num_heads=3, regressor_depth=2, appearance_depth=2, motion_depth=1)
NARROW = replace(CONFIG, width=12)
NUM_CODES = 11
SIZES = TargetSizes(NUM_CODES, 192)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


PREDICTED = ("visible_BTVD", "regressed_BTMD", "target_BTMD", "appearance_BTMK", "motion")


@dataclass(frozen=True)
class Stages:
    """Everything that the model computes for a batch; None where its configuration has no such part."""

    visible_BTVD: Tensor
    regressed_BTMD: Tensor | None
    target_BTMD: Tensor | None
    appearance_BTMK: Tensor | None
    motion: Tensor | None


def stages(model: MAM2, clip: Tensor, mask: Mask, swapped_BM: Tensor | None = None) -> Stages:
    seen = model.predict(clip, mask, swapped_BM)
    made = {kind: head(seen.hidden[name]) for name, kind, head in model.heads()}
    regressed = seen.latent.x_BTSD if model.config.regressor_depth else None
    return Stages(seen.visible_BTVD, regressed, seen.target_BTAD, made.get("appearance"), made.get("motion"))


def model_of(config: MAM2Config) -> MAM2:
    return MAM2(config, ENCODER, SIZES)


def make_clip() -> Tensor:
    return torch.rand(2, 4, 3, 32, 32)


def make_mask() -> Mask:
    return MaskConfig()(4, ENCODER.grid, sample_B=torch.tensor([5, 9]), seed=0)


def make_targets() -> Targets:
    return Targets(torch.randint(NUM_CODES, (2, 4, 16)), torch.randn(2, 3, 16, 192))


def with_noise_at(clip_BTCHW: Tensor, positions_BTM: Tensor) -> Tensor:
    """The clip with other pixels in the patches at these positions, in all frames."""
    patches_BTND = patchify(clip_BTCHW, 8)
    noise = torch.rand(*positions_BTM.shape, patches_BTND.shape[-1])
    index = positions_BTM[..., None].expand_as(noise)
    return unpatchify(patches_BTND.scatter(2, index, noise), 8, ENCODER.grid)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by name; None where there is none is left out."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def is_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Who sees what


@pytest.mark.parametrize("config", [CONFIG, NARROW])
def test_nothing_of_masked_patches_is_seen(config: MAM2Config) -> None:
    model, clip, mask = model_of(config), make_clip(), make_mask()
    before, after = stages(model, clip, mask), stages(model, with_noise_at(clip, mask.masked_BTM), mask)
    for name in ("visible_BTVD", "regressed_BTMD", "appearance_BTMK", "motion"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert (before.target_BTMD != after.target_BTMD).any(dim=-1).all()


def test_visible_patches_are_seen_and_are_no_part_of_the_target() -> None:
    model, clip, mask = model_of(CONFIG), make_clip(), make_mask()
    before, after = stages(model, clip, mask), stages(model, with_noise_at(clip, mask.visible_BTV), mask)
    for name in ("visible_BTVD", "regressed_BTMD", "appearance_BTMK", "motion"):
        assert not torch.equal(getattr(before, name), getattr(after, name)), name
    assert torch.equal(before.target_BTMD, after.target_BTMD)


def test_shapes_follow_the_mask() -> None:
    predicted = stages(model_of(NARROW), make_clip(), make_mask())
    assert {name: tuple(getattr(predicted, name).shape) for name in PREDICTED} == {
        "visible_BTVD": (2, 4, 4, 24),
        "regressed_BTMD": (2, 4, 12, 12),
        "target_BTMD": (2, 4, 12, 12),
        "appearance_BTMK": (2, 4, 12, NUM_CODES),
        "motion": (2, 4, 12, 192),
    }


def test_clips_do_not_see_each_other() -> None:
    model, clip, mask = model_of(CONFIG), make_clip(), make_mask()
    whole = stages(model, clip, mask)
    alone = stages(model, clip[1:], Mask(mask.visible_BTV[1:], mask.masked_BTM[1:]))
    for name in PREDICTED:
        torch.testing.assert_close(getattr(alone, name), getattr(whole, name)[1:], atol=1e-5, rtol=1e-5)


def test_decoders_get_nothing_but_the_regressors_output_and_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clip, mask = model_of(CONFIG), make_clip(), make_mask()
    fixed_BSD = torch.randn(2, 4 * 12, 24)
    monkeypatch.setattr(model.regressor, "regress", lambda *args, **kwargs: fixed_BSD)
    first, second = stages(model, clip, mask), stages(model, make_clip(), mask)
    assert not torch.equal(first.visible_BTVD, second.visible_BTVD)
    assert torch.equal(first.appearance_BTMK, second.appearance_BTMK)
    assert torch.equal(first.motion, second.motion)
    position_BTMD = take(model.encoder.position(clip).expand(2, -1, -1, -1), mask.masked_BTM)
    decoder = model.decoders["appearance"]
    hidden = decoder(Latent(fixed_BSD.unflatten(1, (4, 12)), position_BTMD, 12))
    assert torch.equal(first.appearance_BTMK, decoder.heads["appearance"](hidden))


def test_the_two_decoders_do_not_share_anything() -> None:
    model = model_of(CONFIG)
    predicted = stages(model, make_clip(), make_mask())
    of_appearance = gradients(model, predicted.appearance_BTMK.square().sum())
    assert not any(name.startswith("decoders.motion.") for name in of_appearance)
    predicted = stages(model, make_clip(), make_mask())
    of_motion = gradients(model, predicted.motion.square().sum())
    assert not any(name.startswith("decoders.appearance.") for name in of_motion)
    assert any(name.startswith("encoder.") for name in of_motion)


def test_regressor_gets_the_visible_tokens_of_all_frames_with_their_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, clip, mask = model_of(CONFIG), make_clip(), make_mask()
    seen: dict[str, Tensor] = {}
    regress = model.regressor.regress

    def watch(query_BSD: Tensor, context_BSD: Tensor, **positions: Tensor) -> Tensor:
        seen.update(query=query_BSD, context=context_BSD, **positions)
        return regress(query_BSD, context_BSD, **positions)

    monkeypatch.setattr(model.regressor, "regress", watch)
    predicted = stages(model, clip, mask)
    position_TND = model.encoder.position(clip)
    assert torch.equal(seen["context"].unflatten(1, (4, 4)), predicted.visible_BTVD)
    for b, t in ((0, 0), (1, 3)):
        visible, masked = mask.visible_BTV[b, t], mask.masked_BTM[b, t]
        assert torch.equal(seen["context_position_BSD"][b, 4 * t : 4 * t + 4], position_TND[t, visible])
        assert torch.equal(seen["query_position_BSD"][b, 12 * t : 12 * t + 12], position_TND[t, masked])


# Gradients


@pytest.mark.parametrize("config", [CONFIG, NARROW])
def test_no_gradient_through_the_alignment_target(config: MAM2Config) -> None:
    model, clip, mask = model_of(config), make_clip(), make_mask()
    predicted = stages(model, clip, mask)
    constant = predicted.target_BTMD.clone()
    assert not predicted.target_BTMD.requires_grad
    actual = gradients(model, alignment_loss(predicted.regressed_BTMD, predicted.target_BTMD, "mean"))
    expected = gradients(model, alignment_loss(stages(model, clip, mask).regressed_BTMD, constant, "mean"))
    assert is_equal(actual, expected)
    # With the gradient let through, the encoder's would differ: this test can fail.
    let_through = model.project(model.encoder.features_of(clip, mask.masked_BTM))
    torch.testing.assert_close(let_through, constant)
    other = gradients(model, alignment_loss(stages(model, clip, mask).regressed_BTMD, let_through, "mean"))
    assert not torch.allclose(other["encoder.patch_embed.weight"], actual["encoder.patch_embed.weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", [CONFIG, NARROW])
def test_every_parameter_gets_a_gradient(config: MAM2Config, precision: str) -> None:
    """DDP refuses unused ones. In bf16, a weight first used without gradient must still get one later."""
    model, clip, mask = model_of(config), make_clip(), make_mask()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = model(clip, mask, make_targets(), 0)
    found = gradients(model, losses.total)
    assert set(found) == {name for name, _ in model.named_parameters()}
    # What is added to all keys alike changes no softmax: these two have no gradient but for rounding.
    without = (".norm_key.bias", ".cross.k.bias")
    assert [name for name, g in found.items() if not name.endswith(without) and g.abs().max() < 1e-7] == []


def test_bfloat16_is_close_to_float32() -> None:
    model, clip, mask, targets = model_of(NARROW), make_clip(), make_mask(), make_targets()
    exact = model(clip, mask, targets, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(clip, mask, targets, 0)
    assert rounded.total.dtype == torch.float32
    torch.testing.assert_close(rounded.total, exact.total, rtol=0.02, atol=0)


# Eq. 4


def test_total_is_equation_4() -> None:
    model = MAM2(replace(CONFIG, alignment_ramp=Epochs(0.5)), ENCODER, SIZES, steps_per_epoch=8)
    clip, mask, targets = make_clip(), make_mask(), make_targets()
    predicted = stages(model, clip, mask)
    codes = torch.stack([targets.appearance[b][:, mask.masked_BTM[b, 0]] for b in range(2)])
    motion = torch.stack([targets.motion[b][:, mask.masked_BTM[b, 0]] for b in range(2)])
    expected = {
        "appearance": F.cross_entropy(predicted.appearance_BTMK.flatten(0, 2), codes.flatten()),
        "motion": motion_loss(predicted.motion, motion, "mean"),
        "alignment": alignment_loss(predicted.regressed_BTMD, predicted.target_BTMD, "mean"),
    }
    for step, alpha in ((0, 0.5), (1, 1.0), (9, 2.0)):
        losses = model(clip, mask, targets, step)
        torch.testing.assert_close(losses.parts, expected | {"motion_of_none": motion.square().mean()})
        total = expected["appearance"] + expected["motion"] + alpha * expected["alignment"]
        torch.testing.assert_close(losses.total, total)
        assert losses.total.requires_grad
        assert not any(part.requires_grad for part in losses.parts.values())


def test_targets_at_visible_positions_do_not_count() -> None:
    model, clip, mask, targets = model_of(CONFIG), make_clip(), make_mask(), make_targets()
    codes, motion = targets.appearance.clone(), targets.motion.clone()
    for b in range(2):
        codes[b][:, mask.visible_BTV[b, 0]] = 0
        motion[b][:, mask.visible_BTV[b, 0]] = 100.0
    assert model(clip, mask, Targets(codes, motion), 0).parts == model(clip, mask, targets, 0).parts


def test_features_for_health_are_the_visible_ones() -> None:
    model, clip, mask = model_of(CONFIG), make_clip(), make_mask()
    losses = model(clip, mask, make_targets(), 0)
    assert losses.features_BTD is not None
    torch.testing.assert_close(losses.features_BTD, stages(model, clip, mask).visible_BTVD.mean(dim=2))
    assert not losses.features_BTD.requires_grad


def test_an_epoch_is_as_many_steps_as_one_says_or_else_one() -> None:
    assert CONFIG.build(ENCODER, SIZES, steps_per_epoch=7).steps_per_epoch == 7
    assert CONFIG.build(ENCODER, SIZES).steps_per_epoch == model_of(CONFIG).steps_per_epoch == 1


def test_alpha_is_constant_without_a_ramp() -> None:
    assert [MAM2Config().alpha(step, 100) for step in (0, 1, 10_000)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("ramp", [Steps(4), Epochs(0.5)])
def test_alpha_ramps_up_linearly(ramp: Duration) -> None:
    config = MAM2Config(alignment_weight=2.0, alignment_ramp=ramp)
    assert [config.alpha(step, 8) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_batch_target_is_standardised_by_channel() -> None:
    target = 5 + 3 * torch.randn(4, 4, 12, 24) * torch.arange(1, 25)
    standard = standardised(target, "batch")
    torch.testing.assert_close(standard.mean(dim=(0, 1, 2)), torch.zeros(24), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(dim=(0, 1, 2)), torch.ones(24), atol=2e-3, rtol=0)
    assert not standardised(torch.full((2, 4, 12, 24), 7.0), "batch").any()
    flat = standardised(torch.tensor([-1e-3, 1e-3]).view(1, 1, 2, 1), "batch")  # their deviation is √2 · 1e-3
    assert flat.flatten().tolist() == pytest.approx([1 - 2**0.5, 2**0.5 - 1])
    assert standardised(target, "plain") is target


def test_batch_target_enters_the_alignment() -> None:
    model, clip, mask = model_of(replace(CONFIG, alignment_target="batch")), make_clip(), make_mask()
    predicted = stages(model, clip, mask)
    losses = model(clip, mask, make_targets(), 0)
    expected = alignment_loss(predicted.regressed_BTMD, predicted.target_BTMD, "mean", "batch")
    assert losses.parts["alignment"] == expected
    assert losses.parts["alignment"] != alignment_loss(predicted.regressed_BTMD, predicted.target_BTMD, "mean")


# Table 2's rows, and the switches

VARIANTS = {
    "coupled": replace(CONFIG, decoders="coupled"),
    "w/o appearance": replace(CONFIG, decoders="motion"),
    "w/o motion": replace(CONFIG, decoders="appearance"),
    "w/o regressor": replace(CONFIG, regressor_depth=0),
    "w/o alignment": replace(CONFIG, alignment_weight=0.0),
    "coupled, w/o regressor": replace(CONFIG, decoders="coupled", regressor_depth=0),
    "concat": replace(CONFIG, context="concat"),
    "sum": replace(CONFIG, alignment_reduction="sum", motion_reduction="sum"),
    "layer_norm": replace(CONFIG, alignment_target="layer_norm"),
    "teacher": replace(CONFIG, teacher_momentum=0.9),
    "narrow": NARROW,
    "narrow, w/o regressor": replace(NARROW, regressor_depth=0),
}
PARTS = {
    "w/o appearance": {"motion", "alignment"},
    "w/o motion": {"appearance", "alignment"},
    "w/o regressor": {"appearance", "motion"},
    "narrow, w/o regressor": {"appearance", "motion"},
    "coupled, w/o regressor": {"appearance", "motion"},
    "w/o alignment": {"appearance", "motion"},
}


def targets_for(config: MAM2Config) -> Targets:
    targets = make_targets()
    return Targets(
        targets.appearance if config.needs_appearance else None, targets.motion if config.needs_motion else None
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_build_only_what_they_use(name: str) -> None:
    """Every parameter that learns gets a gradient, as DDP without find_unused_parameters needs."""
    config = VARIANTS[name]
    model = model_of(config)
    losses = model(make_clip(), make_mask(), targets_for(config), 0)
    assert losses.parts.keys() - {"motion_of_none"} == PARTS.get(name, {"appearance", "motion", "alignment"})
    found = gradients(model, losses.total)
    assert set(found) == {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    without = (".norm_key.bias", ".cross.k.bias")  # what is added to all keys alike changes no softmax
    assert [n for n, g in found.items() if not n.endswith(without) and g.abs().max() < 1e-7] == []
    weights = {"alignment": 2.0}
    expected = sum(weights.get(n, 1.0) * part for n, part in losses.parts.items() if n != "motion_of_none")
    torch.testing.assert_close(losses.total.detach(), expected)


def parts_of(model: MAM2) -> set[str]:
    """The parts that have parameters."""
    names = [name.split(".") for name, _ in model.named_parameters()]
    return {".".join(name[:2]) if name[0] == "decoders" else name[0] for name in names}


def test_parts_of_the_variants() -> None:
    whole = {"encoder", "regressor", "decoders.appearance", "decoders.motion"}
    for name, expected in {
        "coupled": whole - {"decoders.appearance", "decoders.motion"} | {"decoders.shared"},
        "w/o appearance": whole - {"decoders.appearance"},
        "w/o motion": whole - {"decoders.motion"},
        "w/o regressor": whole,
        "w/o alignment": whole,
        "teacher": whole | {"alignment"},
    }.items():
        assert parts_of(model_of(VARIANTS[name])) == expected, name
    assert parts_of(model_of(replace(VARIANTS["teacher"], alignment_weight=0.1))) == whole | {"alignment"}
    without = [name for name, _ in model_of(VARIANTS["w/o regressor"]).regressor.named_parameters()]
    assert without == ["mask_query.value_D"]


@pytest.mark.parametrize("name", VARIANTS)
def test_no_variant_sees_anything_of_masked_patches(name: str) -> None:
    model, clip, mask = model_of(VARIANTS[name]), make_clip(), make_mask()
    before, after = stages(model, clip, mask), stages(model, with_noise_at(clip, mask.masked_BTM), mask)
    for field in ("visible_BTVD", "regressed_BTMD", "appearance_BTMK", "motion"):
        if getattr(before, field) is not None:
            assert torch.equal(getattr(before, field), getattr(after, field)), field


def test_coupled_heads_share_one_decoder() -> None:
    model, clip, mask = model_of(VARIANTS["coupled"]), make_clip(), make_mask()
    predicted = stages(model, clip, mask)
    position_BTMD = take(model.encoder.position(clip).expand(2, -1, -1, -1), mask.masked_BTM)
    decoder = model.decoders["shared"]
    hidden = decoder.decode(predicted.regressed_BTMD + position_BTMD)
    assert torch.equal(predicted.appearance_BTMK, decoder.heads["appearance"](hidden))
    assert torch.equal(predicted.motion, decoder.heads["motion"](hidden))


def test_without_a_regressor_decoders_see_visible_features_and_mask_queries() -> None:
    model, clip, mask = model_of(VARIANTS["w/o regressor"]), make_clip(), make_mask()
    predicted = stages(model, clip, mask)
    assert predicted.regressed_BTMD is None
    assert predicted.target_BTMD is None
    # The decoder's input put back in the order of the image: the same output, so order does not matter.
    tokens = model.regressor.mask_query.value_D.expand(2, 4, 16, -1).clone()
    index = mask.visible_BTV[..., None].expand(-1, -1, -1, 24)
    tokens = tokens.scatter(2, index, predicted.visible_BTVD)
    decoder = model.decoders["motion"]
    whole = decoder.heads["motion"](decoder.decode(tokens + model.encoder.position(clip)))
    torch.testing.assert_close(predicted.motion, take(whole, mask.masked_BTM), atol=1e-5, rtol=1e-5)


def test_the_context_is_handed_on() -> None:
    plain, concat, clip, mask = model_of(CONFIG), model_of(VARIANTS["concat"]), make_clip(), make_mask()
    concat.load_state_dict(plain.state_dict())
    first, second = (stages(model, clip, mask) for model in (plain, concat))
    assert torch.equal(first.visible_BTVD, second.visible_BTVD)
    assert not torch.allclose(first.regressed_BTMD, second.regressed_BTMD, atol=1e-3)


def test_layer_norm_target_is_normalised_token_by_token() -> None:
    target = standardised(5 + 3 * torch.randn(2, 4, 12, 24), "layer_norm")
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 4, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.std(-1, unbiased=False), torch.ones(2, 4, 12), atol=1e-4, rtol=0)


def test_sum_reduction_multiplies_by_the_channels() -> None:
    clip, mask, targets = make_clip(), make_mask(), make_targets()
    models = []
    for config in (CONFIG, VARIANTS["sum"]):
        torch.manual_seed(3)
        models.append(model_of(config)(clip, mask, targets, 0).parts)
    mean, total = models
    torch.testing.assert_close(total["alignment"], 24 * mean["alignment"])  # D
    torch.testing.assert_close(total["motion"], 192 * mean["motion"])  # C·P·P
    torch.testing.assert_close(total["motion_of_none"], 192 * mean["motion_of_none"])
    assert total["appearance"] == mean["appearance"]


def test_the_teacher_is_a_moving_average_of_the_encoder() -> None:
    model, clip, mask = model_of(VARIANTS["teacher"]), make_clip(), make_mask()
    without = model_of(CONFIG)
    without.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("alignment.")})
    assert torch.equal(stages(model, clip, mask).target_BTMD, stages(without, clip, mask).target_BTMD)
    before = {n: t.clone() for n, t in model.alignment.teacher.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in model.alignment.teacher.parameters())
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += torch.randn_like(parameter)
    moved = model.encoder.state_dict()
    model.after_step()
    for name, tensor in model.alignment.teacher.state_dict().items():
        torch.testing.assert_close(tensor, 0.9 * before[name] + 0.1 * moved[name])
    dropping = MAM2(VARIANTS["teacher"], replace(ENCODER, drop_path=0.9), SIZES).alignment.teacher
    assert [block.add_mlp.drop_path for block in dropping.blocks] == [0, 0]  # a target is not drawn
    # Its own features of the masked patches are the target now, not the encoder's.
    target = stages(model, clip, mask).target_BTMD
    expected = model.alignment.teacher.features_of(clip, mask.masked_BTM)
    assert torch.equal(target, expected)
    assert not torch.allclose(target, model.encoder.features_of(clip, mask.masked_BTM))


def test_clip_order_reaches_the_motion_decoder() -> None:
    torch.manual_seed(0)
    model, clip, mask = MAM2(CONFIG, ENCODER, TargetSizes(NUM_CODES, 2, True)), make_clip(), make_mask()
    order_BN = torch.randint(2, (2, 16))
    targets = Targets(make_targets().appearance, order_BN)
    losses = model(clip, mask, targets, 0)
    assert losses.parts["motion_of_none"].item() == pytest.approx(0.6931, abs=1e-4)
    swapped_BM = order_BN.gather(1, mask.masked_BTM[:, 0])
    predicted = stages(model, clip, mask, swapped_BM)
    assert predicted.motion.shape == (2, 12, 2)
    assert losses.parts["motion"] == F.cross_entropy(predicted.motion.flatten(0, 1), swapped_BM.flatten())
    other = stages(model, clip, mask, 1 - swapped_BM)
    assert torch.equal(other.appearance_BTMK, predicted.appearance_BTMK)  # the appearance decoder sees the true order
    assert not torch.equal(other.motion, predicted.motion)
    found = gradients(model, losses.total)
    assert set(found) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("config", [VARIANTS["coupled"], VARIANTS["w/o regressor"]])
def test_clip_order_needs_a_regressor_and_a_decoder_of_its_own(config: MAM2Config) -> None:
    with pytest.raises(UserError, match="decoder of its own"):
        MAM2(config, ENCODER, TargetSizes(NUM_CODES, 2, True))


def test_pixels_in_the_place_of_codes() -> None:
    model, clip, mask = MAM2(CONFIG, ENCODER, TargetSizes(192, 192)), make_clip(), make_mask()
    targets = Targets(torch.randn(2, 4, 16, 192), make_targets().motion)
    expected = (stages(model, clip, mask).appearance_BTMK - take(targets.appearance, mask.masked_BTM)).square().mean()
    torch.testing.assert_close(model(clip, mask, targets, 0).parts["appearance"], expected.detach())


def test_random_masks_with_joint_attention() -> None:
    model = MAM2(CONFIG, replace(ENCODER, attention="joint"), SIZES)
    clip, mask = make_clip(), MaskConfig(kind="random")(4, ENCODER.grid, sample_B=torch.tensor([5, 9]), seed=0)
    before, after = stages(model, clip, mask), stages(model, with_noise_at(clip, mask.masked_BTM), mask)
    assert torch.equal(before.motion, after.motion)
    assert set(gradients(model, model(clip, mask, make_targets(), 0).total)) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_impossible_momenta_are_refused(momentum: float) -> None:
    with pytest.raises(UserError, match=r"^objective\.teacher_momentum"):
        MAM2Config(teacher_momentum=momentum)


def test_the_same_method_without_a_part() -> None:
    assert CONFIG.without_parts() == {
        "alignment target": replace(CONFIG, alignment_weight=0.0),
        "appearance decoder and head": replace(CONFIG, decoders="motion"),
        "motion decoder": replace(CONFIG, decoders="appearance"),
    }
    assert replace(CONFIG, decoders="coupled", regressor_depth=0).without_parts() == {}


@pytest.mark.parametrize("name", ["plain", "w/o appearance", "w/o motion", "coupled", "clip order"])
def test_a_reconstruction_is_what_the_heads_predict(name: str) -> None:
    targets, sizes, swapped_BM = targets_for(config := VARIANTS.get(name, CONFIG)), SIZES, None
    clip, mask = make_clip(), make_mask()
    if name == "clip order":
        sizes, order_BN = TargetSizes(NUM_CODES, 2, True), torch.randint(2, (2, 16))
        targets, swapped_BM = replace(targets, motion=order_BN), order_BN.gather(1, mask.masked_BTM[:, 0])
    model = MAM2(config, ENCODER, sizes)
    found, expected = model.reconstruct(clip, mask, targets), stages(model, clip, mask, swapped_BM)
    for part in ("appearance_BTMK", "motion"):
        if getattr(expected, part) is None:
            assert getattr(found, part) is None
        else:
            assert torch.equal(getattr(found, part), getattr(expected, part))


# Weights at the start, and learning


@pytest.mark.usefixtures("empty_is_nan")
@pytest.mark.parametrize("config", [CONFIG, NARROW])
def test_every_parameter_is_set(config: MAM2Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (nn.Linear, nn.Conv2d, nn.LayerNorm):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    assert nn.Linear(4, 4).weight.isnan().all()  # the trap is armed
    model = model_of(config)
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []
    assert 0.01 < model.regressor.mask_query.value_D.std() < 0.03


def test_a_projection_is_there_only_where_widths_differ() -> None:
    whole = {"encoder", "regressor", "decoders.appearance", "decoders.motion"}
    assert parts_of(model_of(CONFIG)) == whole
    narrow = model_of(NARROW)
    assert parts_of(narrow) == whole | {"project", "project_position"}
    linear, x = narrow.project[0], torch.randn(3, 24)
    torch.testing.assert_close(narrow.project(x), F.layer_norm(linear(x), (12,), eps=1e-6))


def test_it_learns_one_batch_by_heart() -> None:
    model, clip, mask, targets = model_of(CONFIG), make_clip(), make_mask(), make_targets()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model(clip, mask, targets, 0).parts
    for _ in range(60):
        optimizer.zero_grad()
        model(clip, mask, targets, 0).total.backward()
        optimizer.step()
    last = model(clip, mask, targets, 0).parts
    assert last["appearance"] < 0.5 * first["appearance"]
    assert last["motion"] < 0.95 * first["motion"]


def test_what_is_not_predicted_costs_nothing_and_changes_nothing_else() -> None:
    """Queries do not see one another in the regressor: a predicted patch is regressed as if all were."""
    model, clip = model_of(CONFIG), make_clip()
    clips = {"num_frames": 4, "grid": (4, 4), "sample_B": torch.arange(2), "seed": 0}
    whole, half = MaskConfig()(**clips), MaskConfig(predicted=0.5)(**clips)
    predicted = stages(model, clip, half)
    assert predicted.appearance_BTMK.shape == (2, 4, 6, NUM_CODES)
    kept_BTM = (whole.masked_BTM[..., None] == half.masked_BTM[..., None, :]).any(dim=-1)
    everything = stages(model, clip, whole).regressed_BTMD
    for clip_number in range(2):
        expected = everything[clip_number][kept_BTM[clip_number]].view(4, 6, -1)
        torch.testing.assert_close(predicted.regressed_BTMD[clip_number], expected, atol=1e-5, rtol=1e-5)


def test_a_share_of_the_patches_is_aligned() -> None:
    model, clip, targets = model_of(CONFIG), make_clip(), make_targets()
    mask = MaskConfig(aligned=0.5)(4, (4, 4), sample_B=torch.arange(2), seed=0)
    predicted = stages(model, clip, mask)
    assert predicted.target_BTMD.shape == (2, 4, 6, 24)
    errors = []
    for clip_number in range(2):
        which = mask.aligned_BA[clip_number]
        one = clip[clip_number : clip_number + 1]
        target = model.encoder.features_of(one, mask.masked_BTM[clip_number : clip_number + 1, :, which])
        errors.append((predicted.regressed_BTMD[clip_number][:, which] - target[0]).square().mean())
    found = model(clip, mask, targets, 0).parts
    torch.testing.assert_close(found["alignment"], torch.stack(errors).mean().detach())
    whole = model(clip, Mask(mask.visible_BTV, mask.masked_BTM), targets, 0).parts
    assert found["appearance"] == whole["appearance"]
    assert found["motion"] == whole["motion"]


def test_blocks_that_compute_again_give_the_same_gradients_from_less_memory() -> None:
    clip, mask, targets, seen = make_clip(), make_mask(), make_targets(), []
    first = model_of(CONFIG).train()
    for model, again in ((first, False), (copy.deepcopy(first), True)):
        kept = []
        if again:
            recompute_blocks(model)
        names = [name for name, _ in model.named_parameters()]
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            total = model(clip, mask, targets, 0).total
        total.backward()
        seen.append((names, total, [p.grad for p in model.parameters()], sum(kept)))
    (names, total, gradients, kept), (other_names, other_total, other_gradients, other_kept) = seen
    assert names == other_names
    assert torch.equal(total, other_total)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        assert torch.equal(gradient, other)
    assert other_kept < 0.5 * kept


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it compiles
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("again", [False, True])
def test_compiled_blocks_give_the_same_gradients_and_compile_once(again: bool) -> None:
    clip, targets = make_clip(), make_targets()
    plain = model_of(CONFIG).train()
    compiled = copy.deepcopy(plain)
    torch.compiler.reset()
    if again:
        recompute_blocks(compiled)
    compile_blocks(compiled)
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for step in range(3):
        mask = MaskConfig()(4, (4, 4), sample_B=torch.arange(2) + 2 * step, seed=0)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            totals = [model(clip, mask, targets, step).total for model in (plain, compiled)]
            for model, total in zip((plain, compiled), totals, strict=True):
                model.zero_grad()
                total.backward()
        torch.testing.assert_close(*totals)
        for parameter, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("decoders", ["disentangled", "coupled"])
def test_a_local_start_predicts_no_motion(decoders: Literal["disentangled", "coupled"]) -> None:
    clip, mask = torch.rand(2, 4, 3, 32, 32), MaskConfig()(4, ENCODER.grid, sample_B=torch.arange(2), seed=0)
    config = replace(CONFIG, decoders=decoders, start="local")
    seen = stages(config.build(ENCODER, SIZES), clip, mask)
    assert seen.motion is not None
    assert not seen.motion.any()
    assert seen.appearance_BTMK is not None
    assert seen.appearance_BTMK.std() > 0.1
    random = stages(replace(config, start="xavier").build(ENCODER, SIZES), clip, mask).motion
    assert random is not None
    assert random.std() > 0.1
