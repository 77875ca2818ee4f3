"""VQGAN: official names and sizes, an independent re-computation of its codes and its pictures."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mam2.config import UserError, to_json
from mam2.files import shapes_on_meta
from mam2.targets.tokenizers.codes import likeliest_code, nearest_code, save_tokenizer
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig, gumbel_f8, load_vqgan

TINY = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=32, embed_dim=8, num_codes=23)
TINY_GUMBEL = dataclasses.replace(TINY, quantizer="gumbel")


@pytest.fixture
def tiny() -> VQGAN:
    return filled(TINY)


@pytest.fixture
def tiny_gumbel() -> VQGAN:
    return filled(TINY_GUMBEL)


def filled(config: VQGANConfig) -> VQGAN:
    generator = torch.Generator().manual_seed(0)
    model = VQGAN(config)
    for tensor in model.state_dict().values():  # also the norms, so that a norm left out would be seen
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def frames_FCHW() -> torch.Tensor:
    return torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def official_names(side: str, widths: list[int]) -> dict[str, tuple[int, ...]]:
    """The tensors of one half of an official model, written out from its published configuration."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, width_in: int, width_out: int, kernel: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width_out, width_in, kernel, kernel), (width_out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name: str, width_in: int, width_out: int) -> None:
        norm(f"{name}.norm1", width_in)
        conv(f"{name}.conv1", width_in, width_out)
        norm(f"{name}.norm2", width_out)
        conv(f"{name}.conv2", width_out, width_out)
        if width_in != width_out:
            conv(f"{name}.nin_shortcut", width_in, width_out, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    last = len(widths) - 1
    block(f"{side}.mid.block_1", 512, 512)
    attention(f"{side}.mid.attn_1", 512)
    block(f"{side}.mid.block_2", 512, 512)
    if side == "encoder":
        conv("encoder.conv_in", 3, 128)
        norm("encoder.norm_out", 512)
        conv("encoder.conv_out", 512, 256)
        width, levels, name, num_blocks, resample = 128, list(range(last + 1)), "down", 2, "downsample"
    else:
        conv("decoder.conv_in", 256, 512)
        norm("decoder.norm_out", 128)
        conv("decoder.conv_out", 128, 3)
        width, levels, name, num_blocks, resample = 512, list(range(last, -1, -1)), "up", 3, "upsample"
    for level in levels:
        for i in range(num_blocks):
            block(f"{side}.{name}.{level}.block.{i}", width, widths[level])
            width = widths[level]
            if level == last:
                attention(f"{side}.{name}.{level}.attn.{i}", width)
        if level != levels[-1]:
            conv(f"{side}.{name}.{level}.{resample}.conv", width, width)
    return shapes


def test_official_names_load_strictly() -> None:
    widths = [128, 128, 256, 256, 512]
    encoder = official_names("encoder", widths)
    assert len(encoder) == 144
    assert sum(torch.Size(shape).numel() for shape in encoder.values()) == pytest.approx(29.30e6, abs=0.005e6)
    quantiser = {
        "quant_conv.weight": (256, 256, 1, 1),
        "quant_conv.bias": (256,),
        "quantize.embedding.weight": (16384, 256),  # 4.19 M
    }
    assert shapes_on_meta(lambda: VQGAN(VQGANConfig(), with_decoder=False)) == encoder | quantiser
    decoder = official_names("decoder", widths) | {
        "post_quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }
    every = encoder | quantiser | decoder
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
        model.load_state_dict({name: torch.empty(shape) for name, shape in every.items()}, strict=True, assign=True)
    assert (model.patch_size, model.num_codes) == (16, 16384)


def test_official_gumbel_names_load_strictly() -> None:
    widths = [128, 128, 256, 512]
    every = official_names("encoder", widths) | official_names("decoder", widths)
    every |= {
        "quant_conv.weight": (256, 256, 1, 1),
        "quant_conv.bias": (256,),
        "quantize.proj.weight": (8192, 256, 1, 1),
        "quantize.proj.bias": (8192,),
        "quantize.embed.weight": (8192, 256),
        "post_quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }
    assert shapes_on_meta(lambda: VQGAN(gumbel_f8())) == every
    with torch.device("meta"):
        model = VQGAN(gumbel_f8())
        model.load_state_dict({name: torch.empty(shape) for name, shape in every.items()}, strict=True, assign=True)
    assert (model.patch_size, model.num_codes) == (8, 8192)


def recompute_z(weights: dict[str, torch.Tensor], frames_FCHW: torch.Tensor) -> torch.Tensor:
    """TINY's encoder and quant_conv by plain functions and the state dict's names, without the module."""

    def conv(name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        h = norm(f"{name}.norm1", x)
        h = conv(f"{name}.conv1", h * h.sigmoid(), padding=1)
        h = norm(f"{name}.norm2", h)
        h = conv(f"{name}.conv2", h * h.sigmoid(), padding=1)
        return h + (conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        h = norm(f"{name}.norm", x)
        q, k, v = (conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights_fij = torch.softmax(torch.einsum("fci,fcj->fij", q, k) / q.shape[1] ** 0.5, dim=2)
        return x + conv(f"{name}.proj_out", torch.einsum("fij,fcj->fci", weights_fij, v).view(x.shape))

    h = conv("encoder.conv_in", 2 * frames_FCHW - 1, padding=1)
    h = block("encoder.down.0.block.0", h)
    padded = torch.zeros(h.shape[0], h.shape[1], h.shape[2] + 1, h.shape[3] + 1)
    padded[:, :, :-1, :-1] = h
    h = conv("encoder.down.0.downsample.conv", padded, stride=2)
    h = attention("encoder.down.1.attn.0", block("encoder.down.1.block.0", h))
    h = block("encoder.mid.block_2", attention("encoder.mid.attn_1", block("encoder.mid.block_1", h)))
    h = norm("encoder.norm_out", h)
    return conv("quant_conv", conv("encoder.conv_out", h * h.sigmoid(), padding=1))


def test_codes_equal_a_plain_recomputation(tiny: VQGAN, frames_FCHW: torch.Tensor) -> None:
    z_FCHW = recompute_z(tiny.state_dict(), frames_FCHW)
    codebook_KD = tiny.state_dict()["quantize.embedding.weight"]
    expected = []
    for z_CN in z_FCHW.flatten(2):
        for z_C in z_CN.T:
            distances = [(z_C - code_C).square().sum().item() for code_C in codebook_KD]
            expected.append(distances.index(min(distances)))
    codes_FN = tiny(frames_FCHW)
    assert codes_FN.dtype == torch.int64
    assert codes_FN.flatten().tolist() == expected
    assert len(codes_FN.unique()) > 5  # else the comparison says little


def test_gumbel_codes_equal_a_plain_recomputation(tiny_gumbel: VQGAN, frames_FCHW: torch.Tensor) -> None:
    weights = tiny_gumbel.state_dict()
    z_FNC = recompute_z(weights, frames_FCHW).flatten(2).transpose(1, 2)
    logits_FNK = z_FNC @ weights["quantize.proj.weight"].squeeze().T + weights["quantize.proj.bias"]
    expected = [[logits_K.index(max(logits_K)) for logits_K in logits_NK] for logits_NK in logits_FNK.tolist()]
    codes_FN = tiny_gumbel(frames_FCHW)
    assert codes_FN.tolist() == expected
    assert len(codes_FN.unique()) > 5
    torch.manual_seed(1)
    assert torch.equal(tiny_gumbel(frames_FCHW), codes_FN)  # the original samples; a target must not change
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z_FCHW = recompute_z(weights, frames_FCHW).bfloat16()
        logits_FKHW = F.conv2d(z_FCHW, weights["quantize.proj.weight"], weights["quantize.proj.bias"])
        assert logits_FKHW.dtype == torch.bfloat16  # what likeliest_code must not do
        found_FN = likeliest_code(z_FCHW, weights["quantize.proj.weight"], weights["quantize.proj.bias"])
    bias_K11 = weights["quantize.proj.bias"][:, None, None]
    logits_FKHW = torch.einsum("fchw,kc->fkhw", z_FCHW.float(), weights["quantize.proj.weight"].squeeze()) + bias_K11
    assert torch.equal(found_FN, logits_FKHW.argmax(1).flatten(1))


def test_gumbel_pictures_follow_the_embedding(tiny_gumbel: VQGAN, frames_FCHW: torch.Tensor) -> None:
    codes_FN = tiny_gumbel(frames_FCHW)
    z_FCHW = tiny_gumbel.state_dict()["quantize.embed.weight"][codes_FN].reshape(5, 4, 6, 8).permute(0, 3, 1, 2)
    assert tiny_gumbel.decoder is not None
    assert tiny_gumbel.post_quant_conv is not None
    expected_FCHW = (tiny_gumbel.decoder(tiny_gumbel.post_quant_conv(z_FCHW)) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(tiny_gumbel.decode(codes_FN, grid=(4, 6)), expected_FCHW)


def test_decode_gives_pictures_in_range_that_follow_the_codes(tiny: VQGAN, frames_FCHW: torch.Tensor) -> None:
    codes_FN = tiny(frames_FCHW)
    shown_FCHW = tiny.decode(codes_FN, grid=(4, 6))
    assert shown_FCHW.shape == frames_FCHW.shape
    assert shown_FCHW.min() >= 0
    assert shown_FCHW.max() <= 1
    z_FCHW = tiny.state_dict()["quantize.embedding.weight"][codes_FN].reshape(5, 4, 6, 8).permute(0, 3, 1, 2)
    assert tiny.decoder is not None
    assert tiny.post_quant_conv is not None
    torch.testing.assert_close(shown_FCHW, (tiny.decoder(tiny.post_quant_conv(z_FCHW)) / 2 + 0.5).clamp(0, 1))


def test_nearest_code_is_fp32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    z_ND, codebook_KD = torch.randn(200, 16, generator=generator), torch.randn(500, 16, generator=generator)
    expected = torch.cdist(z_ND, codebook_KD).argmin(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_code(z_ND, codebook_KD), expected)


def test_each_kind_is_refused_where_the_other_is_asked_for(tiny: VQGAN, tiny_gumbel: VQGAN, tmp_path) -> None:
    save_tokenizer(tiny.state_dict(), tmp_path / "nearest.safetensors", config=TINY)
    save_tokenizer(tiny_gumbel.state_dict(), tmp_path / "gumbel.safetensors", config=TINY_GUMBEL)
    assert load_vqgan(tmp_path / "gumbel.safetensors", quantizer="gumbel").config == TINY_GUMBEL
    with pytest.raises(UserError, match=r"quantizer 'gumbel', but 'nearest' is asked for.*appearance` to vqgan_8192"):
        load_vqgan(tmp_path / "gumbel.safetensors")
    with pytest.raises(UserError, match=r"quantizer 'nearest', but 'gumbel' is asked for.*to vqgan_16384"):
        load_vqgan(tmp_path / "nearest.safetensors", quantizer="gumbel")


def test_files_without_the_quantizer_still_load(tiny: VQGAN, frames_FCHW: torch.Tensor, tmp_path) -> None:
    sizes = {name: size for name, size in to_json(TINY).items() if name != "quantizer"}
    save_file(tiny.state_dict(), tmp_path / "old", {"format": "mam2.vqgan", "config": json.dumps(sizes)})
    assert torch.equal(load_vqgan(tmp_path / "old")(frames_FCHW), tiny(frames_FCHW))
