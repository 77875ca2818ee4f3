"""All appearance tokenizers alike: frozen, the same codes in chunks, their input checked, their files."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mam2.config import UserError, to_json
from mam2.targets.tokenizers import codes
from mam2.targets.tokenizers.codes import save_tokenizer
from mam2.targets.tokenizers.dalle import DALLE, DALLEConfig, load_dalle
from mam2.targets.tokenizers.random_projection import RandomProjection
from mam2.targets.tokenizers.vq import VQ, VQConfig, load_vq
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig, load_vqgan

VQGAN_SIZES = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=32, embed_dim=8, num_codes=23)


@dataclass
class Kind:
    """A tokenizer: small sizes, its class and loader, and words of its messages."""

    config: Any
    make: Callable[..., Any]
    load: Callable[..., Any]
    bias: str  # a tensor of the encoder
    missing: tuple[str, ...]


KINDS = {
    "vqgan": Kind(
        VQGAN_SIZES,
        VQGAN,
        load_vqgan,
        "encoder.conv_in.bias",
        (
            *("taming-transformers", "VQGAN ImageNet (f=16), 16384", "mam2_tiny", "mam2_b_k400_rp"),
            *("mam2 tokenizer convert last.ckpt --out vqgan_f16_16384.safetensors", "--targets.file"),
        ),
    ),
    "gumbel": Kind(
        dataclasses.replace(VQGAN_SIZES, quantizer="gumbel"),
        VQGAN,
        lambda file: load_vqgan(file, quantizer="gumbel"),
        "encoder.conv_in.bias",
        ("VQGAN OpenImages (f=8), 8192, GumbelQuantization", "--out vqgan_gumbel_f8.safetensors", "--targets.file"),
    ),
    "dalle": Kind(
        DALLEConfig(width=8, num_blocks=1, decoder_width=6, num_codes=29),
        DALLE,
        load_dalle,
        "encoder.blocks.input.b",
        ("openai/DALL-E", "convert encoder.pkl --decoder decoder.pkl --out dalle", "--targets.file", "mam2_tiny"),
    ),
    "vq": Kind(
        VQConfig(patch_size=4, num_codes=32, code_dim=8, width=48),
        VQ,
        load_vq,
        "encoder.0.bias",
        ("mam2 tokenizer train", "--targets.file"),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def filled(kind: Kind) -> Any:
    """A tokenizer of random weights, of whose codes several occur."""
    generator = torch.Generator().manual_seed(0)
    model = kind.make(kind.config)
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        if name.endswith(".w"):
            tensor -= tensor.mean((1, 2, 3), keepdim=True)  # or one code of DALL-E would win everywhere
    return model


def frames_of(model: Any) -> tuple[torch.Tensor, tuple[int, int]]:
    """Five frames of 2 × 3 patches and the grid of their codes."""
    size = model.patch_size
    return torch.rand(5, 3, 2 * size, 3 * size, generator=torch.Generator().manual_seed(1)), (2, 3)


def test_chunks_do_not_change_codes(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(kind)
    frames_FCHW, grid = frames_of(model)
    codes_FN = model(frames_FCHW)
    shown_FCHW = model.decode(codes_FN, grid=grid)
    assert len(codes_FN.unique()) > 2
    monkeypatch.setattr(codes, "FRAMES_AT_ONCE", 2)
    assert torch.equal(model(frames_FCHW), codes_FN)
    torch.testing.assert_close(model.decode(codes_FN, grid=grid), shown_FCHW, atol=1e-5, rtol=1e-5)


def test_frozen(kind: Kind) -> None:
    model = filled(kind)
    frames_FCHW, grid = frames_of(model)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.decode(model(frames_FCHW.requires_grad_()), grid=grid).requires_grad


@pytest.mark.parametrize("name", [*KINDS, "random_projection"])
def test_wrong_frames_are_refused(name: str) -> None:
    model = filled(KINDS[name]) if name in KINDS else RandomProjection(patch_size=4)
    size = model.patch_size
    for frames, says in (
        (torch.rand(1, 3, size, size + 1), f"multiples of {size}"),
        (torch.rand(1, 1, size, size), rf"\(1, 1, {size}, {size}\)"),
        (torch.zeros(1, 3, size, size, dtype=torch.uint8), "Divide uint8"),
    ):
        with pytest.raises(UserError, match=says):
            model(frames)


def test_save_and_load_are_equal(kind: Kind, tmp_path: Path) -> None:
    model = filled(kind)
    frames_FCHW, grid = frames_of(model)
    file = tmp_path / "folder" / "tokenizer.safetensors"
    save_tokenizer(model.state_dict(), file, config=kind.config)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no draft is left
    loaded = kind.load(file)
    assert (loaded.config, loaded.training) == (kind.config, False)
    assert not any(p.requires_grad for p in loaded.parameters())
    codes_FN = model(frames_FCHW)
    assert torch.equal(loaded(frames_FCHW), codes_FN)
    torch.testing.assert_close(loaded.decode(codes_FN, grid=grid), model.decode(codes_FN, grid=grid))


def test_a_loaded_one_has_channels_last(tmp_path: Path) -> None:
    save_tokenizer(filled(KINDS["vqgan"]).state_dict(), tmp_path / "vqgan.safetensors", config=VQGAN_SIZES)
    loaded = load_vqgan(tmp_path / "vqgan.safetensors")
    assert loaded.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    shown = []
    loaded.encoder.conv_out.register_forward_hook(lambda module, inputs, output: shown.append(output))
    loaded(frames_of(loaded)[0])
    assert shown[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "says"), [("vqgan", "no decoder"), ("dalle", r"--decoder decoder\.pkl")])
def test_without_decoder(name: str, says: str, tmp_path: Path) -> None:
    model = filled(KINDS[name])
    frames_FCHW, grid = frames_of(model)
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith(("decoder.", "post_quant_conv."))}
    save_tokenizer(tensors, tmp_path / "half.safetensors", config=model.config)
    loaded = KINDS[name].load(tmp_path / "half.safetensors")
    assert torch.equal(loaded(frames_FCHW), model(frames_FCHW))
    with pytest.raises(UserError, match=says):
        loaded.decode(loaded(frames_FCHW), grid=grid)


def test_missing_file_says_what_to_do(kind: Kind, tmp_path: Path) -> None:
    for file in (tmp_path / "none.safetensors", ""):
        with pytest.raises(UserError) as error:
            kind.load(file)
        assert [words for words in kind.missing if words not in str(error.value)] == []


def test_wrong_files_are_refused(kind: Kind, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"mam2 tokenizer convert last\.ckpt"):
        kind.load(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").rename(tmp_path / "renamed.safetensors")
    with pytest.raises(UserError, match="Convert it"):
        kind.load(tmp_path / "renamed.safetensors")
    (tmp_path / "noise").write_bytes(b"not a tensor file at all")
    with pytest.raises(UserError, match="no safetensors file"):
        kind.load(tmp_path / "noise")
    save_file({"a": torch.zeros(1)}, tmp_path / "other", {"format": "pt", "config": "{}"})
    with pytest.raises(UserError, match=f"accepted: '{kind.config.FORMAT}'"):
        kind.load(tmp_path / "other")
    wrong = json.dumps({"num_code": 1})
    save_file({"a": torch.zeros(1)}, tmp_path / "field", {"format": kind.config.FORMAT, "config": wrong})
    with pytest.raises(UserError, match="Did you mean num_codes"):
        kind.load(tmp_path / "field")

    tensors = dict(filled(kind).state_dict())
    shape = tuple(tensors[kind.bias].shape)
    tensors["encoder.extra"] = torch.zeros(1)
    tensors[kind.bias] = torch.zeros(9)
    save_tokenizer(tensors, tmp_path / "wrong.safetensors", config=kind.config)
    with pytest.raises(UserError) as error:
        kind.load(tmp_path / "wrong.safetensors")
    assert "1 unexpected: encoder.extra" in str(error.value)
    assert f"1 of another shape: {kind.bias} (9,) instead of {shape}" in str(error.value)
    del tensors[kind.bias]
    save_tokenizer(tensors, tmp_path / "wrong.safetensors", config=kind.config)
    with pytest.raises(UserError, match=f"1 missing: {kind.bias}"):
        kind.load(tmp_path / "wrong.safetensors")


@pytest.mark.parametrize("name", ["vqgan", "dalle", "vq"])
def test_the_format_of_files_does_not_change(name: str, tmp_path: Path) -> None:
    """A file written by hand as files have always been: a format, the configuration as JSON, the tensors by name."""
    model = filled(KINDS[name])
    metadata = {"format": f"mam2.{name}", "config": json.dumps(to_json(model.config))}
    save_file(model.state_dict(), tmp_path / "old.safetensors", metadata)
    loaded = KINDS[name].load(tmp_path / "old.safetensors").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())
