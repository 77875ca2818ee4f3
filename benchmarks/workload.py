"""One whole pre-training step of a contender, in a process of its own: operations, seconds, peak memory, as JSON.

    python benchmarks/workload.py --contender plain --model vit_b --batch 4

"mam2" is the step of mam2/train/engine.py without loader and tokenizer, "recomputed" with `loop.recompute`, "clip by
clip" with `loop.accumulate` at the batch's size; "plain" is reference.py's; "videomae" is Hugging Face's
`VideoMAEForPreTraining`, ViT-B as it comes, with a mask of 90 % (needs `pip install transformers`).
benchmarks/step.py and benchmarks/scaling.py call it.

B clips, T frames, C channels, H W pixels, N patches per frame.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from common import peak_memory_gib, times_of
from reference import PlainMAM2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mam2.device import autocast_dtype, keep_freed_memory, local_device
from mam2.masks import Mask, MaskConfig
from mam2.model.blocks import compile_blocks, recompute_blocks
from mam2.model.encoder import EncoderConfig, vit_b, vit_l
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.patches import patchify, to_float
from mam2.targets.maker import Targets
from mam2.targets.motion import rgb_difference
from mam2.targets.table import TargetSizes
from mam2.targets.tokenizers.vqgan import VQGANConfig
from mam2.train.optim import Optim, make_optimizer

CONTENDERS = (
    "mam2",
    "mam2, recomputed",
    "mam2, clip by clip",
    "mam2, recomputed, clip by clip",
    "plain",
    "videomae",
)
aten = torch.ops.aten
CPU_ATTENTION = {  # older torch has no formula for these two
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The models of one `--model`."""

    encoder: EncoderConfig
    objective: MAM2Config
    tokenizer: VQGANConfig


SIZES = {
    "vit_b": Size(encoder=vit_b(), objective=MAM2Config(), tokenizer=VQGANConfig()),
    # Table 1c: regressor and decoders as wide as the encoder.
    "vit_l": Size(encoder=vit_l(), objective=MAM2Config(), tokenizer=VQGANConfig()),
    "tiny": Size(
        encoder=EncoderConfig(width=64, depth=2, num_heads=2, frames=4, size=32, patch_size=8),
        objective=MAM2Config(width=64, num_heads=2, regressor_depth=1, appearance_depth=1, motion_depth=1),
        tokenizer=VQGANConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=32, num_codes=512),
    ),
}


class Workload:
    """A model with its optimiser and a batch of noise; `step()` is one whole step, `accumulate` of whose parts are
    computed one after the other."""

    def __init__(self, size: Size, *, batch: int, precision: str, device: torch.device, accumulate: int = 1) -> None:
        encoder, num_codes = size.encoder, size.tokenizer.num_codes
        torch.manual_seed(0)
        self.sizes = TargetSizes(num_codes, 3 * encoder.patch_size**2)
        with device:
            self.model = MAM2(size.objective, encoder, self.sizes).train()
        self.optimizer = make_optimizer(self.model, Optim())
        frames, num_patches = encoder.frames, encoder.grid[0] * encoder.grid[1]
        shape_BTCHW = (batch, frames, 3, encoder.size, encoder.size)
        self.clip_BTCHW = torch.randint(256, shape_BTCHW, dtype=torch.uint8, device=device)
        self.codes_BTN = torch.randint(num_codes, (batch, frames, num_patches), device=device)
        self.mask: Mask = MaskConfig()(frames, encoder.grid, sample_B=torch.arange(batch), seed=0).to(device)
        of_part = batch // accumulate
        self.parts = [slice(start, start + of_part) for start in range(0, batch, of_part)]
        dtype = autocast_dtype(precision, device, width=encoder.width)
        self.dtype = dtype or torch.float32
        self.autocast = partial(torch.autocast, device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def step(self) -> None:
        """Targets, forward, backward and update as in training."""
        self.optimizer.zero_grad()
        for part in self.parts:
            mask = Mask(self.mask.visible_BTV[part], self.mask.masked_BTM[part])
            with self.autocast():
                losses = self.model(self.clip_BTCHW[part], mask, self.targets(part), 0)
                (losses.total / len(self.parts)).backward()
        self.update()

    def targets(self, part: slice = slice(None)) -> Targets:
        """RGB differences of a part of the batch, beside codes that are given."""
        clip_BTCHW, patch_size = self.clip_BTCHW[part], self.model.encoder.config.patch_size
        with torch.no_grad(), torch.autocast(clip_BTCHW.device.type, enabled=False):
            return Targets(self.codes_BTN[part], patchify(rgb_difference(to_float(clip_BTCHW)), patch_size))

    def update(self) -> None:
        """The gradient's norm and AdamW."""
        nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.step()


def plain_step(work: Workload) -> Callable[[], None]:
    """The step of reference.py's model on the same batch."""
    model = work.model
    encoder = model.encoder.config
    with work.clip_BTCHW.device:
        plain = PlainMAM2(model.config, encoder, work.sizes).train()
    plain.load(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.95))
    del work.model, work.optimizer

    def step() -> None:
        optimizer.zero_grad()
        with work.autocast():
            clip = work.clip_BTCHW.float() / 255
            motion_BTND = patchify(clip[:, 1:] - clip[:, :-1], encoder.patch_size)
            loss = plain(work.clip_BTCHW, work.mask, work.codes_BTN, motion_BTND)
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), math.inf)
        optimizer.step()

    return step


