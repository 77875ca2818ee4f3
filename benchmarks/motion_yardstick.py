"""A pre-trained model's motion beside that of a ridge regression: the same held-out clips under the same masks.

The regression maps the visible patches' RGB differences, averaged over cells of half a patch, to the masked patches'
pixels. It has a fit of its own for each mask, where the model must serve all, and its penalty is chosen on the last
tenth of its clips. Both are judged by their squared error over that of predicting no motion, 1: in RGB, and with the
motion of each clip divided by its root mean square.

    python benchmarks/motion_yardstick.py RUN --train VIDEOS --test HELD_OUT --out motion_yardstick.json

Runs of several seeds may be given; they share the regressions.

B clips, T frames, N patches, V visible and M masked ones, F features, D numbers of a patch.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from common import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.loader import TrainLoader
from mam2.data.shape import ClipShape
from mam2.device import local_device
from mam2.masks import Mask, take
from mam2.objectives.contract import Objective
from mam2.patches import patchify, to_float
from mam2.targets.maker import TargetMaker
from mam2.targets.motion import clip_scale, rgb_difference
from mam2.targets.table import motion_row
from mam2.train.pretrain import Pretrain, load_run

CHUNK = 50
STRENGTHS = [10 ** (power / 2) for power in range(-6, 4)]
"""Penalties of the regression, as shares of the features' mean square."""
UNITS = ("clip", "rgb")


@dataclass(frozen=True)
class Motion:
    """Of some clips.

    Attributes:
        patches_BTND: RGB differences of neighbouring frames, of every patch.
        cells_BTNF: the same, averaged over cells of half a patch.
        scale_B: root mean square of the differences over the clip.
    """

    patches_BTND: Tensor
    cells_BTNF: Tensor
    scale_B: Tensor


@dataclass(frozen=True)
class Shares:
    """For one mask, squared errors over that of predicting none: of the regression, whose penalty was chosen, and of
    each run's model."""

    ridge: float
    penalty: float
    models: list[float]


