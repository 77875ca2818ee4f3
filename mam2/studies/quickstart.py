"""The quickstart, minutes on a laptop: renders videos, runs the study `quickstart` on them, and reports.

Everything goes through the same functions as real runs; only the sizes are small. An interrupted quickstart resumes.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mam2.config import UserError
from mam2.data.synthetic import MOTIONS, write_dataset
from mam2.files import write_text
from mam2.pictures.charts import SMOOTHED, curves_of
from mam2.pictures.page import command_line, video_title
from mam2.pictures.prediction import Prediction
from mam2.pictures.score_page import ScoreRow, write_report
from mam2.studies.builtin import STUDIES
from mam2.studies.conduct import check_study_folder, run_study
from mam2.studies.study import StudySettings, jobs_of
from mam2.train.run import read_log
from mam2.trained import open_model
from mam2.use.hidden_patches import predict_middle

log = logging.getLogger("mam2")
STUDY = STUDIES["quickstart"]
VIDEO_FRAMES, VIDEO_SIZE = 20, 28
RESULTS = {
    "scratch": ("from scratch", "random weights, same fine-tuning"),
    "mam2": ("MAM²", "pre-trained, same fine-tuning"),
    "videomae": ("VideoMAE", "pre-trained for as many steps, same sizes and fine-tuning"),
}
"""Names of the results in quickstart.json: the study's cell, and the words of the report."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Sizes of the quickstart; the defaults take some seven minutes on two cores.

    Attributes:
        unlabelled_per_class: videos of each motion for pre-training, which does not use the label.
        labelled_per_class: videos of each motion for fine-tuning.
        test_per_class: held-out videos of each motion.
        budget: length of either pre-training; empty for the study's own.
        finetune_epochs: length of fine-tuning, the same with and without pre-training; 0 is the study's own.
        seeds: seeds of the fine-tunings; the first is that of both pre-trainings.
    """

    unlabelled_per_class: int = 300
    labelled_per_class: int = 40
    test_per_class: int = 50
    budget: str = ""
    finetune_epochs: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)

    def settings(self, videos: Path) -> StudySettings:
        """The study's settings. Mirroring would turn left into right, so there is no flip."""
        return StudySettings(
            unlabelled=str(videos / "unlabelled"),
            train=str(videos / "train"),
            test=str(videos / "test"),
            scale="nano",
            budget=self.budget,
            seeds=self.seeds,
            tests=("finetune",),
            finetune_epochs=self.finetune_epochs,
            stride_frames=2,
            flip="off",
        )


def quickstart(out: Path, sizes: Quickstart) -> dict[str, Any] | None:
    """Runs the whole comparison: renders, pre-trains, fine-tunes, tests, draws and reports.

    Args:
        out: a new folder, or that of an interrupted quickstart.
        sizes: numbers of videos, lengths and seeds.

    Returns:
        The contents of quickstart.json, {"scratch": [top-1 per seed], "mam2": [...], "videomae": [...], "chance": x,
        "seconds": s}; None if SIGTERM ended it early, and the same command resumes.

    Raises:
        UserError: `out` holds other files, or a run failed.
    """
    videos = out / "videos"
    settings = sizes.settings(videos)
    check_study_folder("quickstart", settings, out)
    started = time.perf_counter()
    render_videos(videos, sizes)
    rendered = time.perf_counter()
    log.info("Pre-training MAM² and VideoMAE, which is most of the work; then fine-tuning, and from random weights.")
    # Two small runs side by side use two cores better than one run with two threads.
    report = run_study("quickstart", STUDY, settings, out, jobs=min(2, os.cpu_count() or 1))
    if report is None:
        return None
    seconds = {"rendering": rendered - started, "training and testing": time.perf_counter() - rendered}
    if errors := [f"{job['cell']}: {job['error']}" for job in report["jobs"] if "error" in job]:
        raise UserError(f"{len(errors)} of the runs failed; the same command tries them again. {errors[0]}")
    values = {line["cell"]: list(line["finetune"]["values"].values()) for line in report["cells"]}
    scores = {kind: values[cell] for kind, (cell, _) in RESULTS.items()}
    write_quickstart_page(out, sizes, report, scores, pictures(out, settings), seconds)
    result = {**scores, "chance": 1 / len(MOTIONS), "seconds": time.perf_counter() - started}
    write_text(out / "quickstart.json", json.dumps(result, indent=2))
    return result


