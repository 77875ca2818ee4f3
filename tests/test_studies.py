"""Studies: equal budgets, one protocol, resuming, failures, and the numbers in their tables."""

import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mam2 import cost
from mam2.config import Epochs, Steps, UserError
from mam2.data.catalog import read_catalog
from mam2.data.shape import Listing
from mam2.data.synthetic import MOTIONS, render, write_video
from mam2.data.video.open import open_video
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.scales import SCALES, Scale, scaled, scaled_finetune, with_duration
from mam2.studies import jobs
from mam2.studies.budget import parse_budget
from mam2.studies.builtin import STUDIES
from mam2.studies.compare import compared
from mam2.studies.conduct import dealt, run_study
from mam2.studies.frames import shared_frames
from mam2.studies.jobs import steps_of
from mam2.studies.protocol import Protocol, Videos, pretraining_of
from mam2.studies.study import Cell, Job, Study, StudySettings, jobs_of
from mam2.studies.study_page import write_study_report
from mam2.studies.summary import as_csv, as_markdown, interval, not_fitted, summarised, table_of
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain, build
from mam2.train.run import read_log


def minute() -> Scale:
    """A scale at which a run takes a second."""
    tiny = SCALES_TINY()
    encoder = EncoderConfig(width=24, depth=2, num_heads=2, frames=4, size=16, patch_size=4)
    loop = replace(tiny.pretrain.loop, batch_size=2, log_every=1)
    tuning = replace(tiny.finetune.loop, batch_size=2, duration=Epochs(1))
    return replace(
        tiny,
        encoder=encoder,
        pretrain=replace(tiny.pretrain, encoder=encoder, loop=loop),
        finetune=replace(tiny.finetune, encoder=encoder, loop=tuning, clips=1),
        tokens=dict.fromkeys(("vqgan_16384", "vqgan_8192", "dalle"), ("random_projection", 16)),
    )


SCALES_TINY = SCALES["tiny"]
SMALL = Study(
    title="two methods",
    cells=(
        Cell("MAM²", "mam2_b_k400", paper="82.3"),
        Cell("VideoMAE", "videomae_b_k400"),
        Cell("scratch", "mam2_b_k400", scratch=True),
    ),
    shares=(0.5, 1.0),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCALES, "tiny", minute)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings_for(videos: Path, tmp_path: Path, **fields: object) -> StudySettings:
    """The fixture's videos for training, and others of the same classes for testing."""
    test = tmp_path / "test"
    for motion in (MOTIONS[0], MOTIONS[6]):
        (test / motion).mkdir(parents=True, exist_ok=True)
        write_video(test / motion / "9.mp4", render(motion, seed=9, num_frames=10, size=24))
    base = StudySettings(
        unlabelled=str(videos), train=str(videos), test=str(test), seeds=(0,), tests=("finetune",), budget="4 steps"
    )
    return replace(base, **fields)


