"""The HTML report: scores, curves and pictures in one file."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mam2.config import UserError
from mam2.pictures.charts import confusion_picture
from mam2.pictures.report import ScoreRow, mean_and_spread, read_log, write_report


def test_a_cut_last_line_is_dropped_and_no_other(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    whole = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]
    text = "".join(json.dumps(row) + "\n" for row in whole)
    for cut in ("", '{"step": 3, "lo', "{", "3", '{"step": 3, "x": "é'):
        path.write_bytes((text + cut).encode()[: len(text) + len(cut)])
        assert read_log(path) == whole
    path.write_text(text.rstrip("\n"))
    assert read_log(path) == whole
    path.write_text("")
    assert read_log(path) == []
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 1"):
        read_log(path)


def test_mean_and_sample_standard_deviation() -> None:
    assert mean_and_spread((0.5, 0.6, 0.7)) == "60.0 ± 10.0"
    assert mean_and_spread((0.5,)) == "50.0"


@pytest.mark.parametrize("values", [(), (61.2,), (float("nan"),), (-0.1, 0.5)])
def test_scores_are_shares(values) -> None:
    with pytest.raises(UserError, match="top-1 in"):
        ScoreRow(name="run", values=values, note="")


def write_example(path: Path, *, sheets: list[tuple[str, Path]]) -> str:
    write_report(
        path,
        title="Quickstart & <script>",
        summary_html="<p>It <b>learns</b>.</p>",
        scores=[
            ScoreRow(name="MAM² <mine>", values=(0.5, 0.6, 0.7), note="two & two"),
            ScoreRow(name="scratch", values=(0.25,), note=""),
        ],
        curves=[("<seed 0>", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]), ("no rows", [])],
        sheets=sheets,
        facts={"machine": "2 <cores>", "seconds": "312"},
        chance=0.1,
    )
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Checks that tags close in order; gathers the text and the addresses of images."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.words, self.images = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_the_report_is_whole_and_stands_alone(tmp_path) -> None:
    sheet = tmp_path / "sheet.png"
    confusion_picture(torch.eye(2), ["a", "b"], sheet, title="any picture")
    page = write_example(tmp_path / "run" / "report.html", sheets=[("clip <0>", sheet)])
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    text = set(outline.words)
    assert {"60.0 ± 10.0", "50.0, 60.0, 70.0", "3", "25.0", "MAM² <mine>", "two & two"} <= text
    assert {"clip <0>", "<seed 0>", "2 <cores>", "312"} <= text
    assert "learns" in text  # the summary's tags are tags
    assert "Chance: 10.0 %." in page
    assert "<mine>" not in page  # all other texts are escaped
    assert "<script" not in page
    assert not re.search(r"https?:|(src|href)=\"(?!data:)|url\(|@import", page)
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in outline.images]
    assert len(images) == 4  # dots, sheet, two sets of curves
    assert images[1] == sheet.read_bytes()
    assert all(image.startswith(b"\x89PNG") for image in images)


def test_a_report_of_nothing_is_a_page(tmp_path) -> None:
    path = tmp_path / "report.html"
    write_report(path, title="Empty", summary_html="", scores=[], curves=[], sheets=[], facts={}, chance=0.1)
    page = path.read_text(encoding="utf-8")
    assert "<h1>Empty</h1>" in page
    assert "<h2>" not in page


@pytest.mark.parametrize("name", ["absent.png", "notes.txt"])
def test_a_picture_that_cannot_be_shown_is_named(tmp_path, name) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=rf"{name} is no picture"):
        write_example(tmp_path / "report.html", sheets=[("a", tmp_path / name)])
