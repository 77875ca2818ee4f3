"""The pages on how to add something are followed to the letter, in a package outside the tree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY_ENCODER

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("add_*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_there_are_three_pages() -> None:
    assert PAGES == ["add_a_mask.md", "add_a_target.md", "add_an_objective.md"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_pages_and_the_files_that_they_name_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in re.findall(r"(?:mam2|docs|benchmarks|tests)/[\w/]+\.(?:py|md|json)", text):
        assert (ROOT / name).exists() or "add_" in page.name, f"{page.name} names {name}"
    assert page.name in (ROOT / "mkdocs.yml").read_text()


def test_contributing_names_every_test_file_and_real_modules() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Tests, by subject")[1].split("##")[0]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    named = [name for row in rows for name in re.findall(r"`(test_\w+\.py)`", row[1])]
    assert sorted(named) == sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    for module in (name for row in rows for name in re.findall(r"`([\w/]+)`", row[2])):
        place = ROOT / "mam2" / module
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"CONTRIBUTING.md names {module}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_works_as_it_stands(page: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    commands = []
    for kind, text in BLOCK.findall((ROOT / "docs" / page).read_text("utf-8")):
        if kind == "sh":
            commands += text.splitlines()
        else:
            name = text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(text.split("\n", 1)[1])
    assert len(commands) >= 2
    names = {"VIDEOS": videos, "VIDEO": videos / "left" / "0.mp4", "RUN": tmp_path / "run", "RUN2": tmp_path / "run2"}
    names |= {"TUNED": tmp_path / "tuned"}
    for command in commands:
        program, verb, *words = command.split()
        assert program == "mam2"
        arguments = [str(names.get(word, word)) for word in words]
        if verb in ("pretrain", "finetune"):
            arguments += [*TINY_ENCODER, "--loop.duration", "2 steps"]
        if verb == "pretrain" and "pixels" not in words[0]:
            arguments += ["--objective.width", "16", "--objective.num-heads", "2", "--targets.num-codes", "8"]
            arguments += ["--targets.vq-steps", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "mam2", verb, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            timeout=280,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert list(tmp_path.glob("*.png")) or (tmp_path / "tuned" / "classifier.safetensors").exists()
