"""Fixtures that several test files share."""

import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch

from mam2.__main__ import main
from mam2.data.synthetic import MOTIONS, render, write_video


def pytest_configure(config: pytest.Config) -> None:
    """Hides GPUs from all but `pytest -m gpu`: the rest compares numbers of processes, and results bit by bit.

    Where several workers share the tests (`pytest -n`), they share the cores too.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes names of files that are not UTF-8 in what a test printed: workers can't hand it over otherwise."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the terminal's width out of the environment: what is printed would be wrapped by it."""
    monkeypatch.delenv("COLUMNS", raising=False)


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
def empty_is_nan() -> Iterator[None]:
    """Fresh memory holds NaN, so that a parameter nobody set shows itself."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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
