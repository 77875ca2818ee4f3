"""Every kind of HTML page in a browser, on a telephone and on a desk: it fits, can be read and is whole."""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import TINY, TINY_ENCODER, opened

from mam2.__main__ import main
from mam2.studies.builtin import STUDIES
from mam2.studies.conduct import machine
from mam2.studies.quickstart import RESULTS, Quickstart, pretraining_folders, write_quickstart_page
from mam2.studies.study import StudySettings, jobs_of
from mam2.studies.study_page import write_study_report
from mam2.studies.summary import summarised
from mam2.trained import open_model
from mam2.use.hidden_patches import predict_middle

SMALL_TEXT = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.data.trim();
    if (!words || ["SCRIPT", "STYLE"].includes(element.tagName) || !element.getClientRects().length) continue;
    if (parseFloat(getComputedStyle(element).fontSize) < 14) found.push(words);
  }
  return found;
}"""
"""Texts below 14 pixels."""
TOO_WIDE = """() => [...document.querySelectorAll("img, svg, pre, .charts > div, .dots, .axis")]
  .filter(x => x.getBoundingClientRect().right > innerWidth + 1).map(x => x.outerHTML.slice(0, 99))"""
"""Pictures and charts that reach out of the window."""

PAGES = {
    "mine/report.html": ("Pre-training: mine", "of predicting no motion", "seed", "mam2 finetune finetune_tiny --init"),
    "tuned/report.html": ("Fine-tuning: tuned", "seed", "mam2 predict", "mam2 evaluate"),
    "quickstart/report.html": ("MAM² quickstart", "left/0.mp4", "seeds", "0, 1, 2", "mam2 pretrain mam2_tiny"),
    "study/report.html": (STUDIES["fig2"].title, "ST-MAE", "seeds", "mam2 study fig2 --unlabelled VIDEOS"),
    "hits.html": ("Windows like 0.mp4", "mam2 search", "mam2 embed RUN VIDEOS"),
    "pairs.html": ("Near-duplicates", "--near-duplicates", "mam2 embed RUN VIDEOS"),
    "timeline.html": ("Labels along", "Most probable", "seed", "mam2 predict"),
    "compare.html": ("Comparison of 1 run", "starts from", "mam2 compare RUN RUN"),
}
"""Each page's title and words on it."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A folder with a page of each kind, of tiny runs."""
    place = tmp_path_factory.mktemp("pages")

    def command(*arguments: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["mam2", *map(str, arguments)])
            main()

    mine, tuned, features = place / "mine", place / "tuned", place / "features.parquet"
    short, query = ("--loop.duration", "3 steps"), videos / "left" / "0.mp4"
    command("pretrain", "mam2_tiny", "--data.root", videos, "--out", mine, *TINY, *short)
    init = ("--init", mine, "--data.root", videos)
    command("finetune", "finetune_tiny", *init, "--out", tuned, *TINY_ENCODER, *short)
    command("report", mine)
    command("report", tuned)
    command("embed", mine, videos, "--out", features, "--window", "4 frames", "--num-workers", 0)
    command("search", features, query, "--html", place / "hits.html")
    command("search", features, "--near-duplicates", "--threshold", 0, "--html", place / "pairs.html")
    along = ("--window", "4 frames", "--timeline", place / "timeline.html")
    command("predict", tuned, videos, "--out", place / "labels.csv", *along)
    command("evaluate", tuned, "--data.root", videos)
    command("compare", tuned, "--out", place / "compare.html")

    quick = place / "quickstart"
    sizes = Quickstart()
    for folder in pretraining_folders(quick, sizes.settings(quick / "videos")).values():
        shutil.copytree(mine, folder)
    sheets = [("left/0.mp4, a held-out video: left", predict_middle(open_model(mine, whole=True), query, seed=0))]
    scores = {kind: [0.25, 0.5, 0.375] for kind in RESULTS}
    report = {"jobs": [{"finetune_epochs": 15.0}], "machine": machine()}
    write_quickstart_page(quick, sizes, report, scores, sheets, {"rendering": 2.0})

    (place / "study").mkdir()
    study, settings = STUDIES["fig2"], StudySettings(unlabelled="u", train="l", test="t")
    cost = {"steps": 9, "epochs": 3.0, "tflop": 900.0, "seconds": 600.0}
    none = dict.fromkeys(cost, 0)
    jobs = [
        {"cell": job.cell.name, "share": job.share, "seed": job.seed, "finetune": 0.5 + job.seed / 50, "linear": 0.3}
        | (none if job.cell.scratch else {name: job.share * value for name, value in cost.items()})
        for job in jobs_of(study, settings)
    ]
    report = {"study": "fig2", "title": study.title, "settings": asdict(settings), "machine": machine()}
    report["cells"] = summarised(study, settings, jobs)
    write_study_report(json.loads(json.dumps(report)), place / "study", chance=0.1)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1200, 900)])
def test_every_page_reads_well(pages: Path, chromium, width: int, height: int) -> None:
    for name, (title, *words) in PAGES.items():
        with opened(chromium, (pages / name).as_uri(), width=width, height=height) as page:
            assert page.inner_text("h1").startswith(title), name
            assert page.title().startswith(title), name
            text = page.inner_text("body")
            for word in ("Facts", "mam2 0.", "Now on your own videos", *words):
                assert word in text, (name, word)
            assert page.evaluate(SMALL_TEXT) == [], name
            assert page.evaluate(TOO_WIDE) == [], name
            shown = "all => Promise.all(all.filter(x => x.offsetWidth).map(x => x.decode().then(() => x.naturalWidth)))"
            assert min(page.locator("img").evaluate_all(shown), default=16) >= 16, name
