"""The converter: a checkpoint of foreign objects goes through, nothing in it runs, the rest is refused."""

import collections
import dataclasses
import enum
import os
import pathlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mam2.config import UserError
from mam2.targets.convert import convert_checkpoint
from mam2.targets.vqgan import VQGAN, VQGANConfig, load_vqgan

TINY = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=32, embed_dim=8, num_codes=23)


class Mode(enum.Enum):
    MIN = "min"


@dataclasses.dataclass
class Callback:
    """Stands for a training library's object, with the ways of pickling such files use."""

    mode: Mode
    best: np.ndarray
    folder: Path


class Container(list):
    """A list with attributes, as configuration libraries have."""


class Bomb:
    """Runs a shell command when it is unpickled in the usual way."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def checkpoint(extra: dict | None = None) -> dict:
    torch.manual_seed(0)
    state = VQGAN(TINY).state_dict()
    state["loss.discriminator.weight"] = torch.zeros(3)
    state["loss.logvar"] = torch.nn.Parameter(torch.zeros(()))
    container = Container([1, 2])
    container.note = "kept"
    return {
        "epoch": 3,
        "state_dict": state,
        "callbacks": {
            Callback: Callback(Mode.MIN, np.arange(3.0), pathlib.PurePosixPath("/a")),
            "score": np.float64(0.5),
            "default": collections.defaultdict(list, a=[1]),
            "set": {1, 2},
            "container": container,
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4, dtype=torch.int64)}}}],
        **(extra or {}),
    }


def test_round_trip_past_foreign_objects(tmp_path: Path) -> None:
    content = checkpoint()
    torch.save(content, tmp_path / "last.ckpt")
    summary = convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out" / "vqgan.safetensors", config=TINY)
    names = [name for name in content["state_dict"] if not name.startswith("loss.")]
    assert summary == {
        "file": str(tmp_path / "out" / "vqgan.safetensors"),
        "num_tensors": len(names),
        "num_parameters": sum(content["state_dict"][name].numel() for name in names),
        "has_decoder": True,
        "num_dropped": 2,
    }
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["vqgan.safetensors"]
    loaded = load_vqgan(tmp_path / "out" / "vqgan.safetensors").state_dict()
    assert sorted(loaded) == sorted(names)
    for name in names:
        assert torch.equal(loaded[name], content["state_dict"][name])


def test_views_half_precision_and_a_bare_state_dict(tmp_path: Path) -> None:
    """Tensors that share a storage, transposed or shifted, and fp16 ones come out as plain fp32."""
    state = {n: t for n, t in checkpoint()["state_dict"].items() if not n.startswith(("decoder.", "post_quant"))}
    shared = torch.randn(TINY.embed_dim + 1, TINY.num_codes)
    state["quantize.embedding.weight"] = shared[1:].T
    state["quant_conv.bias"] = shared[1:, 0]
    state["encoder.conv_in.bias"] = state["encoder.conv_in.bias"].half()
    torch.save(state, tmp_path / "state.pt")
    summary = convert_checkpoint(tmp_path / "state.pt", tmp_path / "vqgan.safetensors", config=TINY)
    assert summary["has_decoder"] is False
    loaded = load_vqgan(tmp_path / "vqgan.safetensors").state_dict()
    assert torch.equal(loaded["quantize.embedding.weight"], shared[1:].T)
    assert torch.equal(loaded["quant_conv.bias"], shared[1:, 0])
    assert loaded["encoder.conv_in.bias"].dtype == torch.float32
    assert torch.equal(loaded["encoder.conv_in.bias"], state["encoder.conv_in.bias"].float())


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_bomb_does_not_go_off(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    torch.save(checkpoint({"hyper_parameters": Bomb(canary)}), tmp_path / "bomb.ckpt", pickle_protocol=protocol)
    convert_checkpoint(tmp_path / "bomb.ckpt", tmp_path / "vqgan.safetensors", config=TINY)
    assert not canary.exists()
    load_vqgan(tmp_path / "vqgan.safetensors")

    torch.load(tmp_path / "bomb.ckpt", weights_only=False)
    assert canary.exists()  # the bomb is a real one


def test_a_bomb_in_place_of_a_tensor_is_refused(tmp_path: Path) -> None:
    content = checkpoint()
    content["state_dict"]["quant_conv.bias"] = Bomb(tmp_path / "canary")
    torch.save(content, tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match=r"missing: quant_conv\.bias"):
        convert_checkpoint(tmp_path / "bomb.ckpt", tmp_path / "vqgan.safetensors", config=TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bomb.ckpt"]


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(Vopen({path!r}, 'w')\ntR.",  # REDUCE
        b"(Vopen({path!r}, 'w')\nibuiltins\neval\n.",  # INST
        b"(cbuiltins\neval\nVopen({path!r}, 'w')\no.",  # OBJ
        b"cbuiltins\ngetattr\n(cos\nsystem\nV__call__\ntR(Vtouch {path}\ntR.",  # an attribute of a function
        b"ccollections\nOrderedDict\n)R}(V__class__\ncos\nsystem\nub.",  # BUILD
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}Vx\ncos\nsystem\ns\x86b.",  # attributes on a stand-in
        b"cos\nsystem\nVtouch {path}\n\x85\x81.",  # NEWOBJ
        b"Vtouch {path}\nQ.",  # a persistent id that is no storage
    ],
)
def test_hand_written_pickles_run_nothing(tmp_path: Path, code: bytes) -> None:
    canary = tmp_path / "canary"
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr(
            "x/data.pkl",
            code.decode("latin1").format(path=str(canary)).encode("latin1") if b"{path" in code else code,
        )
    with pytest.raises(UserError):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out.safetensors", config=TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.ckpt"]


def test_tensors_that_point_outside_their_storage_are_refused(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "last.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "last.ckpt") as source,
        zipfile.ZipFile(tmp_path / "cut.ckpt", "w") as target,
    ):
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:-4] if name.endswith("data/0") else data)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        convert_checkpoint(tmp_path / "cut.ckpt", tmp_path / "out.safetensors", config=TINY)


def test_other_tokenizers_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"quantize.embed.weight": torch.zeros(2, 2)}}, tmp_path / "gumbel.ckpt")
    with pytest.raises(UserError, match=r"Gumbel.*not supported"):
        convert_checkpoint(tmp_path / "gumbel.ckpt", tmp_path / "out.safetensors")
    torch.save({"blocks.input.w": torch.zeros(2, 2)}, tmp_path / "dalle.pt")
    with pytest.raises(UserError, match=r"DALL-E.*not supported"):
        convert_checkpoint(tmp_path / "dalle.pt", tmp_path / "out.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear, not a state dict"):
        convert_checkpoint(tmp_path / "module.pt", tmp_path / "out.safetensors")


def test_wrong_shapes_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    content = checkpoint()
    content["state_dict"]["quant_conv.bias"] = torch.zeros(9)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"quant_conv\.bias \(9,\) instead of \(8,\)"):
        convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out.safetensors", config=TINY)
    with pytest.raises(UserError, match="missing"):  # a small model is not the official one
        convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        convert_checkpoint(tmp_path / "none.ckpt", tmp_path / "out.safetensors")
    torch.save(checkpoint(), tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="re-save"):
        convert_checkpoint(tmp_path / "legacy.ckpt", tmp_path / "out.safetensors")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match=r"not one written by torch\.save"):
        convert_checkpoint(tmp_path / "photos.zip", tmp_path / "out.safetensors")
    with zipfile.ZipFile(tmp_path / "number.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(7))
    with pytest.raises(UserError, match="int, not a state dict"):
        convert_checkpoint(tmp_path / "number.ckpt", tmp_path / "out.safetensors")
