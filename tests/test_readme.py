"""The README's Python example runs, and what it links to is there."""

import re
from pathlib import Path

import pytest
from helpers import TINY, mam2

SHORT = ("--loop.duration", "2 steps")
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(videos, tmp_path, monkeypatch):
    done = mam2(
        "pretrain",
        "mam2_tiny",
        "--data.root",
        videos,
        "--out",
        tmp_path / "runs" / "mine",
        *TINY,
        *SHORT,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1), names)
    assert names["clip_feature"].shape == (2, 16)
    assert names["config"].mask.ratio == 0.75


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(target):
    name, _, anchor = target.partition("#")
    assert (ROOT / name).exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{name} has no heading #{anchor}"
