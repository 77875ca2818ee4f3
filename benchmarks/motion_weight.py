"""What each reading of Eq. 3 does to the encoder: the gradient of every part of the loss, over a pre-training.

`mam2_b_k400` at the scale tiny, with the motion loss averaged over a patch's numbers ("mean"), summed as Eq. 3 has it
("sum"), and averaged for motion that is divided by its root mean square over the clip ("clip").

    python benchmarks/motion_weight.py VIDEOS --out motion_weight.json

Ten minutes on two cores. `mam2 study motion` compares what is learned.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch
from common import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mam2.config import Steps
from mam2.data.catalog import read_catalog
from mam2.losses import Reduction
from mam2.masks import Mask
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.recipes import get_recipe
from mam2.recipes.scales import scaled, with_duration
from mam2.targets.maker import TargetMaker, Targets
from mam2.train.begin import train_loader
from mam2.train.optim import learning_rate, make_optimizer, set_learning_rate
from mam2.train.pretrain import Pretrain, build

VARIANTS: dict[str, tuple[Reduction, Literal["raw", "clip"]]] = {
    "mean": ("mean", "raw"),
    "sum": ("sum", "raw"),
    "clip": ("mean", "clip"),
}


def norm_of(loss: Tensor, encoder: torch.nn.Module) -> float:
    """Length of a loss's gradient with respect to the encoder's weights."""
    found = torch.autograd.grad(loss, list(encoder.parameters()), allow_unused=True)
    return float(torch.stack([g.norm() for g in found if g is not None]).norm())


def parts_at(model: MAM2, clip_BTCHW: Tensor, mask: Mask, target: Targets, step: int) -> dict[str, Tensor]:
    """The parts of Eq. 4, weighted."""
    parts = model.losses(model.predict(clip_BTCHW, mask), mask, target)
    return parts | {"alignment": model.config.alpha(step, 1) * parts["alignment"]}


def measured(config: Pretrain, steps: int, every: int) -> list[dict[str, float]]:
    """The parts of the loss, weighted as in Eq. 4, and the lengths of their gradients, every so many steps."""
    catalog = read_catalog(config.data.listing, labelled=False)
    config = with_duration(config, Steps(steps))
    encoder = config.encoder
    targets = TargetMaker(config.targets, patch_size=encoder.patch_size, device=torch.device("cpu"))
    model = cast(MAM2, build(config, targets.sizes))
    optimizer = make_optimizer(model, config.optim)
    batch_size = config.loop.batch_size
    rows = []
    for step, batch in enumerate(train_loader(config, catalog, start_step=0)):
        mask = config.mask(encoder.tubelets, encoder.grid, sample_B=batch.sample_B, seed=0)
        target = targets(batch.clip_BTCHW, sample_B=batch.sample_B, seed=0).at(mask)
        if step % every == every - 1:
            row = {"step": step + 1.0}
            for name in ("appearance", "motion", "alignment"):
                loss = parts_at(model, batch.clip_BTCHW, mask, target, step)[name]
                row |= {name: loss.item(), f"{name}, gradient": norm_of(loss, model.encoder)}
            rows.append(row)
        parts = parts_at(model, batch.clip_BTCHW, mask, target, step)
        warmup = config.optim.warmup.steps(1)
        rate = learning_rate(config.optim, step, batch_size=batch_size, warmup_steps=warmup, num_steps=steps)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        optimizer.step()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--stride-frames", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)  # faster than two for a model this small

    base = scaled(cast(Pretrain, get_recipe("mam2_b_k400_rp")), "tiny")
    base = replace(base, data=replace(base.data, root=args.videos, stride_frames=args.stride_frames, num_workers=0))
    every = max(1, args.steps // 60)
    results = {}
    for name, (reduction, scale) in VARIANTS.items():
        config = replace(
            base,
            objective=replace(cast(MAM2Config, base.objective), motion_reduction=reduction),
            targets=replace(base.targets, motion_scale=scale),
        )
        results[name] = measured(config, args.steps, every)
    parts = ("appearance", "motion", "alignment")
    table = Table("Eq. 3", "steps", *parts, *(f"{part}, gradient" for part in parts), title="medians")
    for name, rows in results.items():
        for third in range(3):
            some = rows[third * len(rows) // 3 : (third + 1) * len(rows) // 3]
            columns = [*parts, *(f"{part}, gradient" for part in parts)]
            values = [f"{statistics.median(row[column] for row in some):.3g}" for column in columns]
            table.add_row(name, f"{some[0]['step']:.0f} - {some[-1]['step']:.0f}", *values)
    Console(width=120).print(table)
    if args.out:
        report = {"command": shlex.join(["python", *sys.argv]), "machine": machine(torch.device("cpu"))}
        args.out.write_text(json.dumps(report | {"rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
