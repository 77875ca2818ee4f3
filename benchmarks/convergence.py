"""Top-1 after fine-tuning of cheaper pre-training steps, against operations and against epochs.

Variants of the quickstart's pre-training on clips of 8 frames, with random-projection tokens. Each is pre-trained once
for as many epochs as the paper's step, and once for as many operations; the paper's, also for half of either. Every
point is a run of its own, with a complete learning-rate schedule; it is fine-tuned and tested as in the quickstart (8
motions, 320 labelled and 400 held-out videos; chance is 12.5 %). Several seeds, of pre-training and fine-tuning alike.

    python benchmarks/convergence.py --out convergence.json --plot convergence.png

On two cores this takes about 50 minutes per seed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from common import machine
from downstream import change, top1, write_videos
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from mam2.config import Steps
from mam2.cost import estimate
from mam2.data.loader import steps_per_epoch
from mam2.device import local_device
from mam2.quickstart import Quickstart, finetune_config, pretrain_config
from mam2.train.pretrain import Pretrain

FRAMES, STRIDE = 8, 2


tubelets = partial(change, part="encoder", tubelet=2)
VARIANTS: dict[str, Callable[[Pretrain], Pretrain]] = {
    "paper": lambda run: run,
    "tubelets": tubelets,
    "tubelets, quarter aligned": lambda run: change(tubelets(run), "mask", aligned=0.25),
    "half predicted, half aligned": partial(change, part="mask", predicted=0.5, aligned=0.5),
}
SCRATCH = {"from scratch": "paper", "from scratch, tubelets": "tubelets"}
"""Runs without pre-training, and the variant whose encoder they have."""


@dataclass(frozen=True)
class Job:
    """A pre-training with its fine-tuning; those of SCRATCH have only the latter."""

    variant: str
    steps: int
    seed: int


def pretraining(variant: str, steps: int, *, folder: Path, seed: int = 0, compile_blocks: bool = False) -> Pretrain:
    """A variant's run."""
    settings = Quickstart()
    run = pretrain_config(replace(settings, encoder=replace(settings.encoder, frames=FRAMES)), folder / "unlabelled")
    run = replace(
        run,
        data=replace(run.data, stride_frames=STRIDE),
        targets=replace(run.targets, appearance="random_projection", num_codes=512),
        objective=replace(run.objective, alignment_ramp=Steps(steps * 3 // 5)),
        loop=replace(run.loop, duration=Steps(steps), seed=seed, compile="on" if compile_blocks else "off"),
    )
    return VARIANTS[variant](run)


def tflop_of(variant: str) -> float:
    """TFLOP per clip of a step."""
    return estimate(pretraining(variant, 1, folder=Path())).tflop


def result_of(job: Job, *, folder: Path, compile_blocks: bool) -> float:
    """Top-1 at the end."""
    name = f"{job.variant}_{job.steps}_{job.seed}".replace(", ", "_").replace(" ", "-")
    like = SCRATCH.get(job.variant, job.variant)
    run = pretraining(like, job.steps, folder=folder, seed=job.seed, compile_blocks=compile_blocks)
    init = "scratch" if job.variant in SCRATCH else str(folder / name)
    tuning = finetune_config(Quickstart(encoder=run.encoder), folder / "train", init=init, seed=job.seed)
    tuning = replace(tuning, data=replace(tuning.data, stride_frames=STRIDE))
    return top1(name, None if job.variant in SCRATCH else run, {"0": tuning}, folder=folder)[0]


def plot(points: list[dict[str, float | str]], scratch: dict[str, list[float]], file: Path) -> None:
    """Every seed a dot, the means joined; the means from scratch as lines."""
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 4.2), sharey=True, layout="constrained")
    variants = list(dict.fromkeys(str(point["variant"]) for point in points))
    for axes, axis, label in zip(panels, ("pflop", "epochs"), ("PFLOP of pre-training", "epochs"), strict=True):
        for number, variant in enumerate(variants):
            found: dict[float, list[float]] = {}
            for point in points:
                if point["variant"] == variant:
                    found.setdefault(float(point[axis]), []).append(100 * float(point["top1"]))
            where = sorted(found)
            axes.plot(where, [statistics.mean(found[x]) for x in where], color=f"C{number}", label=variant)
            axes.plot(
                [x for x in where for _ in found[x]], [y for x in where for y in found[x]], "o", color=f"C{number}"
            )
        for style, (name, values) in zip(("--", ":"), scratch.items(), strict=True):
            axes.axhline(100 * statistics.mean(values), color="0.5", linestyle=style, label=name)
        axes.set_xlabel(label)
    panels[0].set_ylabel("top-1 after fine-tuning, %")
    figure.legend(*panels[1].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=2500, help="of the paper's step; the others' follow")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--videos-per-class", type=int, nargs=3, default=[300, 40, 50], metavar=("PRE", "TRAIN", "TEST")
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/convergence"), help="of the runs; they resume there")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    folder: Path = args.folder
    write_videos(folder, args.videos_per_class)
    whole, tflop = tflop_of("paper"), {variant: tflop_of(variant) for variant in args.variants}
    lengths: dict[str, tuple[int, ...]] = {v: (args.steps, round(args.steps * whole / tflop[v])) for v in args.variants}
    lengths |= {"paper": (args.steps // 2, args.steps)} if "paper" in args.variants else {}
    lengths |= dict.fromkeys(SCRATCH, (0,))
    jobs = [Job(variant, steps, seed) for seed in args.seeds for variant in lengths for steps in lengths[variant]]
    run = partial(result_of, folder=folder, compile_blocks=args.compile)
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))

    loop = pretraining("paper", args.steps, folder=folder).loop
    per_epoch = steps_per_epoch(8 * args.videos_per_class[0], loop.batch_size)
    points: list[dict[str, float | str]] = [
        {
            "variant": job.variant,
            "seed": job.seed,
            "epochs": job.steps / per_epoch,
            "pflop": job.steps * loop.batch_size * tflop[job.variant] / 1e3,
            "top1": found,
        }
        for job, found in results.items()
        if job.variant not in SCRATCH
    ]
    scratch = {name: [results[Job(name, 0, seed)] for seed in args.seeds] for name in SCRATCH}
    table = Table("variant", "GFLOP per clip", "epochs", "PFLOP", *(f"seed {seed}" for seed in args.seeds), "mean")
    for variant in args.variants:
        for steps in lengths[variant]:
            found = [results[Job(variant, steps, seed)] for seed in args.seeds]
            cells = [f"{100 * value:.1f}" for value in (*found, statistics.mean(found))]
            pflop = steps * loop.batch_size * tflop[variant] / 1e3
            table.add_row(variant, f"{1e3 * tflop[variant]:.2f}", f"{steps / per_epoch:.1f}", f"{pflop:.3f}", *cells)
    for name, values in scratch.items():
        table.add_row(name, "", "", "", *(f"{100 * value:.1f}" for value in (*values, statistics.mean(values))))
    Console(width=110).print(table)
    if args.out:
        report = {"command": shlex.join(["python", *sys.argv]), "machine": machine(local_device())}
        args.out.write_text(json.dumps(report | {"points": points, "scratch": scratch}, indent=2) + "\n")
    if args.plot:
        plot(points, scratch, args.plot)


if __name__ == "__main__":
    main()
