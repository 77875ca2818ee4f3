"""The README's Python examples run, and the targets of its links exist."""

import re
from pathlib import Path

import pytest
from helpers import TINY_ENCODER, mam2

from mam2.data.synthetic import MOTIONS, render, write_video

SHORT = (*TINY_ENCODER, "--loop.duration", "2 steps")
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_examples_run(videos, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "tuned"
    done = mam2("finetune", "finetune_tiny", "--init", "scratch", "--data.root", videos, "--out", run, *SHORT)
    assert done.returncode == 0, done.stderr
    write_video(tmp_path / "video.mp4", render(MOTIONS[0], seed=0, num_frames=40, size=24))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    first, second = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(first, names)
    assert names["clip_feature"].shape == (1, 16)
    assert names["scores"].shape == (1, 2)
    assert names["scores"].sum().item() == pytest.approx(1)
    exec(second, names)
    assert names["config"].mask.ratio == 0.75


def test_the_first_screen_has_a_picture_and_begins_with_a_command_not_with_figures():
    start = README.split("    make quickstart")[0]
    assert "![" in start
    assert "±" not in start
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(target):
    name, _, anchor = target.partition("#")
    assert (ROOT / name).exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{name} has no heading #{anchor}"
