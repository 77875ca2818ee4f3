"""Fixtures that several test files share."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mam2.__main__ import main
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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: (exit status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mam2", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code
        out = capsys.readouterr()
        return status, out.out, " ".join(out.err.split())

    return call


@pytest.fixture
def chromium() -> Iterator:
    """A browser; tests that need one skip where it, or what drives it, is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no program chromium")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=program, args=["--no-sandbox"])
