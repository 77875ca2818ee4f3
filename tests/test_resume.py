"""A run that was killed, however rudely, and continued is the run that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY, log_rows, mam2

SAME_EVERY_TIME = ("step", "epoch", "loss", "appearance", "motion", "alignment", "lr", "grad_norm", "feature_std")
STEPS = 30


def arguments(videos: Path, out: Path) -> list[str]:
    run = ["pretrain", "mam2_tiny", "--data.root", str(videos), "--out", str(out), *TINY]
    return [*run, "--loop.duration", f"{STEPS} steps", "--loop.save-every", "3 steps"]


def start(videos: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mam2", *arguments(videos, out), "--data.num-workers", "1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_lines(log: Path, process: subprocess.Popen[str], *, count: int) -> None:
    end = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the run wrote no log"
        time.sleep(0.005)


def result(out: Path) -> tuple[list[list[object]], bytes]:
    """The log without its timings, and the bytes of the last weights."""
    weights = out / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors"
    kept = [[row[name] for name in SAME_EVERY_TIME] for row in log_rows(out)]
    return kept, weights.read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = mam2(*arguments(videos, out))
    assert done.returncode == 0, done.stderr
    rows, weights = result(out)
    assert [row[0] for row in rows] == list(range(1, STEPS + 1))
    return out, (rows, weights)


def test_killed_at_a_random_moment_and_continued(videos, tmp_path, uninterrupted):
    out = tmp_path / "killed"
    for lines in (2, 12):
        process = start(videos, out)
        wait_for_lines(out / "log.jsonl", process, count=lines)
        time.sleep(random.random() / 20)
        process.kill()  # only the main process: its worker must not outlive it
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = mam2(*arguments(videos, out))
    assert done.returncode == 0, done.stderr
    assert result(out) == uninterrupted[1]
    assert len(list((out / "checkpoints").iterdir())) == 2  # the newest two, and no half-written one


def test_sigterm_saves_exits_0_and_goes_on(videos, tmp_path, uninterrupted):
    out = tmp_path / "stopped"
    process = start(videos, out)
    wait_for_lines(out / "log.jsonl", process, count=4)
    os.killpg(process.pid, signal.SIGTERM)  # as torchrun and systemd do: the loader's worker gets it too
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 0, stderr
    assert "everything is saved" in " ".join(stderr.split())
    logged = log_rows(out)[-1]["step"]
    assert 4 <= logged < STEPS
    assert (out / "checkpoints" / f"step_{logged:08d}").is_dir()
    done = mam2(*arguments(videos, out))
    assert done.returncode == 0, done.stderr
    assert result(out) == uninterrupted[1]


def test_a_finished_run_is_left_as_it_is(videos, uninterrupted):
    out, before = uninterrupted
    (out / "encoder.safetensors").unlink()  # as a kill between the last checkpoint and its export leaves it
    done = mam2(*arguments(videos, out))
    assert done.returncode == 0, done.stderr
    assert result(out) == before
    assert (out / "encoder.safetensors").exists()
