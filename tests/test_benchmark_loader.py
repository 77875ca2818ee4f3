"""The loader benchmark: its rivals make the clips that ours makes, and its JSON is complete."""

import importlib.util
import json
import random
import shlex
import sys
import types
from pathlib import Path

import pytest
import torch

from mam2.data.clips import train_clips
from mam2.data.shape import ClipShape
from mam2.recipes.pretrain import mam2_b_k400


@pytest.fixture(scope="module")
def bench() -> types.ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "loader.py"
    spec = importlib.util.spec_from_file_location("benchmarks_loader", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(bench: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one short video."""
    folder = tmp_path_factory.mktemp("loader")
    bench.write_h264(folder / "0.mp4", bench.filmed(40, seed=0))
    return folder


def test_written_videos_are_as_described(bench: types.ModuleType, folder: Path) -> None:
    about = bench.about(str(folder / "0.mp4"))
    kbit = about.pop("kbit_per_second")
    assert about == {"codec": "h264", "width": 340, "height": 256, "frames": 40, "key_frames": 1, "fps": 30.0}
    assert 200 < kbit < 1500  # so short a video is not yet at its rate


@pytest.mark.parametrize("seed", range(3))
def test_crops_are_ours(bench: types.ModuleType, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """The same random numbers give the box that `multi_scale_crop` takes."""
    from mam2.data import transforms

    taken = []
    monkeypatch.setattr(transforms, "resized_crop", lambda clip, *box: taken.append(box[:4]) or clip)
    transforms.multi_scale_crop(torch.zeros(1, 3, 256, 340), size=bench.SIZE, rng=random.Random(seed))
    assert taken == [bench.crop_box(256, 340, random.Random(seed))]


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_rivals_make_the_same_clips(bench: types.ModuleType, folder: Path, name: str) -> None:
    video, data = str(folder / "0.mp4"), mam2_b_k400().data
    try:
        if name == "torchcodec":
            makers = [bench.torchcodec_clips([video], data, seek_mode=mode) for mode in ("exact", "approximate")]
        else:
            makers = [bench.decord_clips([video], data, floats=False)]
    except (ImportError, OSError, RuntimeError):
        pytest.skip(f"{name} can't be loaded")
    for make in makers:
        for seed in range(2):
            ours = train_clips(video, data, ClipShape(16, bench.SIZE), rng=random.Random(seed)).clips[0]
            theirs = make(0, random.Random(seed))
            assert theirs.dtype == torch.uint8
            assert theirs.shape == ours.shape
            assert (theirs.float() - ours.float()).abs().mean() < 1.5  # rounding of colours and of the resize


def test_runs_and_writes_all(bench: types.ModuleType, folder: Path, tmp_path: Path) -> None:
    out, threads = tmp_path / "new" / "loader.json", torch.get_num_threads()
    arguments = ["--videos", str(folder), "--rounds", "2", "--clips", "1", "--memory-clips", "9", "--out", str(out)]
    returned = bench.main(arguments)
    result = json.loads(out.read_text())
    assert result == json.loads(json.dumps(returned))
    assert shlex.split(result["command"]) == ["python", "benchmarks/loader.py", *arguments]
    assert torch.get_num_threads() == threads

    rows = {(row["pipeline"], row["source"]): row for row in result["rates"]}
    ours = {(p, s) for p in (bench.PRETRAIN, bench.FINETUNE) for s in (bench.LATER, bench.FIRST, bench.FRAMES)}
    ours |= {(bench.TEST, bench.FIRST), (bench.TEST, bench.FRAMES)}
    rivals = {name for pipeline, name in set(rows) - ours if pipeline == bench.PRETRAIN}
    assert ours <= set(rows)
    assert len(rivals) + len(result["left_out"]) == 4  # each of them is measured, or named with a reason
    assert rivals.isdisjoint(result["left_out"])
    assert all(result["left_out"].values())
    assert {key[0]: row["clips_per_video"] for key, row in rows.items()} == {
        "pre-training": 1,
        "fine-tuning": 2,
        "test": 15,
    }
    for (pipeline, _), row in rows.items():
        reference = rows[pipeline, row["reference"]]
        ratios = sorted(a / b for a, b in zip(reference["rounds"], row["rounds"], strict=True))
        assert row["reference_over_it"]["min"] == pytest.approx(ratios[0])
        assert row["reference_over_it"]["max"] == pytest.approx(ratios[1])
        assert 0 < row["clips_per_core_second"]["min"] <= row["clips_per_core_second"]["max"]

    for memory in result["worker_memory"].values():
        assert memory["clips"] in (8, 16)  # the worker may end before the last batch is looked at
        assert memory["growth_mib"] == pytest.approx(memory["late_mib"] - memory["early_mib"])
        assert min(memory["mib"]) > 50
    assert {"torch", "torchvision", "av", "pillow"} <= set(result["machine"]["versions"])
    assert result["frame_folder_bytes_over_video"] > 1


@pytest.mark.parametrize(("option", "value"), [("--rounds", "0"), ("--seconds", "0.2")])
def test_refuses_nonsense(bench: types.ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit):
        bench.main([option, value])
    assert f"{option} is {value}" in capsys.readouterr().err
