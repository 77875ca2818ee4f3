"""The quickstart, minutes on a laptop: render, pre-train by MAM² and by VideoMAE, fine-tune, compare, report.

Everything goes through the same functions as real runs; only the sizes are small. An interrupted quickstart resumes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from mam2.config import Duration, Epochs, Steps, UserError
from mam2.data.catalog import Catalog, read_catalog
from mam2.data.clips import Data
from mam2.data.synthetic import MOTIONS, write_dataset
from mam2.device import cpu_name
from mam2.distributed import end_with_parent
from mam2.files import write_text
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig
from mam2.model.load import load_encoder
from mam2.objectives.mae import MAEConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.pictures.charts import SMOOTHED, curves_of
from mam2.pictures.page import command_line, video_title
from mam2.pictures.prediction import Prediction
from mam2.pictures.score_page import ScoreRow, write_report
from mam2.progress import progress
from mam2.studies.frames import shared_frames
from mam2.targets.table import TargetsConfig
from mam2.train.engine import Loop
from mam2.train.finetune import Finetune, finetune
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain, pretrain
from mam2.train.run import read_log
from mam2.trained import open_model
from mam2.use.evaluate_run import evaluate_run
from mam2.use.hidden_patches import predict_middle

log = logging.getLogger("mam2")
VIDEO_FRAMES, VIDEO_SIZE = 20, 28
KINDS = {
    "scratch": ("from scratch", "random weights, same fine-tuning"),
    "mam2": ("MAM² pre-trained", "same fine-tuning"),
    "videomae": ("VideoMAE pre-trained", "as many steps, same sizes and fine-tuning"),
}
"""Where fine-tuning starts: the words of the report."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Sizes of the quickstart; the defaults take some seven minutes on two cores.

    Attributes:
        unlabelled_per_class: videos of each motion for pre-training, which does not use the label.
        labelled_per_class: videos of each motion for fine-tuning.
        test_per_class: held-out videos of each motion.
        encoder: the model.
        pretrain_duration: of either pre-training.
        finetune_duration: of fine-tuning, the same with and without pre-training.
        seeds: one fine-tuning of each kind per seed.
    """

    unlabelled_per_class: int = 300
    labelled_per_class: int = 40
    test_per_class: int = 50
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(
            width=96, depth=3, num_heads=3, frames=8, size=24, patch_size=4,
            tubelet=2, attention="joint", positions="sequence",
        )
    )  # fmt: skip
    pretrain_duration: Duration = Steps(4000)
    finetune_duration: Duration = Epochs(15)
    seeds: tuple[int, ...] = (0, 1, 2)


def pretrain_config(settings: Quickstart, root: str, kind: str) -> Pretrain:
    """A pre-training run. Mirroring would turn left into right, so there is no flip.

    MAM² here has one decoder for pixels and motion, neither regressor nor alignment: the whole step takes some four
    times as long. Attention starts local. VideoMAE predicts pixels alone, and starts as its paper has it.
    """
    width = settings.encoder.width // 2  # of decoders
    objective: MAM2Config | MAEConfig
    if kind == "videomae":
        objective = MAEConfig(width=width, depth=1, num_heads=2)
    else:
        objective = MAM2Config(
            width=width, num_heads=2,
            regressor_depth=0, appearance_depth=1, decoders="coupled", alignment_weight=0.0, start="local",
        )  # fmt: skip
    return Pretrain(
        data=Data(root=root, stride_frames=2, flip=False, num_workers=0),
        encoder=settings.encoder,
        objective=objective,
        mask=MaskConfig(ratio=0.75),
        targets=TargetsConfig(appearance="pixels_of_tubelets", motion_scale="clip"),
        optim=Optim(base_lr=3.2e-2, min_lr=0.0, warmup=Steps(50), max_grad_norm=3.0),
        loop=Loop(batch_size=8, duration=settings.pretrain_duration, save_every=Steps(500)),
    )


def finetune_config(settings: Quickstart, root: str, *, init: str, seed: int) -> Finetune:
    """One fine-tuning run, the same wherever it starts. Its head keeps the order of frames, which tells the class."""
    return Finetune(
        init=init,
        data=Data(root=root, stride_frames=2, flip=False, augment="multi_scale_crop", num_workers=0),
        encoder=settings.encoder,
        optim=Optim(
            base_lr=1.6e-2, min_lr=0.0, betas=(0.9, 0.999), warmup=Epochs(1), layer_decay=0.75, max_grad_norm=3.0
        ),
        loop=Loop(batch_size=16, duration=settings.finetune_duration, seed=seed, save_every=Epochs(5)),
        pooling="space",
        mixup=0.0,
        cutmix=0.0,
        clips=1,
        crops=1,
    )


def quickstart(out: Path, settings: Quickstart | None = None) -> dict[str, object] | None:
    """Runs the whole comparison: renders, pre-trains, fine-tunes, tests, draws and reports.

    Args:
        out: a new folder, or that of an interrupted quickstart.
        settings: the sizes; the defaults if None.

    Returns:
        The contents of quickstart.json; None if SIGTERM ended it early, and the same command resumes:
        {"scratch": [top-1 per seed], "mam2": [...], "videomae": [...], "chance": x, "seconds": s}.

    Raises:
        UserError: `out` holds other files.
    """
    settings = settings or Quickstart()
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "videos").is_dir())):
        raise UserError(f"{out} exists and is no quickstart's folder. Give another --out.")
    start = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(name: str) -> None:
        seconds[name] = time.perf_counter() - start - sum(seconds.values())

    videos = out / "videos"
    log.info(f"Rendering videos of {len(MOTIONS)} motions into {videos}.")
    sizes = {"unlabelled": settings.unlabelled_per_class, "train": settings.labelled_per_class}
    for seed, (name, count) in enumerate([*sizes.items(), ("test", settings.test_per_class)]):
        write_dataset(videos / name, videos_per_class=count, seed=seed, num_frames=VIDEO_FRAMES, size=VIDEO_SIZE)
    lap("rendering")

    # Eleven runs read them: decoded once, a clip loads in 0.5 in place of 3 ms.
    lists = {
        name: str(shared_frames(_catalog(videos / name), out / "frames", size=settings.encoder.size, name=name))
        for name in ("unlabelled", "train", "test")
    }
    lap("decoding")

    # Two small runs side by side use two cores better than one run with two threads.
    # Leaving the pool early sends its processes SIGTERM: they finish their step, save and end.
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1), end_with_parent) as pool:
        pretraining = pool.imap(partial(_pretrain, out, settings, lists["unlabelled"]), ("mam2", "videomae"))
        jobs = [(kind, seed) for kind in KINDS for seed in settings.seeds]
        tune = partial(_finetune_and_test, out, settings, lists["train"], lists["test"])
        waiting = len(settings.seeds)  # those from scratch need not wait for pre-training
        scratch = pool.imap(tune, jobs[:waiting])
        if not all(pretraining):
            return None
        lap("pre-training, and part of the fine-tuning")
        results = itertools.chain(scratch, pool.imap(tune, jobs[waiting:]))
        bar = progress(results, title="fine-tuning", total=len(jobs))
        top1 = dict[tuple[str, int], float]()
        for job, accuracy in zip(jobs, bar, strict=True):
            if accuracy is None:
                return None
            top1[job] = accuracy
    lap("fine-tuning and testing")

    sheets = []
    model = open_model(out / "pretrain_mam2", whole=True)
    for motion in MOTIONS[0], MOTIONS[4], MOTIONS[6]:
        video = videos / "test" / motion / "00000.mp4"
        sheets.append(
            (
                f"{video_title(video)}, a held-out video: {motion.replace('_', ' ')}",
                predict_middle(model, video, seed=0),
            )
        )
    lap("pictures")

    found = {kind: [top1[kind, seed] for seed in settings.seeds] for kind in KINDS}
    chance = 1 / len(MOTIONS)
    result: dict[str, object] = {**found, "chance": chance, "seconds": sum(seconds.values())}
    _write_report(out, settings, found, sheets, seconds)
    means = ", ".join(f"{KINDS[kind][0]} {statistics.mean(values):.3f}" for kind, values in found.items())
    Console().print(f"top-1: {means} (chance {chance:.3f}; {len(settings.seeds)} seeds). Report: {out / 'report.html'}")
    write_text(out / "quickstart.json", json.dumps(result, indent=2))
    return result


def _catalog(root: Path) -> Catalog:
    return read_catalog(Data(root=str(root)).listing, labelled=True)


def _pretrain(out: Path, settings: Quickstart, unlabelled: str, kind: str) -> bool:
    """One pre-training run in a process of its own."""
    torch.set_num_threads(1)
    folder = out / f"pretrain_{kind}"
    with _printing_to(folder.with_suffix(".txt")):
        return pretrain(pretrain_config(settings, unlabelled, kind), folder)


def _finetune_and_test(out: Path, settings: Quickstart, train: str, test: str, job: tuple[str, int]) -> float | None:
    """One fine-tuning run in a process of its own."""
    kind, seed = job
    torch.set_num_threads(1)
    init = "scratch" if kind == "scratch" else str(out / f"pretrain_{kind}")
    folder = out / f"{kind}_{seed}"
    with _printing_to(folder.with_suffix(".txt")):
        if not finetune(finetune_config(settings, train, init=init, seed=seed), folder):
            return None
        result, _ = evaluate_run(folder, test)
    return result.top(1)


@contextlib.contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """What a run prints goes to a file beside its folder."""
    with file.open("a") as output, contextlib.redirect_stderr(output):
        yield


def _write_report(
    out: Path,
    settings: Quickstart,
    found: dict[str, list[float]],
    sheets: list[tuple[str, Prediction]],
    seconds: dict[str, float],
) -> None:
    gain, of_videomae = (
        100 * (statistics.mean(found[kind]) - statistics.mean(found["scratch"])) for kind in ("mam2", "videomae")
    )
    labels = settings.labelled_per_class * len(MOTIONS)
    unlabelled = settings.unlabelled_per_class * len(MOTIONS)
    tested = settings.test_per_class * len(MOTIONS)
    summary = (
        f"The class of each video is how its shape moves, one of {len(MOTIONS)}; no single frame shows it. "
        f"Pre-training on {unlabelled} videos without labels changes top-1 after fine-tuning on {labels} labelled ones "
        f"by <b>{gain:+.1f} points</b> (by VideoMAE: {of_videomae:+.1f}) against the same fine-tuning from random "
        f"weights, tested on {tested} videos."
    )
    encoder = load_encoder(out / "pretrain_mam2")
    sizes = settings.encoder
    facts = {
        "command": command_line(["quickstart"], {"out": out}),
        "seeds": ", ".join(map(str, settings.seeds)),
        "encoder": f"width {sizes.width}, {sizes.depth} blocks, {sizes.attention} attention; clips of {sizes.frames} "
        f"frames of {sizes.size}², patches of {sizes.tubelet} × {sizes.patch_size}²",
        "encoder parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
        "pre-training": f"{settings.pretrain_duration} of 8 clips",
        "fine-tuning": f"{settings.finetune_duration} of {labels} clips",
        **{f"seconds, {name}": f"{value:.0f}" for name, value in seconds.items()},
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    scores = [ScoreRow(name=name, values=tuple(found[kind]), note=note) for kind, (name, note) in KINDS.items()]
    write_report(
        out / "report.html",
        title="MAM² quickstart",
        summary_html=summary,
        scores=scores,
        charts=[
            (f"Pre-training: {name}", SMOOTHED, curves_of(read_log(out / f"pretrain_{kind}" / "log.jsonl")))
            for kind, name in (("mam2", "MAM²"), ("videomae", "VideoMAE"))
        ],
        sheets=sheets,
        facts=facts,
        commands=[
            "mam2 pretrain mam2_tiny --data.root VIDEOS --out runs/mine",
            "mam2 finetune finetune_tiny --init runs/mine --data.root LABELLED --out runs/tuned",
            "mam2 evaluate runs/tuned --data.root TEST",
        ],
        chance=1 / len(MOTIONS),
    )