def motion_of(clip_BTCHW: Tensor, config: Pretrain) -> Motion:
    """The motion of clips as they are tokenised: between the first frames of tubelets."""
    size = config.encoder.patch_size
    difference = rgb_difference(to_float(clip_BTCHW)[:, :: config.encoder.tubelet])
    cells = F.avg_pool2d(difference.flatten(0, 1), size // 2).unflatten(0, difference.shape[:2])
    scale = clip_scale(difference, least=motion_row(config.targets.motion).still)
    return Motion(patchify(difference, size), patchify(cells, 2), scale.flatten())


def clips_of(root: str, data: Data, config: Pretrain, *, count: int) -> list[Tensor]:
    """So many training clips of a folder, in chunks: every video once before any is drawn again."""
    data = replace(data, root=root, split="", num_workers=0)
    sizes = config.encoder
    loader = TrainLoader(
        read_catalog(data.listing, labelled=False),
        data,
        ClipShape.of(sizes),
        batch_size=CHUNK,
        seed=config.loop.seed + 10_000,
        num_steps=count // CHUNK,
    )
    return [batch.clip_BTCHW for batch in loader]


def mask_of(config: Pretrain, number: int) -> Mask:
    """Mask `number`, for a chunk: the same for all of its clips."""
    everything = replace(config.mask, predicted=1.0, aligned=1.0)
    one = everything(config.encoder.tubelets, config.encoder.grid, sample_B=torch.tensor([number]), seed=10_000)
    return one.map(lambda x: x.expand(CHUNK, *x.shape[1:]))


def pairs(clips: list[Tensor], mask: Mask, config: Pretrain, unit: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each chunk, what the regression sees (B, F) and what it is to predict (B, T·M·D)."""
    for clip_BTCHW in clips:
        motion = motion_of(clip_BTCHW, config)
        divisor = motion.scale_B if unit == "clip" else torch.ones_like(motion.scale_B)
        num_frames = motion.patches_BTND.shape[1]
        seen = take(motion.cells_BTNF, mask.visible_BTV[:, :num_frames]).flatten(1)
        hidden = take(motion.patches_BTND, mask.masked_BTM[:, :num_frames]).flatten(1)
        yield seen / divisor[:, None], hidden / divisor[:, None]


def shares_of_regression(
    train: list[Tensor], test: list[Tensor], mask: Mask, config: Pretrain, unit: str
) -> tuple[float, float]:
    """The regression's error on held-out clips over that of predicting none, and the penalty that was chosen."""
    num_chosen_on = max(1, len(train) // 10)
    fitted = products(train[:-num_chosen_on], mask, config, unit)
    losses = {s: error(solved(*fitted, s), train[-num_chosen_on:], mask, config, unit) for s in STRENGTHS}
    strength = min(losses, key=lambda s: losses[s])
    rest = products(train[-num_chosen_on:], mask, config, unit)
    weight_FD = solved(fitted[0] + rest[0], fitted[1] + rest[1], strength)
    return error(weight_FD, test, mask, config, unit), strength


def products(clips: list[Tensor], mask: Mask, config: Pretrain, unit: str) -> tuple[Tensor, Tensor]:
    """Sums of the features' products with themselves (F, F), and with what is predicted."""
    gram_FF = right_FD = torch.zeros(())
    for seen_BF, hidden_BD in pairs(clips, mask, config, unit):
        gram_FF = gram_FF + (seen_BF.T @ seen_BF).double()
        right_FD = right_FD + seen_BF.T @ hidden_BD
    return gram_FF, right_FD


def solved(gram_FF: Tensor, right_FD: Tensor, strength: float) -> Tensor:
    """The regression's weights. Motion is 0 on average, so there is no bias."""
    penalty = strength * gram_FF.diagonal().sum() / len(gram_FF) * torch.eye(len(gram_FF), dtype=torch.double)
    return torch.linalg.solve(gram_FF + penalty, right_FD.double()).float()


def error(weight_FD: Tensor, clips: list[Tensor], mask: Mask, config: Pretrain, unit: str) -> float:
    """The regression's squared error over that of predicting none."""
    wrong = none = 0.0
    for seen_BF, hidden_BD in pairs(clips, mask, config, unit):
        wrong += (seen_BF @ weight_FD - hidden_BD).square().sum().item()
        none += hidden_BD.square().sum().item()
    return wrong / none


@torch.no_grad()
def shares_of_model(
    model: Objective, targets: TargetMaker, config: Pretrain, clips: list[Tensor], mask: Mask
) -> dict[str, float]:
    """By unit, the model's error on held-out clips over that of predicting none.

    A model of motion divided by its root mean square in the clip says nothing of that; for RGB it is taken from the
    visible patches.
    """
    wrong, none = dict.fromkeys(UNITS, 0.0), dict.fromkeys(UNITS, 0.0)
    device = local_device()
    for clip_BTCHW in clips:
        motion = motion_of(clip_BTCHW, config)
        num_frames = motion.patches_BTND.shape[1]
        clip = to_float(clip_BTCHW.to(device))
        target = targets(clip, sample_B=torch.arange(CHUNK), seed=0)
        made = model.reconstruct(clip, mask.to(device), target).motion
        assert made is not None
        made = made[:, :num_frames].float().cpu()
        hidden = take(motion.patches_BTND, mask.masked_BTM[:, :num_frames])
        visible_BTVD = take(motion.patches_BTND, mask.visible_BTV[:, :num_frames])
        scale = motion.scale_B[:, None, None, None]
        seen_scale = visible_BTVD.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        scaled = config.targets.motion_scale == "clip"
        predicted = {"clip": made if scaled else made / scale, "rgb": made * seen_scale if scaled else made}
        for unit, truth in (("clip", hidden / scale), ("rgb", hidden)):
            wrong[unit] += (predicted[unit] - truth).square().sum().item()
            none[unit] += truth.square().sum().item()
    return {unit: wrong[unit] / none[unit] for unit in UNITS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of `mam2 pretrain` that differ in their seed")
    parser.add_argument("--train", required=True, help="videos for the regression: those that the runs had")
    parser.add_argument("--test", required=True, help="held-out videos")
    parser.add_argument("--train-clips", type=int, default=2100)
    parser.add_argument("--test-clips", type=int, default=300)
    parser.add_argument("--masks", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)

    loaded = {run: load_run(run) for run in args.runs}
    config = next(iter(loaded.values()))[2]
    for run, (_, _, other) in loaded.items():
        if (other.encoder, other.mask, other.targets) != (config.encoder, config.mask, config.targets):
            parser.error(f"{run} has another encoder, mask or targets than {args.runs[0]}. Give runs of one recipe.")
    if not config.objective.needs_motion:
        parser.error(f"{args.runs[0]} predicts no motion. Give runs of a recipe of MAM²'s that does.")
    if config.targets.motion != "rgb_difference" or config.targets.motion_scale == "patch":
        parser.error(
            f"The runs predict {config.targets.motion} with motion_scale {config.targets.motion_scale}; the RGB "
            "difference is needed, with motion_scale raw or clip."
        )
    if config.mask.is_guided:
        parser.error(
            "The runs' masks are guided by motion, so that no two clips share one. Give runs with other masks."
        )
    if args.train_clips < 2 * CHUNK or args.test_clips < CHUNK or args.masks < 1:
        parser.error(f"Give at least {2 * CHUNK} --train-clips, {CHUNK} --test-clips and one of --masks.")
    train = clips_of(args.train, config.data, config, count=args.train_clips)
    test = clips_of(args.test, config.data, config, count=args.test_clips)

    found: dict[str, list[Shares]] = {unit: [] for unit in UNITS}
    for number in range(args.masks):
        mask = mask_of(config, number)
        models = [shares_of_model(model, targets, of, test, mask) for model, targets, of in loaded.values()]
        for unit in UNITS:
            ridge, penalty = shares_of_regression(train, test, mask, config, unit)
            found[unit].append(Shares(ridge, penalty, [shares[unit] for shares in models]))
    table = Table("squared error / none", "ridge regression", *args.runs, title="mean over masks")
    for unit, masks in found.items():
        models_of_masks = zip(*(shares.models for shares in masks), strict=True)
        columns = [[shares.ridge for shares in masks], *models_of_masks]
        table.add_row(unit, *(f"{statistics.mean(column):.3f}" for column in columns))
    Console(width=160).print(table)
    if args.out:
        report = {
            "command": shlex.join(
                ["python", "benchmarks/motion_yardstick.py", *(sys.argv[1:] if arguments is None else arguments)]
            ),
            "machine": machine(local_device()),
            "steps": [str(of.loop.duration) for _, _, of in loaded.values()],
            "masks": {unit: [asdict(shares) for shares in masks] for unit, masks in found.items()},
        }
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
