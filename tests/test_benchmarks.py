"""The step benchmark: its parts are the step, its FLOPs are the arithmetic's, its JSON is complete."""

import importlib.util
import json
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from reference import PlainMAM2
from torch import nn

from mam2.targets.table import TargetSizes


@pytest.fixture(scope="module")
def bench() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmarks_step", Path(__file__).parents[1] / "benchmarks" / "step.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(bench: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("benchmark") / "new" / "step.json"
    arguments = ["--model", "tiny", "--batch", "2", "--precision", "fp32", "--steps", "1", "--out", str(out)]
    arguments += ["--against", "plain"]
    returned = bench.main(arguments)
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps(returned))
    assert written["command"] == " ".join(["python", "benchmarks/step.py", *arguments])
    return written


def test_parts_have_the_flops_of_the_whole_step(result: dict) -> None:
    assert result["sum_of_parts"]["flops"] == result["step"]["flops"] > 0
    assert result["parts"]["other losses"]["flops"] == result["parts"]["update (norm, AdamW)"]["flops"] == 0
    assert all(row["seconds"] > 0 for row in result["parts"].values())


def test_products_are_all_but_attention_and_patch_embedding(bench: types.ModuleType, result: dict) -> None:
    size = bench.SIZES["tiny"].encoder
    frames, patches, masked = 2 * size.frames, 16, 12
    heads_flops = 0
    # Forward once and backward 2.5 times: five products instead of two.
    for queries, keys, sequences, times in (
        (4, 4, 2 * 4, 2 * 3.5),  # time, 4 visible patches: 2 encoder blocks
        (4, 4, frames, 2 * 3.5),  # space
        (4, 4, 2 * masked, 2 * 1 + 2 * 3.5),  # time, masked: 2 blocks without gradient, 2 decoder blocks with
        (masked, masked, frames, 2 * 1 + 2 * 3.5),
        (masked * 4, 4 * 4, 2, 3.5),  # the regressor's one block, all frames together
    ):
        heads_flops += times * 4 * sequences * queries * keys * size.width
    embedding = 2 * 2 * frames * patches * size.width * 3 * size.patch_size**2  # forward, and the weight's gradient
    assert result["products_alone"]["flops"] + heads_flops + embedding == result["step"]["flops"]


def test_ratios_and_memory(result: dict) -> None:
    rate, peak = result["step"]["flops_per_second"], result["peak"]
    assert result["ratios"]["step_over_peak"] == pytest.approx(rate / peak["flops_per_second"])
    assert peak["flops_per_second"] == max(max(rates.values()) for rates in peak["rounds"])
    assert 0 <= peak["spread"] < 1
    ours, plain = result["against"]["mam2"], result["against"]["plain"]
    assert ours["flops"] == plain["flops"] == result["step"]["flops"]
    assert result["ratios"]["speed_over"]["plain"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert result["ratios"]["memory_over"]["plain"] == pytest.approx(ours["peak_gib"] / plain["peak_gib"])
    assert ours["peak_gib"] > 0.05
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["tokenizer"]["flops"] > 0
    assert result["encoder"]["width"] == 64


def test_paper_size_costs_what_the_notes_say(bench: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B on one 16 × 224² clip, on the meta device: counted without computing anything."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know that device
    device = torch.device("meta")
    parts = bench.parts_of(bench.Workload(bench.SIZES["vit_b"], batch=1, precision="bf16", device=device))
    gflop = {name: bench.flops_of(parts[name]) / 1e9 for name in parts if not name.startswith("update")}
    assert gflop == {
        "motion target (RGB difference)": 0,
        "encoder, visible patches": pytest.approx(3 * 180, rel=0.02),  # backward is twice forward
        "alignment target, masked patches": pytest.approx(550, rel=0.02),  # no backward
        "regressor": pytest.approx(3 * 141, rel=0.02),
        "appearance decoder, head and loss": pytest.approx(3 * 242, rel=0.02),
        "motion decoder": pytest.approx(3 * 94, rel=0.02),
        "other losses": 0,
    }


def test_refuses_nonsense(bench: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--batch", "0"])
    assert "--batch is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_memory_benchmark_compares_ways_to_the_same_loss(tmp_path: Path) -> None:
    import memory

    words = ["--clips", "2", "--tokens", "2048", "--width", "16", "--codes", "4096", "--precision", "fp32"]
    result = memory.main([*words, "--repeats", "1", "--out", str(tmp_path / "memory.json")])
    assert json.loads((tmp_path / "memory.json").read_text()) == result
    plain = result["ways"]["plain"]
    assert {"plain", "portions"} <= result["ways"].keys()
    for row in result["ways"].values():
        assert row["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-4)
        assert row["seconds"] > 0


def test_the_plain_step_is_the_same_step() -> None:
    from workload import SIZES, Workload, plain_step

    work = Workload(SIZES["tiny"], batch=2, precision="fp32", device=torch.device("cpu"))
    model, targets = work.model, work.targets()
    nn.init.normal_(model.regressor.mask_query.value_D)
    expected = model(work.clip_BTCHW, work.mask, targets, 0).total
    expected.backward()
    norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    plain = PlainMAM2(model.config, model.encoder.config, TargetSizes(512, 192)).load(model)
    loss = plain(work.clip_BTCHW, work.mask, work.codes_BTN, targets.motion)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    plain_norm = nn.utils.get_total_norm([parameter.grad for parameter in plain.parameters()])
    torch.testing.assert_close(plain_norm, norm, rtol=1e-4, atol=0)
    theirs, mine = dict(model.named_parameters()), dict(plain.named_parameters())
    for name, name_of_ours in {
        "encoder.patch_embed.weight": "encoder.patch_embed.weight",
        "appearance.project.weight": "decoders.appearance.heads.appearance.project.weight",
        "motion.project.bias": "decoders.motion.heads.motion.project.bias",
        "mask_query_D": "regressor.mask_query.value_D",
    }.items():
        torch.testing.assert_close(mine[name].grad, theirs[name_of_ours].grad, rtol=1e-3, atol=1e-6)
    plain_step(work)()  # and it can be taken


def test_clip_by_clip_is_the_same_step() -> None:
    from workload import SIZES, Workload

    gradients = []
    for accumulate in (1, 4):
        work = Workload(SIZES["tiny"], batch=4, precision="fp32", device=torch.device("cpu"), accumulate=accumulate)
        assert len(work.parts) == accumulate
        work.step()
        gradients.append({name: parameter.grad for name, parameter in work.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_the_scaling_benchmark_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    import scaling

    words = ["--model", "tiny", "--precision", "fp32", "--frames", "4", "8", "--size", "32", "--batch", "2"]
    rows = scaling.main([*words, "--out", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.png")])["rows"]
    assert [(row["axis"], row["frames"], row["size"], row["batch"]) for row in rows] == [
        ("frames", 4, 32, 1),
        ("frames", 8, 32, 1),
        ("size", 4, 32, 1),
        ("batch", 4, 32, 2),
    ]
    assert rows[3]["flops"] == 2 * rows[0]["flops"]
    assert 2 * rows[0]["flops"] < rows[1]["flops"] < 2.1 * rows[0]["flops"]  # attention over time and the regressor's
    assert [row["tokens"] for row in rows] == [64, 128, 64, 128]
    assert (tmp_path / "s.png").stat().st_size > 1000
