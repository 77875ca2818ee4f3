"""Two processes compute what one does, and each video is tested once."""

import json

import pytest
import torch.distributed as dist
from helpers import TINY, TINY_ENCODER, mam2

from mam2 import distributed

PARTS = ("loss", "appearance", "motion", "alignment", "grad_norm")


def test_two_processes_equal_one_and_so_does_accumulation(videos, tmp_path):
    compare_processes(videos, tmp_path, {"one": 1, "two": 2, "parts": 1}, PARTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        ("--objective.decoders", "coupled", "--objective.regressor-depth", 0),
        ("--objective.teacher-momentum", 0.9, "--objective.context", "concat", "--targets.motion", "clip_order"),
    ],
    ids=["coupled, no regressor", "teacher, concat, clip order"],
)
def test_variants_need_no_search_for_unused_parameters(videos, tmp_path, variant):
    parts = tuple(part for part in PARTS if part != "alignment")
    compare_processes(videos, tmp_path, {"one": 1, "two": 2}, parts, *variant)


def compare_processes(videos, tmp_path, runs, parts, *variant):
    rows = {}
    for name, processes in runs.items():
        out, more = tmp_path / name, (*variant, *(("--loop.accumulate", 2) if name == "parts" else ()))
        run = ("pretrain", "mam2_tiny", "--data.root", videos, "--out", out, *TINY, "--loop.duration", "4 steps", *more)
        done = mam2(*run, processes=processes)
        assert done.returncode == 0, done.stderr
        rows[name] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for name in runs:
        for row, other in zip(rows["one"], rows[name], strict=True):
            assert {p: row[p] for p in parts} == pytest.approx({p: other[p] for p in parts}, rel=1e-3), name


def test_evaluation_counts_each_video_once(videos, tmp_path):
    run = tmp_path / "run"
    train = ("finetune", "finetune_tiny", "--init", "scratch", "--data.root", videos, "--out", run, *TINY_ENCODER)
    done = mam2(*train, "--loop.duration", "2 steps")
    assert done.returncode == 0, done.stderr
    (videos / "left" / "0.mp4").rename(tmp_path / "away.mp4")  # 7 videos: one process has one more
    try:
        reports = []
        for processes in (1, 2):
            done = mam2("evaluate", run, "--data.root", videos, "--clips", 2, processes=processes)
            assert done.returncode == 0, done.stderr
            reports.append(json.loads((run / "evaluate.json").read_text()))
    finally:
        (tmp_path / "away.mp4").rename(videos / "left" / "0.mp4")
    assert reports[0] == reports[1]
    assert reports[0]["num_videos"] == 7
    assert (reports[0]["clips"], reports[0]["crops"]) == (2, 1)
    assert sum(map(sum, reports[0]["confusion"])) == 7


def test_restarted_processes_do_not_read_the_addresses_of_those_that_died(monkeypatch):
    store, joined = dist.HashStore(), []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "rendezvous", lambda url, timeout: iter([(store, 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **settings: joined.append(settings))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for attempt in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with distributed.session():
            assert (joined[-1]["rank"], joined[-1]["world_size"]) == (1, 2)
            assert not joined[-1]["store"].check(["rank_0"])
            joined[-1]["store"].set("rank_0", "127.0.0.1")
    assert store.check(["attempt 0/rank_0", "attempt 1/rank_0"])
