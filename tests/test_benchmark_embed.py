"""The embedding benchmark: both sides get the same frames, and its JSON is complete."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import write_video

from mam2.data.clips import Data
from mam2.data.video.open import open_video
from mam2.data.windows import Length, frames_of, windows_of


@pytest.fixture(scope="module")
def bench() -> types.ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "embed.py"
    spec = importlib.util.spec_from_file_location("benchmarks_embed", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_both_get_the_same_frames(bench: types.ModuleType, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", num_frames=48)
    span = Length(16, "frames")
    with open_video(path) as video:
        ours = [
            video.frames(frames_of(first, last, num_frames=4, data=Data())).permute(0, 2, 3, 1).numpy()
            for first, last, *_ in windows_of(video, window=span, hop=span)
        ]
    theirs = [np.stack(frames) for frames in bench.windows(str(path), num_frames=4)]
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_result_is_complete(bench: types.ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "deep" / "embed.json"
    words = ["--model", "tiny", "--num-videos", "1", "--seconds", "1", "--rounds", "1", "--num-workers", "0"]
    returned = bench.main([*words, "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(returned))
    assert list(returned["rates"]) == [bench.OURS, bench.OURS_FP32, bench.THEIRS, bench.THEIRS_VIDEO, bench.THEIRS_BF16]
    for row in returned["rates"].values():
        assert row["windows_per_wall_second"] > 0
        assert row["windows_per_core_second"] > 0
    assert returned["rates"][bench.OURS]["mam2_over_it_core"] == 1
    assert returned["machine"]["cores"]
