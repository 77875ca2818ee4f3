"""Cost of one pre-training step: FLOPs and seconds of every part, and peak memory, compared with the machine's peak.

    python benchmarks/step.py --model vit_b --batch 1 --precision bf16 --steps 3 --out step.json

Everything is measured in one run and judged by ratios: the step's FLOP/s over the machine's best rate of
matrix products, and over the rate of the step's own products run alone, which is what a step of nothing else
would reach; and seconds and peak memory over those of the same step as one would first write it (reference.py) and
of Hugging Face's VideoMAE, each in a fresh process (workload.py). FLOPs are counted while the code runs, 2 per
multiply-add: products, convolutions and attention (whose backward pass computes the scores again: that counts too).
The step is that of mam2/train/engine.py without loader and tokenizer; the tokenizer, with random weights, stands apart.

B clips, T frames, C channels, H W pixels, N patches per frame, V visible, M masked, D width, K codes, P patch
side, S any sequence length.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from common import machine, times_of
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from workload import CONTENDERS, SIZES, Size, Workload, flops_of, in_a_process

from mam2.device import keep_freed_memory, local_device
from mam2.losses import motion_loss
from mam2.model.blocks import can_compile, compile_blocks
from mam2.model.decoders import AppearanceHead, Decoder, MotionHead
from mam2.model.regressor import Latent
from mam2.patches import to_float
from mam2.targets.tokenizers.vqgan import VQGAN

PEAK_SHAPES_MKN = {  # two of ViT-B's own, and one that is large in every direction
    "cpu": ((3136, 768, 3072), (2352, 768, 768), (2048, 2048, 2048)),
    "cuda": ((50176, 768, 3072), (37632, 768, 768), (8192, 8192, 8192)),
}
AT_ONCE = {"cpu": 1, "cuda": 20}
"""Products per timing: a single one takes a GPU less time than reading the clock."""
aten = torch.ops.aten


def parts_of(work: Workload) -> dict[str, Callable[[], object]]:
    """The step cut in parts, each on leaves of the right shape; together they have the step's FLOPs.

    Ask for them after a whole step: the update is that of its gradients.
    """
    model = work.model
    encoder = model.encoder
    clip_BTCHW = work.clip_BTCHW
    mask = work.mask
    gradients = [parameter.grad for parameter in model.parameters()]
    with torch.no_grad(), work.autocast():
        tokens = encoder.embed(clip_BTCHW)
        made = model.predict(clip_BTCHW, mask)
        targets = work.targets()
        position_BTND = model.position(clip_BTCHW).clone()
        masked = targets.at(mask)
        motion_target_BTMP = masked.of("motion")
        codes_BTM = masked.of("appearance")
        appearance_decoder = cast(Decoder, model.decoders["appearance"])
        motion_decoder = cast(Decoder, model.decoders["motion"])
        appearance_head = cast(AppearanceHead, appearance_decoder.heads["appearance"])
        motion_head = cast(MotionHead, motion_decoder.heads["motion"])
        hidden_BTMD = motion_decoder(made.latent)

    def align() -> None:
        with torch.no_grad(), work.autocast():
            model.project(encoder.encode(tokens.at(mask.masked_BTM)))

    def regress(visible_BTVD: Tensor, position_BTND: Tensor) -> Tensor:
        return model.regressor(model.project(visible_BTVD), position_BTND, mask).x_BTSD

    def lose(motion_BTMP: Tensor, regressed_BTMD: Tensor) -> Tensor:
        motion = motion_loss(motion_BTMP, motion_target_BTMP, "mean")
        latent = Latent(regressed_BTMD, made.latent.position_BTSD, made.latent.num_masked)
        alignment = model.alignment.losses(replace(made, latent=latent), mask)["alignment"]
        return motion + model.config.alignment_weight * alignment

    def both_ways(call: Callable[..., Tensor], like: Tensor | None, *inputs: Tensor) -> Callable[[], None]:
        """Forward, and backward from a random gradient `like` the output (None: a scalar's)."""
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        gradient = None if like is None else torch.randn_like(like)

        def run() -> None:
            for tensor in (*leaves, *model.parameters()):
                tensor.grad = None  # as in the step, where a first gradient is kept and not added
            with work.autocast():
                call(*leaves).backward(gradient)

        return run

    def see() -> Tensor:
        return encoder.features_of(clip_BTCHW, mask.visible_BTV)

    def appear(regressed_BTMD: Tensor, position_BTMD: Tensor) -> Tensor:
        hidden_BTMD = appearance_decoder(Latent(regressed_BTMD, position_BTMD, made.latent.num_masked))
        return appearance_head.loss(hidden_BTMD, codes_BTM)

    def move(regressed_BTMD: Tensor, position_BTMD: Tensor) -> Tensor:
        hidden_BTMD = motion_decoder(Latent(regressed_BTMD, position_BTMD, made.latent.num_masked))
        return cast(Tensor, motion_head(hidden_BTMD))

    def update() -> None:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        work.update()

    visible = made.visible_BTVD
    regressed = made.latent.x_BTSD
    query = made.latent.position_BTSD
    motion = motion_head(hidden_BTMD)
    return {
        "motion target (RGB difference)": work.targets,
        "encoder, visible patches": both_ways(see, visible),
        "alignment target, masked patches": align,
        "regressor": both_ways(regress, regressed, visible, position_BTND),
        "appearance decoder, head and loss": both_ways(appear, None, regressed, query),
        "motion decoder": both_ways(move, motion, regressed, query),
        "other losses": both_ways(lose, None, motion, regressed),
        "update (norm, AdamW)": update,
    }


class Products(TorchDispatchMode):
    """Counts the matrix products inside it by dtype, and shape and transposition of both matrices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.mm.default, aten.addmm.default, aten.bmm.default):
            a, b = args[-2:]
            self.seen[a.dtype, a.shape, a.stride(-1) != 1, b.shape, b.stride(-1) != 1] += 1
        return func(*args, **(kwargs or {}))


def cost(flops: float, seconds: float) -> dict[str, float]:
    """FLOPs, seconds, and the one over the other."""
    return {"flops": flops, "seconds": seconds, "flops_per_second": flops / seconds}


def cost_of(call: Callable[[], object], device: torch.device, repeats: int, *, at_once: int = 1) -> dict[str, float]:
    """Counts one call, which is the warm-up too, and takes the median time of `repeats` more, or of as many groups."""
    return cost(flops_of(call), statistics.median(times_of(call, device, repeats, at_once=at_once)))


def products_alone(products: Counter[tuple[Any, ...]], device: torch.device, repeats: int) -> dict[str, float]:
    """Cost of the matrix products alone: each distinct one is timed and weighted by its count."""

    def noise(dtype: torch.dtype, shape: torch.Size, transposed: bool) -> Tensor:
        stored = torch.randn(shape, device=device).to(dtype)
        return stored.mT.contiguous().mT if transposed else stored

    flops, seconds = 0.0, 0.0
    for (dtype, a_shape, a_transposed, b_shape, b_transposed), count in products.items():
        a, b = noise(dtype, a_shape, a_transposed), noise(dtype, b_shape, b_transposed)
        one = cost_of(partial(torch.matmul, a, b), device, repeats, at_once=AT_ONCE[device.type])
        flops, seconds = flops + count * one["flops"], seconds + count * one["seconds"]
    return cost(flops, seconds)


def peak_rates(dtype: torch.dtype, device: torch.device, repeats: int) -> dict[str, float]:
    """FLOP/s of the best of `repeats` products of each of a few shapes."""
    rates = {}
    for m, k, n in PEAK_SHAPES_MKN[device.type]:
        a_MK, b_KN = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
        multiply = partial(torch.matmul, a_MK, b_KN)
        multiply()
        rates[f"{m}x{k}x{n}"] = 2 * m * k * n / min(times_of(multiply, device, repeats, at_once=AT_ONCE[device.type]))
    return rates


def measure(
    size: Size,
    *,
    batch: int,
    precision: str,
    repeats: int,
    compiled: bool,
    tokenizer: bool,
    against: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Runs the benchmark; FLOPs, seconds, FLOP/s, GiB and ratios as JSON."""
    device = local_device()
    result: dict[str, Any] = {"machine": machine(device), "encoder": asdict(size.encoder), "against": against}
    if device.type == "cpu":  # as training does
        keep_freed_memory()
    work = Workload(size, batch=batch, precision=precision, device=device)
    rounds = [peak_rates(work.dtype, device, repeats)]
    step_flops = flops_of(work.step)
    calls = parts_of(work)
    flops = {name: flops_of(call) for name, call in calls.items()}
    with Products() as products:
        work.step()
    if compiled:  # no counter can see inside compiled blocks
        compile_blocks(work.model)
        for call in (work.step, *calls.values()):
            call()
    step = cost(step_flops, statistics.median(times_of(work.step, device, repeats)))
    rounds.append(peak_rates(work.dtype, device, repeats))
    alone = products_alone(products.seen, device, repeats)
    parts = {
        name: cost(flops[name], statistics.median(times_of(call, device, repeats))) for name, call in calls.items()
    }
    rounds.append(peak_rates(work.dtype, device, repeats))

    best = {shape: max(rates[shape] for rates in rounds) for shape in rounds[0]}
    top = max(best, key=lambda shape: best[shape])
    result |= {
        "parameters": sum(p.numel() for p in work.model.parameters()),
        "parts": parts,
        "sum_of_parts": cost(sum(p["flops"] for p in parts.values()), sum(p["seconds"] for p in parts.values())),
        "step": step | {"clips_per_second": batch / step["seconds"]},
        "products_alone": alone,
        "peak": {
            "flops_per_second": best[top],
            "shape": top,
            "spread": 1 - min(rates[top] for rates in rounds) / best[top],
            "rounds": rounds,
        },
        "ratios": {
            "step_over_peak": step["flops_per_second"] / best[top],
            "step_over_products_alone": step["flops_per_second"] / alone["flops_per_second"],
            "products_alone_over_peak": alone["flops_per_second"] / best[top],
            "speed_over": {name: row["seconds"] / against["mam2"]["seconds"] for name, row in against.items()},
            "memory_over": {name: against["mam2"]["peak_gib"] / row["peak_gib"] for name, row in against.items()},
        },
    }
    if tokenizer:
        frozen = VQGAN(size.tokenizer, with_decoder=False).to(device).to(memory_format=torch.channels_last)
        frames_FCHW = to_float(work.clip_BTCHW).flatten(0, 1)
        result["tokenizer"] = cost_of(partial(frozen, frames_FCHW), device, repeats)
        if device.type == "cpu":  # a GPU's convolutions are in TF32, its products are not
            peak = max(peak_rates(torch.float32, device, repeats).values())  # it runs in float32, as in training
            result["ratios"]["tokenizer_over_float32_peak"] = result["tokenizer"]["flops_per_second"] / peak
        result["ratios"]["tokenizer_seconds_over_step"] = result["tokenizer"]["seconds"] / step["seconds"]
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """The result as a table and a few lines."""
    here, peak, ratios = (result[name] for name in ("machine", "peak", "ratios"))
    table = Table(title=f"{result['model']}, batch {result['batch']}, {result['precision']}, {here['device']}")
    table.add_column("part of one pre-training step")
    for column in ("GFLOP", "seconds", "of the step", "GFLOP/s", "of peak"):
        table.add_column(column, justify="right")

    def add(name: str, row: dict[str, float], style: str = "") -> None:
        rate = row["flops_per_second"]
        cells = [f"{row['flops'] / 1e9:,.1f}", f"{row['seconds']:.3f}"]
        cells.append(f"{row['seconds'] / result['step']['seconds']:.1%}")
        cells += [f"{rate / 1e9:,.0f}", f"{rate / peak['flops_per_second']:.2f}"] if rate else ["", ""]
        table.add_row(name, *cells, style=style)

    for name, row in result["parts"].items():
        add(name, row)
    table.add_section()
    add("sum of the parts", result["sum_of_parts"])
    add("the whole step", result["step"], "bold")
    add("its matrix products alone", result["products_alone"])
    if "tokenizer" in result:
        table.add_section()
        add("tokenizer, apart (float32)", result["tokenizer"])
    console.print(table)
    console.print(
        f"Best product: {peak['flops_per_second'] / 1e9:,.0f} GFLOP/s at {peak['shape']}, spread "
        f"{peak['spread']:.0%} over {len(peak['rounds'])} rounds; {here['threads']} threads, {here['cpu']}.\n"
        f"Step over best product: {ratios['step_over_peak']:.2f} (aim: at least 0.6 on a CPU in bf16).\n"
        f"Step over its own products alone: {ratios['step_over_products_alone']:.2f}."
    )
    if result["against"]:
        table = Table(title=f"Whole steps of {result['batch']} clips, each in a process of its own")
        for column in ("step", "TFLOP", "seconds", "MAM2 is faster by", "peak GiB", "MAM2 takes of it"):
            table.add_column(column, justify="left" if column == "step" else "right")
        for name, row in result["against"].items():
            speed, memory = ratios["speed_over"][name], ratios["memory_over"][name]
            cells = [f"{row['flops'] / 1e12:.2f}", f"{row['seconds']:.2f}", f"{speed:.2f}", f"{row['peak_gib']:.2f}"]
            table.add_row(name, *cells, f"{memory:.2f}")
        console.print(table, "Aims against plain: 1.5 times as fast, half the memory, at a batch of 4.")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `--out` writes."""
    parser = argparse.ArgumentParser(description="Cost of one pre-training step, compared with the machine's peak.")
    parser.add_argument("--model", choices=sorted(SIZES), default="vit_b")
    parser.add_argument("--batch", type=int, default=1, help="clips (default 1)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=3, help="times to repeat; medians are reported (default 3)")
    parser.add_argument("--tokenizer", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="blocks (default: as loop.compile auto)"
    )
    parser.add_argument("--against", nargs="*", choices=CONTENDERS[1:], default=[], help="whole steps to compare with")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if min(options.batch, options.steps) < 1:
        parser.error(f"--batch is {options.batch} and --steps {options.steps}; both must be at least 1.")
    words = sys.argv[1:] if arguments is None else arguments
    compiled = can_compile(local_device()) if options.compile is None else options.compile
    flags = ["--model", options.model, "--batch", str(options.batch), "--precision", options.precision]
    flags += ["--repeats", str(options.steps), *(["--compile"] if compiled else [])]
    found = {name: in_a_process(name, *flags) for name in (("mam2", *options.against) if options.against else ())}
    result: dict[str, Any] = {"benchmark": "step", "command": shlex.join(["python", "benchmarks/step.py", *words])}
    result |= {"model": options.model, "batch": options.batch, "precision": options.precision, "compiled": compiled}
    result |= {"repeats": options.steps} | measure(
        SIZES[options.model],
        batch=options.batch,
        precision=options.precision,
        repeats=options.steps,
        compiled=compiled,
        tokenizer=options.tokenizer,
        against={name: row for name, row in found.items() if row},
    )
    show(result, Console(width=110))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
