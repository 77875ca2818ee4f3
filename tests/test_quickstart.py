"""The quickstart from end to end, at a size that only shows that it works."""

import json

import pytest

from mam2.config import UserError
from mam2.studies.quickstart import Quickstart, quickstart

SMALL = Quickstart(
    unlabelled_per_class=2, labelled_per_class=2, test_per_class=1, budget="3 steps", finetune_epochs=2.0, seeds=(0, 1)
)


@pytest.mark.slow
def test_quickstart_writes_what_it_promises_and_resumes(tmp_path) -> None:
    out = tmp_path / "quick"
    result = quickstart(out, SMALL)
    assert json.loads((out / "quickstart.json").read_text()) == result
    assert result["chance"] == 1 / 8
    assert [len(result[kind]) for kind in ("scratch", "mam2", "videomae")] == [2, 2, 2]
    assert all(0 <= top1 <= 1 for kind in ("scratch", "mam2", "videomae") for top1 in result[kind])
    page = (out / "report.html").read_text()
    assert page.count("<img") >= 6  # a dot plot, curves of both, three contact sheets
    assert "points" in page
    assert "Pre-training: VideoMAE" in page

    again = quickstart(out, SMALL)  # every part is done already
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_quickstart_keeps_away_from_other_folders(tmp_path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="no study's folder"):
        quickstart(tmp_path, SMALL)
