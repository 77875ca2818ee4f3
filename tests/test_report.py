"""The HTML report: scores, curves and pictures in one file."""

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mam2 import __version__
from mam2.config import UserError
from mam2.pictures.charts import SMOOTHED, curves_of
from mam2.pictures.page import command_line, video_title
from mam2.pictures.prediction import Prediction
from mam2.pictures.score_page import ScoreRow, mean_and_spread, write_report
from mam2.train.run import read_log


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


def write_example(path: Path) -> str:
    curves = curves_of([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    write_report(
        path,
        title="Quickstart & <script>",
        summary_html="<p>It <b>learns</b>.</p>",
        scores=[
            ScoreRow(name="MAM² <mine>", values=(0.5, 0.6, 0.7), note="two & two"),
            ScoreRow(name="scratch", values=(0.25,), note=""),
        ],
        charts=[("<seed 0>", SMOOTHED, curves)],
        sheets=[("clip <0>", prediction())],
        facts={"machine": "2 <cores>", "seconds": "312"},
        commands=["mam2 show <run>"],
        chance=0.1,
    )
    return path.read_text(encoding="utf-8")


def prediction() -> Prediction:
    """Five frames of 8², all of one grey level each, half of them masked; no motion is predicted."""
    clip = torch.arange(5).div(5).reshape(5, 1, 1, 1).expand(5, 3, 8, 8)
    return Prediction(
        clip_TCHW=clip,
        masked_TN=torch.tensor([[True, False, True, False]]).expand(5, 4),
        grid=(2, 2),
        appearance_TCHW=clip,
        agreement_TN=None,
        motion_TCHW=torch.zeros(4, 3, 8, 8),
        true_motion_TCHW=clip[1:] - clip[:-1],
        notes=("a note <1>",),
    )


class Outline(HTMLParser):
    """Checks that tags close in order; gathers the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())


def test_the_report_is_whole_and_stands_alone(tmp_path) -> None:
    page = write_example(tmp_path / "run" / "report.html")
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # plotly's
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    text = set(outline.words)
    assert {"60.0 ± 10.0", "50.0, 60.0, 70.0", "3", "25.0", "MAM² <mine>", "two & two"} <= text
    assert {"clip <0>", "<seed 0>", "2 <cores>", "312", "a note <1>", "mam2 show <run>"} <= text
    assert {"Facts", "Now on your own videos", f"mam2 {__version__}"} <= {words.partition(",")[0] for words in text}
    assert "learns" in text  # the summary's tags are tags
    assert "Chance: 10.0 %." in page
    assert "<mine>" not in page  # all other texts are escaped
    assert "<script" not in page
    assert not re.search(r"https?:|(src|href)=\"(?!data:)|url\(|@import", page)
    # Ticks from 10 to 70 %: a score of 25 % stands at a quarter.
    assert re.findall(r'class="seed" style="left:([\d.]+)%"', page) == ["66.67", "83.33", "100.0", "25.0"]
    assert {"10 %", "25 %", "40 %", "55 %", "70 %"} <= text


def test_a_prediction_is_shown_frame_by_frame(tmp_path) -> None:
    page = write_example(tmp_path / "report.html")
    found = re.findall(r'<img src="data:image/webp;base64,([^"]*)" alt="([^"]*)">', page)
    names = [name for _, name in found]
    assert Counter(names) == {
        "Input": 5, "Input with mask": 5, "Predicted appearance": 5, "True motion": 4, "Predicted motion": 4,
    }  # fmt: skip
    assert page.count("last frame: no next one") == 2
    assert [f"frame {t}" in page for t in range(7)] == [False, True, True, True, True, True, False]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data, _ in found]
    assert {picture.size for picture in pictures} == {(128, 128)}
    for t in range(5):
        assert np.asarray(pictures[t]).mean() == pytest.approx(255 * t / 5, abs=4)


def test_a_report_of_nothing_is_a_page(tmp_path) -> None:
    path = tmp_path / "report.html"
    empty = {"scores": [], "charts": [], "sheets": [], "facts": {}, "commands": []}
    write_report(path, title="Empty", summary_html="", chance=0.1, **empty)
    page = path.read_text(encoding="utf-8")
    assert "<h1>Empty</h1>" in page
    assert re.findall("<h2>(.*?)</h2>", page) == ["Facts"]
    assert "<script" not in page


def test_what_to_type() -> None:
    options = {"out": "a b", "seeds": [0, 1], "train_split": "", "shots": 0}
    assert command_line(["study", "flops"], options) == "mam2 study flops --out 'a b' --seeds 0 1 --shots 0"


def test_a_video_is_named_with_its_folder(monkeypatch, tmp_path) -> None:
    assert video_title("/videos/Jump/Jump_1.mp4") == "Jump/Jump_1.mp4"
    assert video_title("/a.mp4") == "a.mp4"
    (tmp_path / "Sit").mkdir()
    monkeypatch.chdir(tmp_path / "Sit")
    assert video_title("b.mp4") == "Sit/b.mp4"