def videomae_step(size: Size, *, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """VideoMAE's: tubes of 2 × 16 × 16, 90 % of them masked, 4 decoder blocks of width 384 for ViT-B."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    encoder = size.encoder
    config = VideoMAEConfig(
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.num_heads,
        intermediate_size=4 * encoder.width,
        num_frames=encoder.frames,
        image_size=encoder.size,
        patch_size=encoder.patch_size,
    )
    torch.manual_seed(0)
    model = VideoMAEForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    mask = MaskConfig(ratio=0.9)(encoder.frames // 2, encoder.grid, sample_B=torch.arange(batch), seed=0).to(device)
    num_patches = encoder.grid[0] * encoder.grid[1]
    masked_BTN = torch.zeros(batch, encoder.frames // 2, num_patches, dtype=torch.bool, device=device)
    masked_BTN.scatter_(2, mask.masked_BTM, True)
    clip_BTCHW = torch.randn(batch, encoder.frames, 3, encoder.size, encoder.size, device=device)
    dtype = autocast_dtype(precision, device, width=encoder.width)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(clip_BTCHW, bool_masked_pos=masked_BTN.flatten(1)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()

    return step


def flops_of(call: Callable[[], object]) -> int:
    """FLOPs of one call, counted while it runs."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        call()
    return counter.get_total_flops()


def one(contender: str, size: Size, *, batch: int, precision: str, repeats: int, compiled: bool) -> dict[str, float]:
    """FLOPs, seconds and memory of a step, in this process: call it in a fresh one."""
    device = local_device()
    if device.type == "cpu" and contender.startswith("mam2"):  # as training does
        keep_freed_memory()

    def begin(*, compiled: bool) -> Callable[[], None]:
        if contender == "videomae":
            return videomae_step(size, batch=batch, precision=precision, device=device)
        accumulate = batch if contender.endswith("clip by clip") else 1
        work = Workload(size, batch=batch, precision=precision, device=device, accumulate=accumulate)
        if contender == "plain":
            return plain_step(work)
        if "recomputed" in contender:
            recompute_blocks(work.model)
        if compiled:
            compile_blocks(work.model)
        return work.step

    step = begin(compiled=compiled)
    step()
    if device.type == "cuda":  # compiling takes more than the step
        torch.cuda.reset_peak_memory_stats(device)
    seconds, peak_gib = statistics.median(times_of(step, device, repeats)), peak_memory_gib(device)
    if compiled:  # which no counter can look into
        del step
        step = begin(compiled=False)
    flops = flops_of(step)
    return {
        "flops": flops,
        "seconds": seconds,
        "flops_per_second": flops / seconds,
        "clips_per_second": batch / seconds,
        "peak_gib": peak_gib,
    }


def in_a_process(contender: str, *words: str) -> dict[str, float] | None:
    """`one`, in a fresh process; None where its package is not installed."""
    if contender == "videomae" and importlib.util.find_spec("transformers") is None:
        print("videomae is left out: it needs `pip install transformers`.", file=sys.stderr)
        return None
    command = [sys.executable, __file__, "--contender", contender, *words]
    row: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return row


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command line; returns what it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", choices=CONTENDERS, default="mam2")
    parser.add_argument("--model", choices=sorted(SIZES), default="vit_b")
    parser.add_argument("--batch", type=int, default=1, help="clips (default 1)")
    parser.add_argument("--frames", type=int, help="per clip; by default the model's own")
    parser.add_argument("--size", type=int, help="pixels; the model's own if left out")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--repeats", type=int, default=3, help="after a warm-up; the median is reported (default 3)")
    parser.add_argument("--compile", action="store_true", help="the blocks, as loop.compile does")
    options = parser.parse_args(arguments)
    size = SIZES[options.model]
    changes = {name: value for name, value in (("frames", options.frames), ("size", options.size)) if value}
    size = replace(size, encoder=replace(size.encoder, **changes))
    row = one(
        options.contender,
        size,
        batch=options.batch,
        precision=options.precision,
        repeats=options.repeats,
        compiled=options.compile,
    )
    print(json.dumps(row))
    return row


if __name__ == "__main__":
    main()
