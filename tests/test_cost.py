"""The cost of a step: counted operations against figures worked out by hand, and what each choice adds to them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mam2.config import Epochs
from mam2.cost import cache_gib, estimate, gpu_hours, num_cached, remembered, run_folder_gib, tflop_by_part, this_cpu
from mam2.data.clips import Data
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.recipes import get_recipe
from mam2.targets.cache import TokenCache
from mam2.targets.table import APPEARANCE_TARGETS, TargetsConfig, target_sizes
from mam2.targets.tokenizers.dalle import DALLE, DALLEConfig
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig, gumbel_f8
from mam2.train import checkpoint
from mam2.train.engine import Loop
from mam2.train.finetune import Finetune
from mam2.train.optim import make_optimizer
from mam2.train.pretrain import Pretrain, build

D, T, V, M, P = 16, 4, 4, 12, 4  # 16 patches a frame, 12 of them masked
SMALL = Pretrain(
    encoder=EncoderConfig(width=D, depth=2, num_heads=2, frames=T, size=16, patch_size=P),
    objective=MAM2Config(width=D, num_heads=2, regressor_depth=1, appearance_depth=1, motion_depth=1),
    targets=TargetsConfig(appearance="random_projection", num_codes=32),
)


def block_flop(tokens: int, frames: int) -> int:
    """Forward, of a factorised block: two attentions with their four linear layers each, and an MLP of 8 D²."""
    per_frame = tokens // frames
    return 2 * tokens * D * (4 * D + 4 * D + 8 * D + 2 * frames + 2 * per_frame)


def test_operations_are_those_counted_by_hand() -> None:
    visible, masked = T * V, T * M
    patch_embed = 2 * T * 16 * D * 3 * P * P
    encoder = 2 * block_flop(visible, T)
    target = 2 * block_flop(masked, T)
    cross = 2 * D * (2 * masked * D + 2 * visible * D + 8 * masked * D + 2 * masked * visible)
    decoders = 2 * block_flop(masked, T) + 2 * masked * D * (32 + 3 * P * P)
    # Backward costs twice the forward, but nothing for the target and for the gradient of the pixels.
    expected = 2 * patch_embed + 3 * (encoder + cross + decoders) + target
    # Attention's own backward re-computes the scores: five products for the two of the forward.
    attention = sum(2 * n * D * 2 * (T + n // T) for n in (visible, visible, masked, masked))
    attention += 2 * D * 2 * masked * visible
    assert estimate(SMALL).train_tflop * 1e12 == pytest.approx(expected + attention / 2, rel=0.002)


def test_vit_b_is_what_the_step_benchmark_counts() -> None:
    cost = estimate(get_recipe("mam2_b_k400", Pretrain))
    assert cost.train_tflop == pytest.approx(2.538, abs=0.002)  # benchmarks/results/step/vit_b_cpu.json
    assert cost.tflop == pytest.approx(4.26, abs=0.01)
    assert cost.state_gib == pytest.approx(16 * 198.6e6 / 2**30, rel=0.1)
    assert 1 < cost.clip_gib < 3


def test_what_is_left_out_costs_nothing() -> None:
    def tflop(**fields: object) -> float:
        return estimate(replace(SMALL, objective=replace(SMALL.objective, **fields))).train_tflop

    whole = estimate(SMALL).train_tflop
    assert whole - tflop(alignment_weight=0.0) == pytest.approx(2 * block_flop(T * M, T) / 1e12, rel=0.002)
    assert tflop(decoders="motion") < tflop(decoders="coupled") < whole
    assert tflop(regressor_depth=0) < whole
    teacher = estimate(replace(SMALL, objective=replace(SMALL.objective, teacher_momentum=0.9)))
    assert teacher.state_gib > estimate(SMALL).state_gib


def test_targets_that_are_not_wanted_cost_nothing() -> None:
    paper = replace(SMALL, targets=TargetsConfig(motion="optical_flow"))
    both = estimate(paper).targets_tflop
    appearance = estimate(replace(paper, objective=replace(SMALL.objective, decoders="appearance"))).targets_tflop
    motion = estimate(replace(paper, objective=replace(SMALL.objective, decoders="motion"))).targets_tflop
    assert both == pytest.approx(appearance + motion)
    assert appearance == pytest.approx(1.721 * T * 16 / (16 * 196))
    assert motion == pytest.approx(1.192 * T * 16**2 / (16 * 224**2))


@pytest.mark.parametrize("fields", [{"motion": "clip_order"}, {"appearance": "pixels"}, {"motion": "optical_flow"}])
def test_every_kind_of_target_can_be_estimated(fields: dict[str, str]) -> None:
    assert estimate(replace(SMALL, targets=replace(SMALL.targets, **fields))).train_tflop > 0


def test_hours_are_clips_times_operations() -> None:
    run = replace(SMALL, loop=Loop(batch_size=10, duration=Epochs(3)))
    cost = estimate(run)
    # 105 videos make 10 full batches of 10: 300 clips in 3 epochs.
    assert gpu_hours(run, cost, num_videos=105, tflops=2.0) == pytest.approx(300 * cost.tflop / 2 / 3600)


@pytest.mark.parametrize("name", ["vqgan_16384", "vqgan_8192", "dalle"])
def test_the_tokenizers_cost_what_the_table_says(name: str) -> None:
    row = APPEARANCE_TARGETS[name]
    with torch.device("meta"):
        config = {"vqgan_16384": VQGANConfig(), "vqgan_8192": gumbel_f8(), "dalle": DALLEConfig()}[name]
        net = DALLE(config, with_decoder=False) if name == "dalle" else VQGAN(config, with_decoder=False)
        frame = torch.empty(1, 3, row.size, row.size)
        counter = FlopCounterMode(display=False)
        with counter:
            if name == "dalle":
                blocks = net.encoder.blocks
                blocks.get_submodule("output.conv")(net.encoder(blocks["input"](frame)))
            else:
                hidden = net.quant_conv(net.encoder(frame))
                if name == "vqgan_16384":
                    hidden.flatten(2).transpose(1, 2) @ torch.empty(256, 16384)
                else:
                    net.quantize["proj"](hidden)
    assert 16 * counter.get_total_flops() / 1e9 == pytest.approx(row.gflop, abs=1)


def test_parts_add_up_and_are_what_the_step_benchmark_counts() -> None:
    parts = tflop_by_part(get_recipe("mam2_b_k400", Pretrain))
    assert sum(parts.values()) == pytest.approx(estimate(get_recipe("mam2_b_k400", Pretrain)).tflop)
    assert parts == {  # benchmarks/results/step/vit_b_cpu.json
        "encoder, visible patches": pytest.approx(0.547, abs=0.001),
        "alignment target": pytest.approx(0.547, abs=0.001),
        "rest": pytest.approx(0.434, abs=0.001),
        "appearance decoder and head": pytest.approx(0.727, abs=0.001),
        "motion decoder": pytest.approx(0.283, abs=0.001),
        "vqgan_16384, target": pytest.approx(1.721),
    }


def test_parts_of_variants_add_up() -> None:
    for objective in (MAM2Config(decoders="coupled"), MAM2Config(regressor_depth=0), MAM2Config(alignment_weight=0.0)):
        config = replace(SMALL, objective=replace(objective, width=D, num_heads=2, appearance_depth=1))
        parts = tflop_by_part(config)
        assert min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(estimate(config).tflop)
        assert ("alignment target" in parts) is config.objective.aligns


def test_what_is_not_predicted_is_not_paid_for() -> None:
    whole, half = (tflop_by_part(replace(SMALL, mask=MaskConfig(predicted=share))) for share in (1.0, 0.5))
    assert half["encoder, visible patches"] == whole["encoder, visible patches"]
    for name in ("alignment target", "rest", "appearance decoder and head", "motion decoder"):
        assert 0.4 * whole[name] < half[name] < 0.75 * whole[name], name
    aligned = tflop_by_part(replace(SMALL, mask=MaskConfig(aligned=0.5)))
    assert aligned["alignment target"] < 0.55 * whole["alignment target"]
    assert aligned["motion decoder"] == pytest.approx(whole["motion decoder"])


def test_tubelets_of_two_frames_are_half_the_tokens() -> None:
    tubelets = replace(SMALL, encoder=replace(SMALL.encoder, frames=2 * T, tubelet=2))
    parts, expected = tflop_by_part(tubelets), tflop_by_part(SMALL)
    patch_embed = 2 * 2 * T * 16 * D * 3 * P * P  # twice the pixels, forward and for the weights' gradient
    expected["encoder, visible patches"] += patch_embed / 1e12
    assert parts == pytest.approx(expected)


@pytest.mark.parametrize(("lite", "paper"), [("mam2_lite_b_k400", "mam2_b_k400"), ("mam2_lite_l_k400", "mam2_l_k400")])
def test_lite_recipes_cost_at_most_a_quarter_and_fit_their_finetuning(lite: str, paper: str) -> None:
    run = get_recipe(lite, Pretrain)
    assert estimate(run).tflop < 0.25 * estimate(get_recipe(paper, Pretrain)).tflop
    tuned = get_recipe(lite.replace("mam2", "finetune"), Finetune).encoder
    assert replace(tuned, drop_path=0.0) == run.encoder


def test_flash_costs_at_most_half_more_than_videomae() -> None:
    flash, videomae = (estimate(get_recipe(name, Pretrain)).tflop for name in ("mam2_flash_b_k400", "videomae_b_k400"))
    assert flash < 1.5 * videomae < 0.33


def test_a_token_cache_saves_all_but_the_first_time(tmp_path: Path) -> None:
    data = Data(fixed_clips=4, repeats=2)
    plain = replace(SMALL, data=data, targets=TargetsConfig(), loop=Loop(batch_size=10, duration=Epochs(100)))
    cached = replace(plain, targets=replace(plain.targets, cache="codes"))
    cost = estimate(plain)
    hours = {"num_videos": 50, "tflops": 1.0}
    saved = (gpu_hours(plain, cost, **hours) - gpu_hours(cached, cost, **hours)) * 3600
    assert saved == pytest.approx(50 * 2 * (100 - 4) * cost.targets_tflop)
    short = replace(cached, loop=Loop(batch_size=10, duration=Epochs(3)))
    assert gpu_hours(short, cost, **hours) == pytest.approx(
        50 * 3 * 2 * cost.tflop / 3600
    )  # at most: some clips come twice
    shape = (T, 16)
    cache = TokenCache(tmp_path, identity={}, num_clips=num_cached(cached, 50), shape=shape)
    assert cache_gib(cached, 50) == cache.num_bytes / 2**30 == 400 * (4 + 2 * T * 16) / 2**30


def test_the_disk_holds_checkpoints_and_one_more_while_it_is_written(tmp_path: Path) -> None:
    folder, config = tmp_path, replace(SMALL, encoder=replace(SMALL.encoder, width=128))
    with torch.device("cpu"):
        model = build(config, target_sizes(config.targets, patch_size=P))
    optimizer = make_optimizer(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for step in (1, 2):
        checkpoint.save(folder, model, optimizer, step, keep=2)
    kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    one = 12 / 16 * estimate(config).state_gib * 2**30
    assert kept == pytest.approx(2 * one, rel=0.15)  # names and headers weigh in so small a model
    assert run_folder_gib(config, estimate(config)) * 2**30 > kept


def test_this_cpus_peak_is_measured() -> None:
    cpu = this_cpu(width=768)
    assert 1e-3 < cpu.peak_tflops < 100
    assert cpu.memory_gib > 0.5


def test_recomputing_trades_operations_for_memory() -> None:
    again = replace(SMALL, loop=replace(SMALL.loop, recompute=True))
    plain, recomputed = estimate(SMALL), estimate(again)
    assert recomputed.clip_gib < 0.6 * plain.clip_gib
    assert 1.1 * plain.train_tflop < recomputed.train_tflop < 4 / 3 * plain.train_tflop
    assert recomputed.state_gib == plain.state_gib
    parts, parts_again = tflop_by_part(SMALL), tflop_by_part(again)
    assert parts_again["alignment target"] == pytest.approx(parts["alignment target"])  # nothing goes backward there
    assert parts_again["rest"] < 4 / 3 * parts["rest"]


def test_a_cost_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counted = []
    monkeypatch.setattr("mam2.cost.estimate", lambda config: counted.append(config) or estimate(config))
    wider = replace(SMALL, objective=replace(SMALL.objective, width=2 * SMALL.encoder.width))
    longer = replace(SMALL, loop=replace(SMALL.loop, duration=Epochs(7)))
    for config in (SMALL, wider, longer, SMALL, wider):
        assert remembered(config) == estimate(config)
    assert counted == [SMALL, wider]
    for file in (tmp_path / "mam2").iterdir():
        file.write_text("{")
    assert remembered(SMALL) == estimate(SMALL)
    assert len(counted) == 3