def test_a_study_runs_resumes_and_grows(small: None, videos: Path, tmp_path: Path) -> None:
    settings = settings_for(videos, tmp_path, tests=("finetune", "knn"))
    out = tmp_path / "study"
    report = run_study("small", SMALL, settings, out)
    steps = {(line["cell"], line["share"]): line["steps"] for line in report["cells"]}
    assert steps == {
        ("MAM²", 0.5): 2, ("MAM²", 1.0): 4, ("VideoMAE", 0.5): 2, ("VideoMAE", 1.0): 4, ("scratch", 1.0): 0,
    }  # fmt: skip
    for job in report["jobs"]:
        assert 0 <= job["finetune"] <= 1
        assert 0 <= job["knn"] <= 1  # of an untrained encoder, from scratch
        encoder = json.loads((out / "runs" / "MAM" / "1" / "seed_0" / "finetune_1" / "run.json").read_text())
        assert encoder["config"]["data"]["root"] == str(out / "frames" / "train.csv")
        assert encoder["config"]["pooling"] == "space"  # the scale's
    assert report["machine"].keys() == {"cpu", "cores", "gpu", "torch"}
    assert report["machine"]["cpu"]
    files = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    assert json.loads((out / "study.json").read_text()) == json.loads(json.dumps(report))

    again = run_study("small", SMALL, settings, out)  # nothing is done twice
    assert again["jobs"] == report["jobs"]
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == files

    known = json.loads((out / "settings.json").read_text())
    del known["flip"]  # as in a folder of a version that had no such setting
    (out / "settings.json").write_text(json.dumps(known))
    (out / "runs" / "VideoMAE" / "1" / "seed_0" / "result.json").unlink()  # as after a kill
    assert run_study("small", SMALL, settings, out)["jobs"] == report["jobs"]
    more = run_study("small", SMALL, replace(settings, seeds=(0, 1)), out)
    assert [job for job in more["jobs"] if job["seed"] == 0] == report["jobs"]
    assert len(more["jobs"]) == 10
    known = json.loads((out / "settings.json").read_text())
    del known["pooling"]  # when it was no setting, heads averaged over all
    (out / "settings.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"other settings: pooling 'all' \(now 'recipe'\)"):
        run_study("small", SMALL, replace(settings, seeds=(0, 1)), out)
    (out / "settings.json").write_text(json.dumps(known | {"pooling": "recipe"}))
    with pytest.raises(UserError, match=r"other settings: budget '4 steps' \(now '5 steps'\)"):
        run_study("small", SMALL, replace(settings, seeds=(0, 1), budget="5 steps"), out)
    with pytest.raises(UserError, match="is no study's folder"):
        run_study("small", SMALL, settings, videos)

    page = write_study_report(more, out, chance=0.5).read_text()
    assert "VideoMAE" in page
    assert page.count('class="plotly-graph-div"') == 6  # two tests, against epochs, operations and minutes
    assert (
        "mam2 study small --unlabelled VIDEOS --train LABELLED --test TEST --budget &#39;4 steps&#39; --seeds 0 1"
        in page
    )


def test_jobs_and_shards_share_the_work(small: None, videos: Path, tmp_path: Path) -> None:
    settings = settings_for(videos, tmp_path, pooling="all")
    one = replace(SMALL, shares=(1.0,))
    whole = run_study("small", one, settings, tmp_path / "whole")
    first = run_study("small", one, settings, tmp_path / "parts", shard=(0, 2))
    assert [job["cell"] for job in first["jobs"]] == ["MAM²", "scratch"]
    both = run_study("small", one, settings, tmp_path / "parts", shard=(1, 2))
    keep = ("cell", "seed", "steps", "finetune")
    assert [[job[k] for k in keep] for job in both["jobs"]] == [[job[k] for k in keep] for job in whole["jobs"]]
    tuned = json.loads((tmp_path / "whole" / "runs" / "MAM" / "1" / "seed_0" / "finetune_1" / "run.json").read_text())
    assert tuned["config"]["pooling"] == "all"  # as asked for, not the scale's


def test_seeds_can_share_one_pre_training(small: None, videos: Path, tmp_path: Path) -> None:
    study = replace(SMALL, shares=(1.0,), pretrain_once=True, finetune_changes=(("clips", 2), ("optim.min_lr", 0.5)))
    settings = settings_for(videos, tmp_path, seeds=(3, 4))
    report = run_study("small", study, settings, tmp_path / "one")
    assert [(job["cell"], job["seed"]) for job in report["jobs"]] == [
        (cell.name, seed) for seed in (3, 4) for cell in study.cells
    ]
    runs = tmp_path / "one" / "runs"
    pretrained = sorted(path.parent.relative_to(runs).as_posix() for path in runs.rglob("pretrain"))
    assert pretrained == ["MAM/1/seed_3", "VideoMAE/1/seed_3"]
    assert json.loads((runs / "MAM/1/seed_3/pretrain/run.json").read_text())["config"]["loop"]["seed"] == 3
    tuned = json.loads((runs / "MAM/1/seed_4/finetune_1/run.json").read_text())["config"]
    assert tuned["init"] == str(runs / "MAM/1/seed_3/pretrain")
    assert (tuned["loop"]["seed"], tuned["clips"], tuned["optim"]["min_lr"]) == (4, 2, 0.5)

    own = run_study("small", replace(study, pretrain_once=False), settings, tmp_path / "own")
    first = [[{**job, "seconds": 0} for job in r["jobs"] if job["seed"] == 3] for r in (report, own)]
    assert first[0] == first[1]  # the first seed has the same pre-training either way
    todo = jobs_of(study, settings)
    assert [str(job) for job in dealt(todo, (0, 2))] == [str(todo[n]) for n in (0, 2, 3)]  # MAM² goes together
    assert [str(job) for job in dealt(todo, (1, 2))] == [str(todo[n]) for n in (1, 4, 5)]


def test_jobs_wait_for_the_pre_training_that_they_share(small: None, videos: Path, tmp_path: Path) -> None:
    study = replace(
        SMALL, shares=(1.0,), pretrain_once=True, cells=(Cell("flow", "ablation_optical_flow"), *SMALL.cells[1:])
    )
    settings = settings_for(videos, tmp_path, seeds=(0, 1), tests=("knn",))
    one = run_study("small", study, settings, tmp_path / "one")
    failed = [job["error"] for job in one["jobs"] if job["cell"] == "flow"]
    assert failed == [f"Its pre-training is not done: see {tmp_path / 'one/runs/flow/1/seed_0/output.txt'}."] * 2
    assert ["error" in job for job in one["jobs"]] == [True, False, False] * 2
    log = [str(step) for step in steps_of(jobs_of(study, settings))]
    assert log[:3] == ["flow, pre-training", "VideoMAE, pre-training", "flow, 1 of the budget, seed 0"]
    assert len(log) == 8


def test_a_study_that_sigterm_ends_resumes(
    small: None, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(SMALL, shares=(1.0,), cells=SMALL.cells[1:])
    settings = settings_for(videos, tmp_path)
    whole = run_study("small", study, settings, tmp_path / "whole")
    out = tmp_path / "study"
    with monkeypatch.context() as patch:  # a training that ends early says so
        patch.setattr("mam2.studies.jobs.finetune", lambda config, folder: False)
        assert run_study("small", study, settings, out) is None
    assert not (out / "study.json").exists()
    assert not list(out.rglob("result.json"))
    keep = ("cell", "seed", "steps", "finetune")
    again = run_study("small", study, settings, out)
    assert [[job[k] for k in keep] for job in again["jobs"]] == [[job[k] for k in keep] for job in whole["jobs"]]


def test_longer_fine_tuning_keeps_the_encoders(small: None, videos: Path, tmp_path: Path) -> None:
    study, out = replace(SMALL, shares=(1.0,)), tmp_path / "study"
    settings = settings_for(videos, tmp_path, tests=("finetune", "knn"))
    short = run_study("small", study, settings, out)
    kept = {file: file.read_bytes() for file in out.rglob("pretrain/log.jsonl")}  # with the speed of every step
    long = replace(settings, finetune_epochs=3.0)
    first = run_study("small", study, long, out, shard=(0, 3))
    assert [job["cell"] for job in first["jobs"]] == ["MAM²"]  # those of another length are no part of the study now
    report = run_study("small", study, long, out)
    assert len(kept) == 2
    assert {file: file.read_bytes() for file in out.rglob("pretrain/log.jsonl")} == kept
    assert [job["finetune_epochs"] for job in short["jobs"] + report["jobs"]] == [1] * 3 + [3] * 3
    assert [job["knn"] for job in report["jobs"]] == [job["knn"] for job in short["jobs"]]
    for job in report["jobs"]:
        cell = job["cell"].replace("²", "")
        rows = read_log(out / "runs" / cell / "1" / "seed_0" / "finetune_3" / "log.jsonl")
        assert rows[-1]["epoch"] == 3
        assert job["training_accuracy"] == rows[-1]["accuracy"]  # the last tenth of six steps
    assert run_study("small", study, settings, out)["jobs"] == short["jobs"]  # and back


def test_fine_tuning_that_fits_too_little_is_named() -> None:
    settings = StudySettings(seeds=(0, 1), tests=("finetune",))
    job = {"share": 1.0, "steps": 10, "epochs": 1.0, "tflop": 2000.0, "seconds": 60.0, "finetune": 0.5}
    found = {"MAM²": (0.75, 0.95), "VideoMAE": (0.0, 0.0), "scratch": (None, None)}
    jobs = [
        job | {"cell": cell, "seed": seed} | ({} if value is None else {"training_accuracy": value})
        for cell, values in found.items()
        for seed, value in enumerate(values)
    ]
    lines = summarised(replace(SMALL, shares=(1.0,)), settings, jobs)
    report = {"cells": lines, "settings": {"tests": ("finetune",)}}
    assert [line[-2:] for line in table_of(report)] == [
        ["training accuracy", "paper"], ["85.0", "82.3"], ["0.0", "-"], ["-", "-"],
    ]  # fmt: skip
    assert "less than 80% of the training clips are right for VideoMAE. More" in not_fitted(report)
    assert not_fitted(report | {"cells": lines[:1]}) == ""


def test_a_run_of_another_process_is_left_to_it(small: None, videos: Path, tmp_path: Path) -> None:
    study = replace(SMALL, shares=(1.0,), cells=SMALL.cells[1:])
    taken = tmp_path / "study" / "runs" / "VideoMAE" / "1" / "seed_0"
    run_study("small", replace(study, cells=study.cells[1:]), settings_for(videos, tmp_path), tmp_path / "study")
    taken.mkdir(parents=True)
    program = "import pathlib, sys, time; from mam2.train.run import locked\n"
    program += "with locked(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program, taken], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        report = run_study("small", study, settings_for(videos, tmp_path), tmp_path / "study")
        assert [job["cell"] for job in report["jobs"]] == ["scratch"]
        other.kill()
    report = run_study("small", study, settings_for(videos, tmp_path), tmp_path / "study")
    assert [job["cell"] for job in report["jobs"]] == ["VideoMAE", "scratch"]


def test_a_cell_that_fails_leaves_the_others(small: None, videos: Path, tmp_path: Path) -> None:
    study = replace(SMALL, shares=(1.0,), cells=(SMALL.cells[1], Cell("flow", "ablation_optical_flow")))
    report = run_study("small", study, settings_for(videos, tmp_path), tmp_path / "study")
    lines = table_of(report)
    assert [line[0] for line in lines[1:]] == ["VideoMAE", "flow"]
    assert lines[2][4] == "- (1 failed)"
    assert "error" not in report["jobs"][0]
    assert report["cells"][1]["errors"] == [report["jobs"][1]["error"]]
    assert (tmp_path / "study" / "runs" / "flow" / "1" / "seed_0" / "output.txt").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": "one"}, "has one class"),
        ({"test": "other"}, "Classes of only one of .*: approach, far"),
        ({"test": "same"}, "4 videos are in both train and test"),
        ({"train": "list.csv", "test": "test.csv"}, "1 groups are in both train and test, such as anna"),
        ({"budget": "0.1 steps"}, r"budget of 0\.05 steps is less than one step"),
        ({"budget": "3 miles"}, "'3 miles' is no budget"),
        ({"seeds": ()}, "needs a seed"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    small: None, videos: Path, tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    settings = settings_for(videos, tmp_path)
    left, approach = MOTIONS[0], MOTIONS[6]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / left).symlink_to(videos / left)
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / left).symlink_to(videos / left)
    (tmp_path / "same" / approach).symlink_to(tmp_path / "test" / approach)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / left).symlink_to(tmp_path / "test" / left)
    (tmp_path / "other" / "far").symlink_to(tmp_path / "test" / approach)
    for name, root in (("list", videos), ("test", tmp_path / "test")):
        number = 0 if name == "list" else 9
        rows = [f"{root}/{motion}/{number}.mp4,{motion},anna" for motion in (left, approach)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label,group", *rows]))
    places = {k: str(tmp_path / v) if k in ("train", "test") else v for k, v in fields.items()}
    with pytest.raises(UserError, match=message):
        run_study("small", SMALL, replace(settings, **places), tmp_path / "study")
    assert not (tmp_path / "study" / "settings.json").exists()  # the same folder will do for the right words


def test_budgets_in_steps(small: None) -> None:
    sizes = {"steps_per_epoch": 50, "tflop_per_step": 0.2, "seconds_per_step": 0.5}
    for text, steps in (
        ("20 epochs", 1000),
        ("300 steps", 300),
        ("50 TFLOP", 250),
        ("10 minutes", 1200),
        ("1 epoch", 50),
    ):
        assert parse_budget(text).steps(**sizes) == steps
    assert str(parse_budget("10 tflop").share(0.5)) == "5 TFLOP"
    for text in ("0 steps", "-1 steps", "ten steps", "10", "1e999 steps x", "1.2.3 steps"):
        with pytest.raises(UserError, match="is no budget"):
            parse_budget(text)


def test_a_budget_of_operations_is_equal_for_all_methods(small: None, videos: Path, tmp_path: Path) -> None:
    settings = settings_for(videos, tmp_path, budget="0.01 TFLOP")
    data = Videos("u", "t", "e", num_unlabelled=8, num_classes=2)
    protocol = Protocol(study=SMALL, settings=settings, videos=data, out=tmp_path)
    for cell in SMALL.cells[:2]:
        config = pretraining_of(Job(cell, 1.0, 0), protocol)
        spent = cost.estimate(config).tflop * 2 * config.loop.duration.value
        assert 0.009 < spent <= 0.01


def test_pre_trained_and_random_encoders_are_probed_at_the_same_stride(
    small: None, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(jobs, "probe_encoder", lambda probe, out: seen.append(probe.stride_frames) or {"top1": 1.0})
    settings = settings_for(videos, tmp_path, stride_frames=2, tests=("ridge",))
    data = Videos("u", "t", "e", num_unlabelled=8, num_classes=2)
    protocol = Protocol(study=SMALL, settings=settings, videos=data, out=tmp_path)
    for cell in SMALL.cells:
        job = Job(cell, 1.0, 0)
        (tmp_path / "runs" / job.folder).mkdir(parents=True)
        jobs._probed(job, protocol, "scratch" if cell.scratch else "an encoder", ["ridge"])
    assert seen == [2, 2, 2]


def test_a_summary_pairs_seeds_and_states_intervals() -> None:
    settings = StudySettings(seeds=(0, 1, 2), tests=("finetune",))
    study = replace(SMALL, cells=SMALL.cells[:2], shares=(1.0,))
    values = {"MAM²": (0.5, 0.6, 0.7), "VideoMAE": (0.4, 0.55, 0.55)}
    jobs = [
        {"cell": cell, "share": 1.0, "seed": seed, "steps": 10, "epochs": 1.0, "tflop": 2000.0, "seconds": 60.0,
         "finetune": values[cell][seed]}
        for cell in values for seed in settings.seeds
    ]  # fmt: skip
    first, second = summarised(study, settings, jobs)
    assert first["finetune"]["mean"] == pytest.approx(0.6)
    assert first["finetune"]["interval"] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert first["finetune"]["difference"] is None
    differences = [-0.1, -0.05, -0.15]
    assert second["finetune"]["difference"] == pytest.approx(statistics.fmean(differences))
    assert second["finetune"]["difference_interval"] == pytest.approx(interval(differences))
    report = {"cells": [first, second], "settings": {"tests": ("finetune",)}}
    lines = table_of(report)
    assert lines[0] == ["cell", "epochs", "PFLOP", "minutes", "finetune", "finetune - MAM²", "paper"]
    assert lines[1] == ["MAM²", "1", "2", "1", "60.0 ± 24.8", "-", "82.3"]
    assert lines[2] == ["VideoMAE", "1", "2", "1", "50.0 ± 21.5", "-10.0 ± 12.4", "-"]
    assert as_markdown(lines).count("\n") == 4
    assert as_csv(lines).splitlines()[1] == "MAM²,1,2,1,60.0 ± 24.8,-,82.3"


def test_compare_makes_a_line_of_runs_that_differ_in_their_seeds(small: None, videos: Path, tmp_path: Path) -> None:
    study = replace(SMALL, shares=(1.0,))
    report = run_study("small", study, settings_for(videos, tmp_path, seeds=(0, 1)), tmp_path / "study")
    runs = [
        tmp_path / "study" / "runs" / cell / "1" / f"seed_{seed}" / "finetune_1"
        for cell in ("VideoMAE", "scratch") for seed in (0, 1)
    ]  # fmt: skip
    lines = compared(runs)
    top1 = {(job["cell"], job["seed"]): job["finetune"] for job in report["jobs"]}
    mean = {cell: statistics.fmean(top1[cell, seed] for seed in (0, 1)) for cell in ("VideoMAE", "scratch")}
    assert [line[2] for line in lines] == ["seeds", "0, 1", "0, 1"]
    assert [line[3] for line in lines[1:]] == [f"{100 * mean[cell]:.1f}" for cell in ("VideoMAE", "scratch")]
    assert lines[2][5].startswith(f"{100 * (mean['scratch'] - mean['VideoMAE']):+.1f}")
    assert [line[0] for line in lines[1:]] == ["VideoMAE/1/seed_0/finetune_1", "scratch/1/seed_0/finetune_1"]
    pretrained = [tmp_path / "study" / "runs" / "VideoMAE" / "1" / f"seed_{seed}" / "pretrain" for seed in (0, 1)]
    head, line = compared(pretrained)
    found = dict(zip(head, line, strict=True))
    assert (found["seeds"], found["steps"], found["epochs"]) == ("0, 1", "4", "1")
    assert float(found["TFLOP"]) == pytest.approx(report["cells"][1]["tflop"], rel=5e-3)
    with pytest.raises(UserError, match=r"finetune_1 \(a fine-tuning on classes\); .*pretrain \(a pre-training\)"):
        compared([runs[0], pretrained[0]])


def test_shared_frames_are_the_videos_own(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "broken.mp4").write_bytes(b"no video")
    for name in ("x", "y"):
        (tmp_path / "set" / "a" / f"{name}.mp4").symlink_to(videos / MOTIONS[0] / "0.mp4")
    listed = shared_frames(
        read_catalog(Listing(root=tmp_path / "set"), labelled=True), tmp_path / "frames", size=14, name="train"
    )  # 14 · 256 / 224 = 16
    catalog = read_catalog(Listing(root=listed), labelled=True)
    assert (len(catalog.items), catalog.classes) == (2, ("a",))
    with open_video(videos / MOTIONS[0] / "0.mp4", short_side=16) as video:
        expected = video.frames(range(video.num_frames))
    with open_video(catalog.items[0].path) as shared:
        assert torch.equal(shared.frames(range(shared.num_frames)), expected)
        assert torch.equal(torch.stack(list(shared.each())), expected)
        assert (shared.height, shared.width) == (16, 16)
    Path(catalog.items[0].path).write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="holds no frames"):
        open_video(catalog.items[0].path)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.model.startswith("ViT")])
