"""Causes that keep a small MAM² from learning: weight and target of the alignment, initial positions and weights.

Trains the quickstart's model on rendered videos in several variants, each differing from `ramp` in one thing, side by
side in one run, and prints their last losses. `motion` is relative to predicting no motion (1.0); `lowest std` is the
smallest standard deviation of the features between clips during the run: near 0 they have collapsed.

    python benchmarks/alignment.py --steps 800 --seeds 0 1 --out benchmarks/results/alignment.json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mam2.config import Steps
from mam2.data.catalog import read_catalog
from mam2.data.loader import TrainLoader
from mam2.data.synthetic import write_dataset
from mam2.model.regressor import Regressor
from mam2.objectives.mam2 import MAM2
from mam2.quickstart import VIDEO_FRAMES, VIDEO_SIZE, Quickstart, pretrain_config
from mam2.targets.maker import TargetMaker
from mam2.targets.tokenizers.vq import VQConfig
from mam2.train.logs import health
from mam2.train.optim import learning_rate, make_optimizer, set_learning_rate
from mam2.train.pretrain import build
from mam2.train.tokenizer import train_tokenizer

VARIANTS = {
    "ramp": "α from 0 to 2 over the run",
    "alpha 2": "α = 2 from the first step, the paper's",
    "alpha 2, batch": "the same, target standardised over the batch",
    "alpha 0": "no alignment",
    "small positions": "positions start at std 0.02 instead of sine-cosine",
    "no key positions": "the regressor adds positions to queries only",
    "torch init": "torch's default initial weights instead of Xavier-uniform",
    "random projection": "random-projection tokens (512 codes) instead of the VQ model's",
}


def train(variant: str, seed: int, *, steps: int, videos: Path, tokenizer: Path) -> dict[str, float]:
    """Trains one variant; losses are means over the last tenth of the run."""
    torch.set_num_threads(1)
    logging.getLogger("mam2").setLevel(logging.ERROR)
    config = pretrain_config(Quickstart(), videos)
    alignment = {
        "alpha 2": replace(config.objective, alignment_ramp=Steps(0)),
        "alpha 2, batch": replace(config.objective, alignment_ramp=Steps(0), alignment_target="batch"),
        "alpha 0": replace(config.objective, alignment_weight=0.0),
    }
    tokens = replace(config.targets, file=str(tokenizer))
    if variant == "random projection":
        tokens = replace(tokens, appearance="random_projection", file="", num_codes=512)
    config = replace(
        config,
        objective=alignment.get(variant, replace(config.objective, alignment_ramp=Steps(steps))),
        loop=replace(config.loop, seed=seed),
    )
    maker = TargetMaker(tokens, patch_size=config.encoder.patch_size, device=torch.device("cpu"))
    model = cast(MAM2, build(config, maker.sizes, steps_per_epoch=steps))
    if variant == "small positions":
        for table in model.encoder.positions.parameters():
            nn.init.trunc_normal_(table, std=0.02)
    if variant == "torch init":
        for part in model.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.reset_parameters()
    if variant == "no key positions":
        assert isinstance(model.regressor, Regressor)
        for block in model.regressor.blocks:
            block.forward = _without_context_position(block.forward)

    batch_size = config.loop.batch_size
    optimizer = make_optimizer(model, config.optim)
    loader = TrainLoader(
        read_catalog(videos, labelled=False),
        replace(config.data, num_workers=0),
        num_frames=config.encoder.frames,
        size=config.encoder.size,
        batch_size=batch_size,
        num_steps=steps,
        seed=seed,
    )
    rows = []
    for step, batch in enumerate(loader):
        rate = learning_rate(config.optim, step, batch_size=batch_size, warmup_steps=50, num_steps=steps)
        set_learning_rate(optimizer, rate)
        mask = config.mask(config.encoder.frames, config.encoder.grid, sample_B=batch.sample_B, seed=seed)
        targets = maker(batch.clip_BTCHW, sample_B=batch.sample_B, seed=seed)
        losses = model(batch.clip_BTCHW, mask, targets, step)
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        optimizer.step()
        parts = {name: part.item() for name, part in losses.parts.items()}
        assert losses.features_BTD is not None  # MAM2 always gives them
        rows.append(parts | health(losses.features_BTD))
    end = rows[-max(1, steps // 10) :]
    result = {name: statistics.mean(row[name] for row in end) for name in end[0]}
    return result | {"lowest_std": min(row["feature_std"] for row in rows)}


def _without_context_position(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(query: Tensor, context: Tensor, *, query_position: Tensor, context_position: Tensor) -> Tensor:
        nothing = torch.zeros_like(context_position)
        return forward(query, context, query_position=query_position, context_position=nothing)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--videos-per-class", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        videos, tokenizer = Path(folder) / "videos", Path(folder) / "vq.safetensors"
        write_dataset(videos, videos_per_class=args.videos_per_class, seed=0, num_frames=VIDEO_FRAMES, size=VIDEO_SIZE)
        config = pretrain_config(Quickstart(), videos)
        vq = VQConfig(patch_size=config.encoder.patch_size, num_codes=config.targets.num_codes)
        catalog, size = read_catalog(videos, labelled=False), config.encoder.size
        train_tokenizer(catalog, config.data, vq, tokenizer, size=size, num_steps=100, seed=0)
        jobs = [(variant, seed) for variant in args.variants for seed in args.seeds]
        with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = {
                job: pool.submit(train, *job, steps=args.steps, videos=videos, tokenizer=tokenizer) for job in jobs
            }
            results = {job: future.result() for job, future in futures.items()}

    names = ("appearance", "motion", "alignment", "feature_std", "lowest_std", "effective_rank")
    table = Table("variant", *names, title=f"mean over seeds {args.seeds} after {args.steps} steps of 8 clips")
    for variant in args.variants:
        runs = [results[variant, seed] for seed in args.seeds]
        table.add_row(variant, *(" ".join(f"{run.get(name, math.nan):.2f}" for run in runs) for name in names))
    Console(width=130).print(table)
    if args.out:
        report = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "variants": {v: {"what": VARIANTS[v], "seeds": [results[v, s] for s in args.seeds]} for v in args.variants},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