def render_videos(videos: Path, sizes: Quickstart) -> None:
    """Renders the three sets of videos, those that are not there yet."""
    log.info(f"Rendering videos of {len(MOTIONS)} motions into {videos}.")
    counts = (sizes.unlabelled_per_class, sizes.labelled_per_class, sizes.test_per_class)
    for seed, (name, count) in enumerate(zip(("unlabelled", "train", "test"), counts, strict=True)):
        write_dataset(videos / name, videos_per_class=count, seed=seed, num_frames=VIDEO_FRAMES, size=VIDEO_SIZE)


def pretraining_folders(out: Path, settings: StudySettings) -> dict[str, Path]:
    """Folders of the pre-trainings by the names of their cells."""
    return {
        job.cell.name: out / "runs" / job.encoder_folder / "pretrain"
        for job in jobs_of(STUDY, settings)
        if not job.cell.scratch
    }


def pictures(out: Path, settings: StudySettings) -> list[tuple[str, Prediction]]:
    """MAM²'s predictions for the hidden patches of three held-out videos, with titles."""
    model = open_model(pretraining_folders(out, settings)["MAM²"], whole=True)
    videos = {motion: out / "videos" / "test" / motion / "00000.mp4" for motion in (MOTIONS[0], MOTIONS[4], MOTIONS[6])}
    return [
        (f"{video_title(video)}, a held-out video: {motion.replace('_', ' ')}", predict_middle(model, video, seed=0))
        for motion, video in videos.items()
    ]


def write_quickstart_page(
    out: Path,
    sizes: Quickstart,
    report: dict[str, Any],
    scores: dict[str, list[float]],
    sheets: list[tuple[str, Prediction]],
    seconds: dict[str, float],
) -> None:
    """Writes report.html, from study.json, top-1 in [0, 1] by seed, pictures, and the time of each part."""
    gain, gain_of_videomae = (
        100 * (statistics.mean(scores[kind]) - statistics.mean(scores["scratch"])) for kind in ("mam2", "videomae")
    )
    counts = (sizes.unlabelled_per_class, sizes.labelled_per_class, sizes.test_per_class)
    unlabelled, labelled, tested = (count * len(MOTIONS) for count in counts)
    summary = (
        f"The class of each video is how its shape moves, one of {len(MOTIONS)}; no single frame shows it. "
        f"Pre-training on {unlabelled} videos without labels changes top-1 after fine-tuning on {labelled} labelled "
        f"ones by <b>{gain:+.1f} points</b> (by VideoMAE: {gain_of_videomae:+.1f}) against the same fine-tuning from "
        f"random weights, tested on {tested} videos."
    )
    settings = sizes.settings(out / "videos")
    encoder = STUDY.cells[0].config(settings.scale).encoder
    machine = report["machine"]
    facts = {
        "command": command_line(["quickstart"], {"out": out}),
        "seeds": f"{', '.join(map(str, sizes.seeds))}, of fine-tuning; one pre-training of each kind",
        "encoder": f"width {encoder.width}, {encoder.depth} blocks, {encoder.attention} attention; clips of "
        f"{encoder.frames} frames of {encoder.size}², patches of {encoder.tubelet} × {encoder.patch_size}²",
        "pre-training": settings.budget or STUDY.budget,
        "fine-tuning": f"{report['jobs'][0]['finetune_epochs']:g} epochs of {labelled} clips",
        **{f"seconds, {name}": f"{value:.0f}" for name, value in seconds.items()},
        "machine": f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}",
    }
    write_report(
        out / "report.html",
        title="MAM² quickstart",
        summary_html=summary,
        scores=[ScoreRow(name=name, values=tuple(scores[kind]), note=note) for kind, (name, note) in RESULTS.items()],
        charts=[
            (f"Pre-training: {name}", SMOOTHED, curves_of(read_log(folder / "log.jsonl")))
            for name, folder in pretraining_folders(out, settings).items()
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
