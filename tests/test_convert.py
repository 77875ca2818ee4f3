"""The converter: a checkpoint of foreign objects goes through, nothing in it runs, the rest is refused."""

import collections
import dataclasses
import enum
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mam2.config import UserError
from mam2.inert import MAGIC_NUMBER
from mam2.targets.tokenizers.convert import convert_checkpoint
from mam2.targets.tokenizers.dalle import DALLE, DALLEConfig, load_dalle
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig, load_vqgan

TINY = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=32, embed_dim=8, num_codes=23)
TINY_GUMBEL = dataclasses.replace(TINY, quantizer="gumbel")
OLD_FORMAT = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch.save of a module, unzipped
TINY_DALLE = DALLEConfig(width=8, num_blocks=1, decoder_width=6, num_codes=29)


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


@pytest.fixture
def dall_e(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of the published name, with classes that pickle as the published ones do."""
    module = types.ModuleType("dall_e.encoder")
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    monkeypatch.setitem(sys.modules, "dall_e.encoder", module)
    for name in ("Encoder", "EncoderBlock", "Conv2d"):
        setattr(module, name, type(name, (torch.nn.Module,), {"__module__": "dall_e.encoder"}))
    return module


def published(dall_e: types.ModuleType, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Weights in a tree of modules, as DALL-E's files hold them: modules of their own and of torch, attributes."""
    root = dall_e.Encoder()
    root.device, root.n_hid, root.use_mixed_precision = torch.device("cpu"), 8, True
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = root
        for i, part in enumerate(path):
            if part not in module._modules:
                block = {"block": dall_e.EncoderBlock, "conv": dall_e.Conv2d, "input": dall_e.Conv2d}
                module.add_module(part, block.get(part.split("_")[0], torch.nn.Sequential)())
                module._modules[part].post_gain = 1 / 64
            module = module._modules[part]
            if part.startswith("group") and i == len(path) - 1:
                module.add_module("pool", torch.nn.MaxPool2d(2))
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    root.blocks.add_module("relu", torch.nn.ReLU())
    return root


def dalle_weights() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The encoder's and the decoder's tensors of a small model, under their published names."""
    torch.manual_seed(0)
    state = DALLE(TINY_DALLE).state_dict()
    halves = (
        {name.removeprefix(side): tensor for name, tensor in state.items() if name.startswith(side)}
        for side in ("encoder.", "decoder.")
    )
    return next(halves), next(halves)


def checkpoint(extra: dict | None = None, config: VQGANConfig = TINY) -> dict:
    torch.manual_seed(0)
    state = VQGAN(config).state_dict()
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
        "kind": "vqgan_16384",
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
        b"ccollections\nOrderedDict\n(N}V__setitem__\ncos\nsystem\ns\x86b(tR.",  # attributes of a class
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


def test_gumbel_round_trip(tmp_path: Path) -> None:
    content = checkpoint(config=TINY_GUMBEL)
    torch.save(content, tmp_path / "last.ckpt")
    summary = convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "gumbel.safetensors", config=TINY_GUMBEL)
    assert (summary["kind"], summary["has_decoder"], summary["num_dropped"]) == ("vqgan_8192", True, 2)
    loaded = load_vqgan(tmp_path / "gumbel.safetensors", quantizer="gumbel")
    assert loaded.config == TINY_GUMBEL
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][name])


@OLD_FORMAT
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_dalle_round_trip(tmp_path: Path, dall_e: types.ModuleType, zipped: bool, protocol: int) -> None:
    """Two pickled modules, of either age of torch.save, become one file; their classes are not needed."""
    encoder, decoder = dalle_weights()
    for side, weights in (("encoder", encoder), ("decoder", decoder)):
        torch.save(
            published(dall_e, weights),
            tmp_path / f"{side}.pkl",
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
    for name in ("dall_e", "dall_e.encoder"):
        del sys.modules[name]
    out = tmp_path / "dalle.safetensors"
    summary = convert_checkpoint(tmp_path / "encoder.pkl", out, decoder=tmp_path / "decoder.pkl", config=TINY_DALLE)
    state = load_dalle(out).state_dict()
    assert summary == {
        "file": str(out),
        "kind": "dalle",
        "num_tensors": len(state),
        "num_parameters": sum(tensor.numel() for tensor in state.values()),
        "has_decoder": True,
        "num_dropped": 0,
    }
    expected = {f"encoder.{n}": t for n, t in encoder.items()} | {f"decoder.{n}": t for n, t in decoder.items()}
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor)

    assert convert_checkpoint(tmp_path / "encoder.pkl", out, config=TINY_DALLE)["has_decoder"] is False
    assert load_dalle(out).decoder is None
    with pytest.raises(UserError, match=r"decoder\.pkl is DALL-E's decoder, not its encoder"):
        convert_checkpoint(tmp_path / "decoder.pkl", out, config=TINY_DALLE)
    with pytest.raises(UserError, match=r"encoder\.pkl is DALL-E's encoder, not its decoder"):
        convert_checkpoint(tmp_path / "encoder.pkl", out, decoder=tmp_path / "encoder.pkl", config=TINY_DALLE)
    with pytest.raises(UserError, match=r"input\.w \(8, 3, 7, 7\) instead of \(256, 3, 7, 7\)"):
        convert_checkpoint(tmp_path / "encoder.pkl", out)


def test_dalle_from_a_state_dict(tmp_path: Path) -> None:
    encoder, _ = dalle_weights()
    torch.save(encoder, tmp_path / "encoder.pt")
    convert_checkpoint(tmp_path / "encoder.pt", tmp_path / "dalle.safetensors", config=TINY_DALLE)
    loaded = load_dalle(tmp_path / "dalle.safetensors")
    assert torch.equal(loaded.state_dict()["encoder.blocks.output.conv.w"], encoder["blocks.output.conv.w"])


def test_sizes_and_decoders_of_another_kind_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    torch.save(checkpoint(), tmp_path / "last.ckpt")
    torch.save(checkpoint(config=TINY_GUMBEL), tmp_path / "gumbel.ckpt")
    torch.save(dalle_weights()[0], tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match="with the quantizer 'nearest'"):
        convert_checkpoint(tmp_path / "last.ckpt", out, config=TINY_GUMBEL)
    with pytest.raises(UserError, match="with the quantizer 'gumbel'"):
        convert_checkpoint(tmp_path / "gumbel.ckpt", out, config=TINY)
    with pytest.raises(UserError, match="those of a VQGAN"):
        convert_checkpoint(tmp_path / "encoder.pkl", out, config=TINY)
    with pytest.raises(UserError, match=r"Leave .* out"):
        convert_checkpoint(tmp_path / "last.ckpt", out, decoder=tmp_path / "encoder.pkl", config=TINY)
    with pytest.raises(UserError, match="is a VQGAN, not DALL-E's decoder"):
        convert_checkpoint(tmp_path / "encoder.pkl", out, decoder=tmp_path / "last.ckpt", config=TINY_DALLE)
    with pytest.raises(UserError, match="instead of"):  # a small one is not the official one
        convert_checkpoint(tmp_path / "gumbel.ckpt", out)
    state = checkpoint(config=TINY_GUMBEL)["state_dict"]
    state["quantize.embed.weight"] = torch.zeros(24, 8)
    torch.save(state, tmp_path / "gumbel.ckpt")
    with pytest.raises(UserError, match=r"1 of another shape: quantize\.embed\.weight \(24, 8\) instead of \(23, 8\)"):
        convert_checkpoint(tmp_path / "gumbel.ckpt", out, config=TINY_GUMBEL)
    assert not out.exists()


def test_unknown_tokenizers_are_refused(tmp_path: Path) -> None:
    for content, says in (
        (torch.nn.Linear(2, 2), r"2 tensors, such as 'weight', 'bias': none of the official"),
        ({"state_dict": {}}, "no tensors"),
        ([1], "'list', neither a state dict nor a module"),
        ({"state_dict": [1]}, "'list', neither"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match=says):
            convert_checkpoint(tmp_path / "other.pt", tmp_path / "out.safetensors")


class Part:
    """Pickles as a torch module does, with whatever it is given."""

    def __init__(self, modules: dict, parameters: dict) -> None:
        self._modules, self._parameters = modules, parameters


def test_hostile_modules_are_refused(tmp_path: Path) -> None:
    """A module that holds itself, or holds two of which each holds the next twice, would take for ever to walk."""
    loop = Part({}, {})
    loop._modules["blocks"] = loop
    doubling = Part({}, {"w": torch.zeros(1)})
    for _ in range(60):
        doubling = Part({"a": doubling, "b": doubling}, {})
    deep = Part({}, {"w": torch.zeros(1)})
    for _ in range(100):
        deep = Part({"a": deep}, {})
    for hostile in (loop, doubling, deep):
        torch.save(hostile, tmp_path / "encoder.pkl")
        with pytest.raises(UserError, match="twice, or lies too deep"):
            convert_checkpoint(tmp_path / "encoder.pkl", tmp_path / "out.safetensors")

    torch.save(Part([1], {1: torch.zeros(1), "w": "text"}), tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match="no tensors"):
        convert_checkpoint(tmp_path / "encoder.pkl", tmp_path / "out.safetensors")


@OLD_FORMAT
@pytest.mark.parametrize("zipped", [True, False])
def test_a_bomb_in_a_module_does_not_go_off(tmp_path: Path, dall_e: types.ModuleType, zipped: bool) -> None:
    canary = tmp_path / "canary"
    module = published(dall_e, dalle_weights()[0])
    module.hook = Bomb(canary)
    torch.save(module, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zipped)
    convert_checkpoint(tmp_path / "encoder.pkl", tmp_path / "dalle.safetensors", config=TINY_DALLE)
    module.blocks.input._parameters["b"] = Bomb(canary)
    torch.save(module, tmp_path / "encoder.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"1 missing: encoder\.blocks\.input\.b"):
        convert_checkpoint(tmp_path / "encoder.pkl", tmp_path / "dalle.safetensors", config=TINY_DALLE)
    assert not canary.exists()


def test_wrong_shapes_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    content = checkpoint()
    content["state_dict"]["quant_conv.bias"] = torch.zeros(9)
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"quant_conv\.bias \(9,\) instead of \(8,\)"):
        convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out.safetensors", config=TINY)
    with pytest.raises(UserError, match="missing"):  # a small model is not the official one
        convert_checkpoint(tmp_path / "last.ckpt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def refused(data: bytes | Path, folder: Path, says: str) -> None:
    """The bytes, as a file or as the pickle in an archive, are refused in the words of `says`."""
    file = folder / "hostile.ckpt"
    if isinstance(data, bytes):
        file.write_bytes(data)
    with pytest.raises(UserError, match=says):
        convert_checkpoint(file, folder / "out.safetensors", config=TINY)
    assert not (folder / "out.safetensors").exists()


def archive_of(pickled: bytes, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
    return file


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        convert_checkpoint(tmp_path / "none.ckpt", tmp_path / "out.safetensors")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match=r"not one written by torch\.save"):
        convert_checkpoint(tmp_path / "photos.zip", tmp_path / "out.safetensors")
    with zipfile.ZipFile(tmp_path / "hostile.ckpt", "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10_000_000))  # 10 kB that would unfold
    refused(tmp_path, tmp_path, "compressed archive")
    refused(archive_of(pickle.dumps(7), tmp_path / "hostile.ckpt"), tmp_path, "'int', neither")
    for text in (b"<html>404</html>", b"\x80\x02", b"K\x07.", b"I1\n.I2\n.", pickle.dumps({"state_dict": {}})):
        refused(text, tmp_path, "cannot be read as a checkpoint")
    refused(b"", tmp_path, "is empty")


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(checkpoint(), tmp_path / "whole.ckpt", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "whole.ckpt").read_bytes()
        for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.9999):
            refused(whole[: int(share * len(whole))], tmp_path, "Download it again")


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02K\x01r\xff\xff\xff\xff.",  # LONG_BINPUT: a memo of 2^32 entries, 64 GB in CPython's unpickler
        b"I1\np4294967295\n.",  # PUT
        b"\x80\x04\x8d" + struct.pack("<q", 1 << 40) + b"x.",  # a string of a TB
        b"\x80\x05\x96" + struct.pack("<q", 1 << 40) + b"x.",  # a bytearray of a TB, zeroed before it is read
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02(((((",  # no end
        b"\x80\x02}K\x01" + b"\x85" * 1_000_000 + b"K\x01s.",  # a key of nested tuples: its hash takes all the stack
        b"\x80\x02}K\x01" + b"\x85q\x01h\x01" * 100_000 + b"0K\x01s.",
        b"\x80\x02)q\x00" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)) + b"0}h\x3cK\x01s.",
    ],
)
def test_pickles_that_would_take_memory_are_refused(tmp_path: Path, code: bytes) -> None:
    refused(
        archive_of(code, tmp_path / "hostile.ckpt"), tmp_path, "cannot be read as a checkpoint|neither a state dict"
    )
    legacy = pickle.dumps(MAGIC_NUMBER, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + code
    refused(legacy, tmp_path, "cannot be read as a checkpoint|neither a state dict")


def lying(size: object, stride: object, offset: object, numel: int = 9, kind: str = "FloatStorage") -> bytes:
    """A pickled state dict whose quantize.embedding.weight says these things of 9 numbers."""

    class Storage:
        def __reduce__(self) -> tuple:
            raise AssertionError

    class Tensor:
        def __reduce__(self) -> tuple:
            return rebuild, (Storage(), offset, size, stride)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", getattr(torch, kind), "0", "cpu", numel) if isinstance(obj, Storage) else None

    rebuild = torch._utils._rebuild_tensor_v2
    stream = types.SimpleNamespace(data=b"")
    stream.write = lambda data: setattr(stream, "data", stream.data + data)
    Pickler(stream, 2).dump({"blocks.input.w": Tensor()})
    return stream.data


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lying((8, 3, 7, 7), (147, 49, 7, 1), 0), "not 9 numbers|out of bounds"),
        (lying((8, 3, 7, 7), (0, 0, 0, 0), 0, numel=1 << 40), "not 1099511627776 numbers"),
        (lying((8, 3, 7, 7), (0, 0, 0, 0), -1), "cannot be read"),
        (lying((8, 3, 7, 7), (0, 0, 0, 0), 9), "out of bounds"),
        (lying((8, 3, 7, 7), (1 << 62, 1 << 62, 1 << 62, 1), 0), "cannot be read"),
        (lying((8, 3, 7, 7), "abcd", 0), "cannot be read"),
        (lying(5, (1,), 0), "cannot be read"),
        (lying((1 << 40, 3, 7, 7), (0, 0, 0, 0), 0), "of another shape"),
        (lying((8, 3, 7, 7), (0, 0, 0, 0), 0, kind="LongStorage"), "not floating point"),
    ],
)
def test_lying_tensors_are_refused(tmp_path: Path, lie: bytes, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"encoder.blocks.input.w": (8, 3, 7, 7)}
    monkeypatch.setattr("mam2.targets.tokenizers.convert.shapes_on_meta", lambda make: only)
    with zipfile.ZipFile(tmp_path / "lie.pt", "w") as archive:
        archive.writestr("x/data.pkl", lie)
        archive.writestr("x/data/0", bytes(4 * 9 if b"Float" in lie else 8 * 9))
    with pytest.raises(UserError, match=says):
        convert_checkpoint(tmp_path / "lie.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_lying_storages_of_the_old_format_are_refused(tmp_path: Path) -> None:
    torch.save(dalle_weights()[0], tmp_path / "encoder.pkl", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "encoder.pkl").read_bytes()
    count = struct.pack("<q", 29)  # the output's bias: its length before its numbers
    assert whole.count(count) == 1
    for other in (28, 1 << 50, -1):
        (tmp_path / "encoder.pkl").write_bytes(whole.replace(count, struct.pack("<q", other)))
        with pytest.raises(UserError, match="has not the 29 numbers"):
            convert_checkpoint(tmp_path / "encoder.pkl", tmp_path / "out.safetensors", config=TINY_DALLE)
    (tmp_path / "encoder.pkl").write_bytes(whole)
    convert_checkpoint(tmp_path / "encoder.pkl", tmp_path / "out.safetensors", config=TINY_DALLE)


def test_old_checkpoints_convert(tmp_path: Path) -> None:
    content = checkpoint()
    torch.save(content, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    convert_checkpoint(tmp_path / "legacy.ckpt", tmp_path / "out.safetensors", config=TINY)
    for name, tensor in load_vqgan(tmp_path / "out.safetensors").state_dict().items():
        assert torch.equal(tensor, content["state_dict"][name])
