"""The page of a run: what it says of its health, and that it opens at any time."""

import json
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest

from mam2.config import Steps, UserError
from mam2.data.clips import Data
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.targets.table import TargetsConfig
from mam2.train.engine import Loop
from mam2.train.online_probe import Watch
from mam2.train.pretrain import Pretrain, pretrain
from mam2.use.run_page import health, hours, write_run_page


def row(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "clips_per_second": 8.0, "data_seconds": 0.1, "feature_std": 1.0, **more}


def test_health_in_words() -> None:
    assert health([], batch_size=8) == ["Nothing is logged yet."]
    assert health([row(1)], batch_size=8) == ["Nothing conspicuous."]
    still = [row(s, motion=0.995, motion_of_none=1.0) for s in range(1, 30)]
    assert health(still, batch_size=8) == [
        "The motion loss is 0.995 times that of predicting none: nothing of it is learned yet."
    ]
    moves = [*still, *[row(s, motion=0.4, motion_of_none=0.5) for s in range(30, 50)]]
    assert health(moves, batch_size=8) == [
        "The motion loss is 0.800 times that of predicting none: it is being learned."
    ]
    assert "The features have collapsed" in health([row(1, feature_std=0.001)], batch_size=8)[0]
    assert "waiting for videos" in health([row(1, data_seconds=0.9)], batch_size=8)[0]  # of a second per step
    looks = [row(10), {"step": 10, "probe_ridge": 0.5}, {"step": 20, "probe_ridge": 0.4}]
    assert health(looks, batch_size=8) == [
        "Online probe: 0.400 at step 20; the best, 0.500 at step 10, is kept as encoder_best.safetensors."
    ]


def test_hours() -> None:
    assert hours(90) == "1.5 minutes"
    assert hours(7200) == "2.0 hours"


def test_a_page_at_any_time(videos: Path, tmp_path: Path) -> None:
    run = tmp_path / "a <b>"
    config = Pretrain(
        data=Data(root=str(videos), stride_frames=1, num_workers=0),
        encoder=EncoderConfig(width=8, depth=1, num_heads=2, frames=4, size=16, patch_size=8),
        objective=MAM2Config(width=8, num_heads=2, regressor_depth=1, appearance_depth=1, motion_depth=1),
        targets=TargetsConfig(appearance="random_projection", num_codes=8),
        loop=Loop(batch_size=4, duration=Steps(4), save_every=Steps(2), log_every=1, seed=11),
        watch=Watch(labelled=str(videos), every=Steps(2)),
    )
    assert pretrain(config, run)
    page = write_run_page(run).read_text()
    assert "Step 4 of 4." in page
    assert "a &lt;b&gt;" in page
    assert "a <b>" not in page
    assert re.search(r"<th scope=\"row\">seed</th><td>11</td>", page)
    assert "num_codes 8" in page
    assert re.search(r"<h3>(left|approach)/0.mp4</h3>", page)  # the video drawn, and its class's folder
    assert 'alt="Predicted motion"' in page
    assert "of predicting no motion" in page
    assert len(re.findall("Plotly.newPlot", page)) >= 5
    assert not re.search(r'<script[^>]+src="http', page)
    assert re.search(r"page written by</th><td>mam2 \d", page)
    assert f"mam2 finetune finetune_tiny --init &#39;{escape(str(run))}&#39;" in page
    # While it runs, or where its videos are gone, there is a page too.
    log = run / "log.jsonl"
    log.write_text("".join(line + "\n" for line in log.read_text().splitlines()[:2]) + '{"step": 3, "lo')
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"]["root"] = str(tmp_path / "gone")
    (run / "run.json").write_text(json.dumps(record))
    page = write_run_page(run, tmp_path / "page.html").read_text()
    assert "Step 2 of 4." in page
    assert "<img" not in page
    with pytest.raises(UserError, match="gone"):
        write_run_page(run, video=str(tmp_path / "gone.mp4"))
    with pytest.raises(UserError, match="no run's folder"):
        write_run_page(tmp_path / "absent")
    assert replace(config, watch=Watch()) != config
