"""Top-1 after fine-tuning, for variants of the quickstart's pre-training task.

Every variant differs from the quickstart's in one thing, has as many steps, and is fine-tuned and tested as the
quickstart does it (8 motions, 320 labelled and 400 held-out videos; chance is 12.5 %). Several pre-training seeds, each
with several fine-tuning seeds: the spread over the former is what a difference must exceed.

    python benchmarks/downstream.py --variants vq "random projection" pixels --out downstream.json

On two cores a pre-training with its fine-tunings takes about seven minutes, two side by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mam2.config import Steps
from mam2.data.synthetic import write_dataset
from mam2.quickstart import VIDEO_FRAMES, VIDEO_SIZE, Quickstart, finetune_config, pretrain_config
from mam2.train.finetune import Finetune, evaluate_run, finetune
from mam2.train.pretrain import Pretrain, pretrain


def change(run: Pretrain, part: str, **fields: object) -> Pretrain:
    """The run with other values for some fields of one part of it."""
    return replace(run, **{part: replace(getattr(run, part), **fields)})


VARIANTS: dict[str, Callable[[Pretrain], Pretrain]] = {
    "vq": lambda run: run,
    "random projection": partial(change, part="targets", appearance="random_projection", num_codes=512),
    "raw motion": partial(change, part="targets", motion_scale="raw"),
    "pixels": partial(change, part="targets", appearance="pixels"),
    "clip order": partial(change, part="targets", motion="clip_order"),
    "coupled": partial(change, part="objective", decoders="coupled"),
    "w/o appearance": partial(change, part="objective", decoders="motion"),
    "w/o motion": partial(change, part="objective", decoders="appearance"),
    "w/o regressor": partial(change, part="objective", regressor_depth=0),
    "w/o alignment": partial(change, part="objective", alignment_weight=0.0),
    "half predicted": partial(change, part="mask", predicted=0.5),
    "quarter predicted": partial(change, part="mask", predicted=0.25),
    "half aligned": partial(change, part="mask", aligned=0.5),
    "4 fixed clips": partial(change, part="data", fixed_clips=4),
    "1 fixed clip": partial(change, part="data", fixed_clips=1),
}


def worth(job: tuple[str, int], *, folder: Path, steps: int, finetune_seeds: tuple[int, ...]) -> list[float]:
    """Top-1 of a variant pre-trained with a seed, for each fine-tuning seed; "scratch" is not pre-trained."""
    variant, seed = job
    name, settings, run = f"{variant}_{seed}".replace("/", ""), Quickstart(), None
    if variant != "scratch":
        run = VARIANTS[variant](pretrain_config(settings, folder / "unlabelled"))
        run = replace(run, loop=replace(run.loop, seed=seed, duration=Steps(steps)))
    init = str(folder / name) if run else "scratch"
    tunings = {
        str(other): finetune_config(settings, folder / "train", init=init, seed=100 * seed + other)
        for other in finetune_seeds
    }
    return top1(name, run, tunings, folder=folder)


def top1(name: str, run: Pretrain | None, tunings: dict[str, Finetune], *, folder: Path) -> list[float]:
    """Top-1 after each fine-tuning, by name, of a pre-training run into `folder / name`; None: from scratch."""
    torch.set_num_threads(1)
    logging.getLogger("mam2").setLevel(logging.ERROR)
    found = []
    with (folder / f"{name}.txt").open("w") as output:
        sys.stderr = output  # progress bars of several processes at once
        if run and not pretrain(run, folder / name):
            raise SystemExit  # SIGTERM: a half-trained encoder must not be fine-tuned
        for which, tuning in tunings.items():
            tuned = folder / f"{name}_{which}"
            if not finetune(tuning, tuned):
                raise SystemExit
            found.append(evaluate_run(tuned, str(folder / "test"))[0].top(1))
    return found


def write_videos(folder: Path, per_class: Sequence[int]) -> None:
    """Rendered videos to pre-train on, to fine-tune on and to test with; existing ones are kept."""
    for seed, (name, count) in enumerate(zip(("unlabelled", "train", "test"), per_class, strict=True)):
        write_dataset(folder / name, videos_per_class=count, seed=seed, num_frames=VIDEO_FRAMES, size=VIDEO_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--finetune-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--videos-per-class", type=int, nargs=3, default=[300, 40, 50], metavar=("PRE", "TRAIN", "TEST")
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/downstream"), help="of the runs; they resume there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    folder: Path = args.folder
    write_videos(folder, args.videos_per_class)
    jobs = [(variant, seed) for variant in ["scratch", *args.variants] for seed in args.seeds]
    run = partial(worth, folder=folder, steps=args.steps, finetune_seeds=tuple(args.finetune_seeds))
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))

    table = Table("variant", *(f"seed {seed}" for seed in args.seeds), "mean", title="top-1, %, after fine-tuning")
    for variant in ["scratch", *args.variants]:
        found = [results[variant, seed] for seed in args.seeds]
        mean = statistics.mean(value for values in found for value in values)
        table.add_row(variant, *(" ".join(f"{100 * v:.1f}" for v in values) for values in found), f"{100 * mean:.1f}")
    Console(width=110).print(table)
    if args.out:
        report = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": {"cores": os.cpu_count(), "torch": torch.__version__},
            "top1": {v: {s: results[v, s] for s in args.seeds} for v in ["scratch", *args.variants]},
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