def test_every_recipe_can_be_scaled(name: str) -> None:
    config = get_recipe(name)
    for scale in ("nano", "tiny", "small"):
        if isinstance(config, Finetune):
            tuning = scaled_finetune(config, scale)
            assert (tuning.data.flip, tuning.data.sampling) == (config.data.flip, config.data.sampling)
            assert (config.pooling, tuning.pooling) == ("all", "space")
            continue
        assert isinstance(config, Pretrain)
        small = scaled(config, scale)
        kept = ("attention", "tubelet", "positions")
        assert [getattr(small.encoder, k) for k in kept] == [getattr(config.encoder, k) for k in kept]
        assert (small.mask, type(small.objective)) == (config.mask, type(config.objective))
        assert small.data == replace(config.data, repeats=1)
        with torch.device("meta"):
            build(small)
    assert scaled(get_recipe("ablation", Pretrain), "base") == get_recipe("ablation")


def test_the_lowest_block_of_a_scaled_recipe_learns_at_as_small_a_share() -> None:
    config = scaled(get_recipe("mam2_adapt_b", Pretrain), "tiny")
    assert config.optim.layer_decay**config.encoder.depth == pytest.approx(0.75**12)


def test_scaled_rows_of_a_table_still_differ() -> None:
    """But for those whose tokenizer or stride alone differ, no two rows of Tables 1a, 1c, 2 get the same model."""
    for number in ("a", "c"):
        names = {"a": ("ablation", "ablation_depth_2_2", "ablation_depth_4_4"),
                 "c": ("ablation", "ablation_width_384", "ablation_width_512")}[number]  # fmt: skip
        sizes = set()
        for name in names:
            config = scaled(get_recipe(name, Pretrain), "tiny")
            with torch.device("meta"):
                sizes.add(sum(p.numel() for p in build(config).parameters()))
        assert len(sizes) == 3
    assert scaled(get_recipe("ablation_tube_90"), "tiny").mask == MaskConfig(ratio=0.9)
    reductions = {(cell.config("tiny").objective.motion_reduction, cell.config("tiny").targets.motion_scale)
                  for cell in STUDIES["motion"].cells[:4]}  # fmt: skip
    assert reductions == {("mean", "raw"), ("sum", "raw"), ("mean", "clip"), ("sum", "clip")}
    jepa = scaled(get_recipe("vjepa_b_k400"), "tiny")
    assert jepa.objective.momentum_rise == Steps(3750)


