"""`mam2 compare`: the figures and costs of its table, how seeds pair, and what it does not compare."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mam2 import cost
from mam2.config import Steps, UserError, to_json
from mam2.model.encoder import EncoderConfig
from mam2.objectives.mae import MAEConfig
from mam2.probe.probe import Probe
from mam2.studies.compare import compared, number
from mam2.targets.table import TargetsConfig
from mam2.train.engine import Loop
from mam2.train.finetune import Finetune
from mam2.train.online_probe import Watch
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain

A = (0.5, 0.6, 0.7)
B = (0.4, 0.55, 0.55)


def write_run(folder: Path, kind: str, config: Any, rows: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    record = {"kind": kind, "config": to_json(config), "num_videos": 8}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tuned(folder: Path, report: dict[str, Any], *, seed: int = 0, rate: float = 1e-3, init: str = "scratch") -> Path:
    """A fine-tuning of 120 steps of 4 videos, two clips each, 8 clips a second after a slower start: two minutes."""
    rows = [{"step": step, "clips_per_second": speed} for step, speed in ((40, 2.0), (80, 8.0), (120, 8.0))]
    config = Finetune(init=init, optim=Optim(base_lr=rate), loop=Loop(batch_size=4, seed=seed))
    write_run(folder, "finetune", config, rows)
    (folder / "evaluate.json").write_text(json.dumps({"num_videos": 20, "bad_videos": {}, **report}))
    return folder


def classes(top1: float, **others: Any) -> dict[str, Any]:
    return {"top1": top1, "top5": top1 + 0.2, "per_class": {"run": top1, "sit": None}, **others}


def probed(folder: Path, top1: float, *, kind: str = "linear", encoder: str = "e", baseline: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        **classes(top1),
        "num_videos": 20,
        "num_train": 12,
        "baseline": {"top1": 0.25, "top5": 0.5} if baseline else None,
        "config": to_json(Probe(encoder=encoder, train="t", test="u", kind=kind)),
    }
    file = folder / f"probe_{kind}.json"
    file.write_text(json.dumps(report))
    return file


def pretraining(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = 6,
    duration: int = 6,
    ridge: Sequence[float] = (),
    labelled: str = "",
    width: int = 8,
) -> Path:
    """A pre-training on 8 videos in batches of 4, at 1 clip per second."""
    config = Pretrain(
        encoder=EncoderConfig(width=width, depth=1, num_heads=2, frames=4, size=16, patch_size=8),
        objective=MAEConfig(width=8, depth=1, num_heads=2),
        targets=TargetsConfig(appearance="pixels"),
        loop=Loop(batch_size=4, duration=Steps(duration), seed=seed),
        watch=Watch(labelled=labelled),
    )
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1.0, "clips_per_second": 1.0} for step in range(1, steps + 1)]
    looks = [{"step": step, "probe_ridge": r, "probe_knn": r / 2} for step, r in enumerate(ridge, start=1)]
    return write_run(folder, "pretrain", config, rows + looks)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_seeds_make_a_line_and_pair_with_those_of_the_first(tmp_path: Path) -> None:
    runs = [tuned(tmp_path / f"a{seed}", classes(A[seed]), seed=seed) for seed in range(3)]
    runs += [tuned(tmp_path / f"b{seed}", classes(B[seed]), seed=seed, rate=2e-3) for seed in (2, 0, 1)]
    runs += [tuned(tmp_path / "c7", classes(0.9), seed=7, rate=3e-3)]
    assert compared(runs) == [
        ["run", "starts from", "seeds", "top-1", "sd", "difference", "top-5", "minutes"],
        ["a0", "scratch", "0, 1, 2", "60.0", "10.0", "-", "80.0", "2"],
        ["b2", "scratch", "2, 0, 1", "50.0", "8.7", "-10.0 ± 12.4", "70.0", "2"],  # of -10, -5, -15
        ["c7", "scratch", "7", "90.0", "-", "+30.0", "110.0", "2"],  # no pair: means, and no interval
    ]


def test_runs_of_several_pre_trainings_go_by_their_seeds(tmp_path: Path) -> None:
    runs = []
    for name, values, width in (("a", A, 8), ("b", B, 16)):
        for seed, top1 in enumerate(values):
            start = pretraining(tmp_path / f"{name}{seed}" / "pre", seed=seed, width=width)
            runs.append(probed(tmp_path / f"{name}{seed}" / "probe", top1, encoder=str(start)))
    head, a, b = compared(runs)
    assert head == ["run", "starts from", "seeds", "top-1", "sd", "difference", "top-5", "untrained", "labelled videos"]
    assert a == ["a0/probe/probe_linear.json", "pre", "0, 1, 2", "60.0", "10.0", "-", "80.0", "25.0", "12"]
    assert b[2:6] == ["0, 1, 2", "50.0", "8.7", "-10.0 ± 12.4"]
    # The same for fine-tunings.
    runs = [
        tuned(tmp_path / f"{name}{seed}" / "tuned", classes(values[seed]), init=str(tmp_path / f"{name}{seed}" / "pre"))
        for name, values in (("a", A), ("b", B)) for seed in range(3)
    ]  # fmt: skip
    assert [line[2:6] for line in compared(runs)[1:]] == [a[2:6], b[2:6]]


def test_an_encoder_and_the_best_of_the_same_run_are_two(tmp_path: Path) -> None:
    start = pretraining(tmp_path / "pre")
    (start / "encoder_best.safetensors").touch()
    (start / "encoder.safetensors").touch()
    names = {"x": start, "y": start / "encoder.safetensors", "z": start / "encoder_best.safetensors"}
    runs = [probed(tmp_path / name, 0.5, encoder=str(encoder)).parent for name, encoder in names.items()]
    assert [line[1:3] for line in compared(runs)[1:]] == [["pre", "0, 0"], ["encoder_best.safetensors", "0"]]


def test_several_labels_and_numbers(tmp_path: Path) -> None:
    several = {"labels": "multilabel", "map": 0.625, "per_class": {}}
    assert [line[3] for line in compared([tuned(tmp_path / "s", several)])] == ["mAP", "62.5"]
    errors = [
        {"labels": "regression", "r2": r2, "mae": mae, "rmse": 9.0} for r2, mae in ((0.957, 1.6), (-0.00429, 123.4))
    ]
    lines = compared([tuned(tmp_path / f"n{i}", report, rate=1e-3 * i) for i, report in enumerate(errors, start=1)])
    assert [line[3:7] for line in lines] == [
        ["R²", "sd", "difference", "mean error"],
        ["0.957", "-", "-", "1.6"],
        ["-0.00429", "-", "-0.961", "123"],
    ]
    constant = tuned(tmp_path / "c", {"labels": "regression", "r2": None, "mae": 0.5, "rmse": 0.5})
    assert [line[3] for line in compared([constant])] == ["mean error", "0.5"]


def test_pre_trainings_show_their_cost_and_their_online_probe(tmp_path: Path) -> None:
    watched = {"labelled": str(tmp_path)}
    runs = [pretraining(tmp_path / f"p{seed}", seed=seed, ridge=(0.2, 0.6, 0.4), **watched) for seed in (0, 1)]
    runs += [pretraining(tmp_path / f"q{seed}", seed=seed, ridge=(0.2, 0.7), width=16, **watched) for seed in (0, 1)]
    runs += [pretraining(tmp_path / "unwatched", width=24)]
    head, p, q, unwatched = compared(runs)
    assert head[3:] == [
        *("ridge, last", "sd", "difference", "ridge, best", "k-NN, last", "k-NN, best"),
        *("steps", "epochs", "minutes", "TFLOP"),
    ]
    assert p[2:-1] == ["0, 1", "40.0", "0.0", "-", "60.0", "20.0", "30.0", "6", "3", "0.4"]
    assert q[2:7] == ["0, 1", "70.0", "0.0", "+30.0 ± 0.0", "70.0"]
    assert unwatched[2:-1] == ["0", "-", "-", "-", "-", "-", "-", "6", "3", "0.4"]
    config = Pretrain(
        encoder=EncoderConfig(width=24, depth=1, num_heads=2, frames=4, size=16, patch_size=8),
        objective=MAEConfig(width=8, depth=1, num_heads=2),
        targets=TargetsConfig(appearance="pixels"),
    )
    assert unwatched[-1] == f"{cost.estimate(config).tflop * 4 * 6:.3g}"
    assert compared(runs[-1:])[0] == ["run", "starts from", "seeds", "steps", "epochs", "minutes", "TFLOP"]


def test_what_is_not_compared(tmp_path: Path) -> None:
    a = tuned(tmp_path / "a", classes(0.5))
    pre = pretraining(tmp_path / "pre", ridge=(0.5,), labelled="one")
    probed(tmp_path / "probe", 0.5)
    probed(tmp_path / "probe", 0.5, kind="knn")
    other = pretraining(tmp_path / "other", ridge=(0.5,), labelled="two")
    (tmp_path / "untested").mkdir()
    for runs, message in (
        ([], "Name the runs"),
        ([a, pre], rf"{a} \(a fine-tuning on classes\); {pre} \(a pre-training\)\. Give runs of one kind"),
        ([tmp_path / "probe"], r"probe_knn\.json \(a knn probe\); .*probe_linear\.json \(a linear probe\)"),
        ([a, tuned(tmp_path / "n", {"labels": "regression", "r2": 0.5, "mae": 1.0})], "a fine-tuning on regression"),
        ([a, tuned(tmp_path / "m", classes(0.5, num_videos=30))], "tested on 20 videos of 2 classes.*30 videos"),
        ([pre, other], r"\(watched on .*/one\); .*\(watched on .*/two\)"),
        ([pretraining(tmp_path / "short", steps=4)], "is at step 4 of 6"),
        ([write_run(tmp_path / "new", "finetune", Finetune(), [])], "is not tested. Run `mam2 evaluate"),
        ([tmp_path / "untested"], "neither run.json nor a probe_KIND.json"),
        ([a / "evaluate.json"], "neither run.json nor a probe_KIND.json"),
    ):
        with pytest.raises(UserError, match=message):
            compared(runs)
    # One video that can't be read in one of the runs makes no other test set.
    compared([a, tuned(tmp_path / "bad", classes(0.5, num_videos=19, bad_videos={"x.mp4": "cut short"}))])
    (a / "evaluate.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluate\.json is damaged"):
        compared([a])


def test_the_table_in_a_terminal_and_in_three_formats(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    runs = [
        tuned(tmp_path / f"[b]{i}", {"labels": "regression", "r2": 0.5 + i / 4, "mae": 1.0}, rate=1e-3 * (i + 1))
        for i in range(2)
    ]
    lines = compared(runs)
    assert lines[2][:6] == ["[b]1", "scratch", "0", "0.75", "-", "+0.25"]
    files = {suffix: tmp_path / "new" / f"table{suffix}" for suffix in (".md", ".csv", ".html")}
    for file in files.values():
        status, out, err = run("compare", *runs, "--out", file)
        assert (status, err) == (0, "")
        assert "[b]1" in out
        assert "+0.25" in out
        assert f"Wrote {file}" in out.replace("\n", "")
    with files[".csv"].open(encoding="utf-8", newline="") as opened:
        assert list(csv.reader(opened)) == lines
    assert files[".md"].read_text("utf-8").splitlines()[3] == "| " + " | ".join(lines[2]) + " |"
    page = files[".html"].read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in page
    assert "<td>[b]1</td><td>scratch</td><td>0</td><td>0.75</td><td>-</td><td>+0.25</td>" in page
    status, _, err = run("compare", *runs, "--out", tmp_path / "table.xls")
    assert status == 2
    assert "accepted: .md, .csv, .html" in err


def test_numbers_have_three_digits() -> None:
    found = [number(value) for value in (0.01234, 1.2345, 99.94, 99.96, 1234.5)]
    assert found == ["0.0123", "1.23", "99.9", "100", "1234"]
