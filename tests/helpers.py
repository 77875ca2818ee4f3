"""What several test files share: options of a tiny run, the command line, videos in any codec."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mam2.config import Steps
from mam2.data.clips import Data
from mam2.data.prepare.manifest import COLUMNS, Report
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mae import MAEConfig
from mam2.targets.table import TargetsConfig
from mam2.train.engine import Loop
from mam2.train.pretrain import Pretrain

TINY_ENCODER = [
    *("--encoder.width", "16", "--encoder.depth", "1", "--encoder.num-heads", "2"),
    *("--encoder.frames", "3", "--encoder.size", "16", "--encoder.patch-size", "4"),
    *("--data.num-workers", "0", "--loop.batch-size", "4", "--loop.log-every", "1"),
]
TINY = [
    *TINY_ENCODER,
    *("--objective.width", "16", "--objective.num-heads", "2", "--objective.regressor-depth", "1"),
    *("--objective.appearance-depth", "1", "--targets.appearance", "random_projection", "--targets.num-codes", "32"),
]


def mam2(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user would."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return subprocess.run([*start, "mam2", *map(str, arguments)], capture_output=True, text=True, timeout=280)


def log_rows(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def tiny_mae(videos: Path, *, steps: int, **loop: Any) -> Pretrain:
    """A VideoMAE of one block that learns pixels."""
    return Pretrain(
        data=Data(root=str(videos), stride_frames=1, num_workers=0),
        encoder=EncoderConfig(width=8, depth=1, num_heads=2, frames=4, size=16, patch_size=8),
        objective=MAEConfig(width=8, depth=1, num_heads=2),
        targets=TargetsConfig(appearance="pixels"),
        loop=Loop(batch_size=4, duration=Steps(steps), save_every=Steps(2), log_every=1, **loop),
    )


def write_video(
    path: Path,
    *,
    encoder: str = "libx264",
    options: dict[str, str] | None = None,
    num_frames: int = 40,
    size: tuple[int, int] = (48, 64),
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    pixels: str = "",
    pixel_aspect: Fraction | None = None,
    ticks: Sequence[int] = (),
    shift: int = 0,
) -> Path:
    """Frame i has the grey level 20 + 5 (i mod 45), but for noise at the bottom and a white upper left. It is shown
    after `ticks[i]` milliseconds, and all after another `shift` units of the container's time."""
    if encoder not in av.codec.codecs_available:
        pytest.skip(f"this PyAV has no encoder {encoder}")
    options = {"sc_threshold": "0"} | (options or {})  # or else every frame may become a key frame
    height, width = size
    pixels = pixels or ("yuvj420p" if encoder == "mjpeg" else "yuv420p")
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(encoder, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.bit_rate = 2_000_000
        stream.codec_context.thread_count = 1
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if ticks:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            grey = np.full((height, width, 3), 20 + 5 * (i % 45), np.uint8)
            grey[:4, :4] = 255
            grey[-16:] = np.random.default_rng(i).integers(0, 200, (16, width, 1))
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=pixels)
            if ticks:
                frame.pts, frame.time_base = ticks[i], Fraction(1, 1000)
            container.mux(_shifted(stream.encode(frame), shift))
        container.mux(_shifted(stream.encode(), shift))
    if encoder == "libsvtav1":  # run as root it gives the thread that calls it real-time priority, and leaves it so
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def manifest_rows(report: Report) -> list[dict[str, str]]:
    """The lines of a manifest, by column."""
    with report.manifest.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def _shifted(packets: list[av.Packet], shift: int) -> list[av.Packet]:
    for packet in packets:
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    return packets


@contextmanager
def opened(chromium, address: str, *, width: int, height: int = 900) -> Iterator:
    """A page in Chromium, which must ask this machine only, complain of nothing and fit into the window's width."""
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(240_000)  # of a busy machine
    wrong = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # The page itself ends streams that it needs no longer.
    ended = "net::ERR_ABORTED"
    page.on("requestfailed", lambda asked: None if asked.failure == ended else wrong.append(f"failed: {asked.url}"))
    page.on("request", lambda asked: wrong.append(asked.url) if not is_here(asked.url) else None)
    page.goto(address)
    page.wait_for_selector("h1")
    yield page
    assert wrong == [], wrong
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    page.close()


def is_here(address: str) -> bool:
    """Whether an address asks no other machine."""
    return re.match(r"http://(127\.0\.0\.1|localhost):\d+/|file:///|data:|blob:", address) is not None