def test_a_run_of_another_duration_keeps_what_depends_on_it_in_proportion() -> None:
    base = scaled(get_recipe("mam2_b_k400", Pretrain), "tiny")
    ramp, length = base.objective.alignment_ramp, base.loop.duration
    assert ramp == length.times(0.5)
    short = with_duration(base, length.times(0.1))
    assert short == replace(
        base,
        objective=replace(base.objective, alignment_ramp=ramp.times(0.1)),
        loop=replace(base.loop, duration=length.times(0.1)),
    )
    assert with_duration(base, Epochs(1)).objective == base.objective  # epochs and steps have no proportion
    jepa = scaled(get_recipe("vjepa_b_k400", Pretrain), "tiny")
    assert with_duration(jepa, jepa.loop.duration.times(2)).objective.momentum_rise == Steps(7500)
    feat = get_recipe("maskfeat_b_k400", Pretrain)
    assert (
        with_duration(feat, feat.loop.duration.times(2)).objective == scaled(feat, "nano").objective == feat.objective
    )


def test_built_in_studies_name_recipes_that_are_there() -> None:
    for name, study in STUDIES.items():
        settings = StudySettings(seeds=(0,))
        for job in jobs_of(study, settings):
            assert isinstance(get_recipe(job.cell.recipe), Pretrain), name
        folders = [job.folder for job in jobs_of(study, settings)]
        assert len(set(folders)) == len(folders)
        assert isinstance(get_recipe(study.finetune), Finetune)
        parse_budget(study.budget)


@pytest.mark.parametrize("scale", ["tiny", "base"])
def test_the_study_of_rates_changes_nothing_else(scale: str) -> None:
    cells = STUDIES["rates"].cells
    for own, low, high in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        plain = own.config(scale)
        assert plain.optim.base_lr == scaled(get_recipe(own.recipe), scale).optim.base_lr
        assert (low.name, high.name) == (f"{own.name}, rate × 0.3", f"{own.name}, rate × 3")
        for cell, factor in ((low, 0.3), (high, 3.0)):
            optim = replace(plain.optim, base_lr=factor * plain.optim.base_lr)
            assert cell.config(scale) == replace(plain, optim=optim)
