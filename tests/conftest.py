import os
import subprocess
import sys
from pathlib import Path

import pytest

from mam2.data.synthetic import MOTIONS, render, write_video


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all but `pytest -m gpu`: the rest compares numbers of processes, and results bit by bit."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real clips: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders `left` and `approach` with four small videos each."""
    root = tmp_path_factory.mktemp("videos")
    for motion in (MOTIONS[0], MOTIONS[6]):
        (root / motion).mkdir()
        for seed in range(4):
            write_video(root / motion / f"{seed}.mp4", render(motion, seed=seed, num_frames=10, size=24))
    return root


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
