"""Parts of somebody's own package, named `package.module:name`, in a run from its start to its pictures."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import TINY_ENCODER
from torch import Tensor

from mam2.config import UserError, from_json, load_plug_in, to_json
from mam2.masks import MaskConfig
from mam2.model.importers import import_encoder
from mam2.objectives.mae import MAEConfig
from mam2.recipes import get_recipe
from mam2.targets.table import Appearance, TargetsConfig
from mam2.train.pretrain import Pretrain

PARTS = '''
from dataclasses import dataclass, replace

import torch

from mam2.config import Epochs, Steps
from mam2.masks import MaskConfig
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.objectives.mae import MAE, MAEConfig
from mam2.patches import patchify
from mam2.recipes import get_recipe
from mam2.targets.table import Appearance, TargetsConfig


def left_half(num_frames, grid, num_masked, generator):
    """The first patches of a frame."""
    return (torch.arange(grid[0] * grid[1]) < num_masked).expand(num_frames, -1)


def _brightness(clip_BTUCHW, patch_size):
    return patchify(clip_BTUCHW[:, :, 0], patch_size).mean(dim=-1, keepdim=True)


values = (_brightness, lambda patch_size, tubelet: 1)
brightness = Appearance("mean of a patch", 224, "[0, 1]", 0, 0, "none", None, values)


@dataclass(frozen=True, kw_only=True)
class Doubled(MAEConfig):
    """A masked autoencoder whose loss counts twice."""

    factor: float = 2.0

    def build(self, encoder, sizes, *, steps_per_epoch=1):
        return DoubledMAE(self, encoder, sizes)


class DoubledMAE(MAE):
    def forward(self, clip_BTCHW, mask, targets, step):
        losses = super().forward(clip_BTCHW, mask, targets, step)
        return replace(losses, total=self.config.factor * losses.total)


def recipe():
    """Brightness of the left half, twice."""
    return replace(
        get_recipe("mam2_tiny"),
        objective=Doubled(width=8, depth=1, num_heads=2),
        mask=MaskConfig(kind="lab_of_mine.parts:left_half", ratio=0.5),
        targets=TargetsConfig(appearance="lab_of_mine.parts:brightness"),
    )


def load(file):
    torch.manual_seed(int(file))
    return VideoEncoder(EncoderConfig(width=8, depth=1, num_heads=2, frames=4, size=16, patch_size=8))


number = 3
'''
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on Python's path; it is forgotten afterwards."""
    folder = tmp_path / "elsewhere" / "lab_of_mine"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.fixture(autouse=True)
def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith("lab_of_mine")]:
        del sys.modules[name]


def test_a_run_of_own_parts(package: Path, run: Run, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sizes = (*TINY_ENCODER, "--data.stride-frames", 1, "--data.num-workers", 0, "--loop.batch-size", 4)
    command = ("pretrain", "lab_of_mine.parts:recipe", "--data.root", videos, "--out", out, *sizes)
    assert run(*command, "--loop.duration", "2 steps", "--objective.factor", 3.0)[0] == 0
    written = json.loads((out / "run.json").read_text())["config"]
    assert written["objective"]["is"] == "lab_of_mine.parts:Doubled"
    assert written["objective"]["factor"] == 3.0
    assert written["mask"]["kind"] == "lab_of_mine.parts:left_half"
    assert written["targets"]["appearance"] == "lab_of_mine.parts:brightness"
    config = from_json(Pretrain, written)
    assert to_json(config) == written
    drawn = config.mask(2, (2, 4), sample_B=torch.tensor([0]), seed=0)
    assert drawn.masked_BTM[0, 0].tolist() == [0, 1, 2, 3]
    assert run(*command, "--loop.duration", "3 steps", "--objective.factor", 3.0)[0] == 0  # it resumes
    assert run("show", out, videos / "left" / "0.mp4", "--out", tmp_path / "a.png")[0] == 0
    assert run("cost", "lab_of_mine.parts:recipe", "--videos", 10)[0] == 0
    # Where the package is missing, its name is shown.
    sys.path.remove(str(package.parent))
    _drop()
    status, _, err = run("show", out, videos / "left" / "0.mp4", "--out", tmp_path / "b.png")
    assert status == 2
    assert "needs the package lab_of_mine, which Python does not find" in err
    sys.path.insert(0, str(package.parent))


def _drop() -> None:
    for name in [name for name in sys.modules if name.startswith("lab_of_mine")]:
        del sys.modules[name]
    sys.path_importer_cache.clear()


def test_an_importer_of_ones_own(package: Path, run: Run, tmp_path: Path) -> None:
    encoder = import_encoder("lab_of_mine.parts:load", file="7").encoder
    torch.manual_seed(7)
    assert encoder.config.width == 8
    file = tmp_path / "e.safetensors"
    assert run("import", "lab_of_mine.parts:load", "--file", 7, "--out", file)[0] == 0
    assert isinstance(encoder.patch_embed.weight, Tensor)
    loaded = import_encoder(str(file)).encoder
    assert torch.equal(loaded.patch_embed.weight, encoder.patch_embed.weight)


def test_what_a_name_must_be(package: Path, run: Run) -> None:
    assert load_plug_in("lab_of_mine.parts:number", int) == 3
    for name, words in {
        "lab_of_mine.parts:absent": "The module lab_of_mine.parts has no absent",
        "lab_of_mine.nowhere:recipe": r"needs the package lab_of_mine\.nowhere, which Python does not find",
        "nobody.parts:recipe": r"needs the package nobody, which Python does not find\. Install it",
        "lab_of_mine.parts:number": "is int; accepted: function",
        "lab_of_mine.parts:left_half": None,
    }.items():
        if words is None:
            with pytest.raises(TypeError):  # its own error comes through
                get_recipe(name)
        else:
            with pytest.raises(UserError, match=words):
                get_recipe(name)
    with pytest.raises(UserError, match="is int; accepted: Appearance"):
        TargetsConfig(appearance="lab_of_mine.parts:number")
    with pytest.raises(UserError, match="is int; accepted: function"):
        MaskConfig(kind="lab_of_mine.parts:number")
    with pytest.raises(UserError, match="accepted: Motion"):
        TargetsConfig(motion="lab_of_mine.parts:brightness")
    (package / "more.py").write_text("from lab_of_mine.parts import load\ndef make():\n    return load(1)\n")
    with pytest.raises(UserError, match="returns VideoEncoder; accepted: Pretrain, Finetune"):
        get_recipe("lab_of_mine.more:make")
    (package / "needs.py").write_text("import absent_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="absent_dependency"):
        load_plug_in("lab_of_mine.needs:x", object)


def test_names_of_this_package_stay_as_they_are() -> None:
    config = Pretrain(objective=MAEConfig())
    assert to_json(config)["objective"]["is"] == "MAEConfig"
    assert isinstance(Appearance, type)
