"""The official VQGANs: ImageNet f16 with 16384 codes (Sec. 2.2, App. D), OpenImages f8 with 8192 (Table 1e).

Modules are named as in the official checkpoint, so that its tensors load unrenamed.

F frames, C channels, H W pixels, N patches per frame (row by row), D width, K codes, P patch side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from mam2.config import UserError, check
from mam2.targets.tokenizers.codes import FrameTokenizer, in_chunks, likeliest_code, load_tokenizer, nearest_code

Quantizer = Literal["nearest", "gumbel"]
OFFICIAL: dict[Quantizer, tuple[str, str, str]] = {
    "nearest": ("VQGAN ImageNet (f=16), 16384", "vqgan_16384", "vqgan_f16_16384.safetensors"),
    "gumbel": ("VQGAN OpenImages (f=8), 8192, GumbelQuantization", "vqgan_8192", "vqgan_gumbel_f8.safetensors"),
}
"""Title of the official checkpoint, name as an appearance target, usual name of the converted file."""


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """The sizes of a VQGAN; the defaults are the ImageNet f16 model with 16384 codes.

    The patch side is 2^(levels - 1). Every width must be a multiple of 32, because of the group norm.

    Attributes:
        quantizer: choice of a code: "nearest", the codebook's nearest vector; "gumbel", the greatest of K logits that
            a 1×1 convolution gives.
    """

    FORMAT: ClassVar[str] = "mam2.vqgan"

    ch: Annotated[int, Ge(1), Le(65536)] = 128
    ch_mult: tuple[Annotated[int, Ge(1), Le(64)], ...] = (1, 1, 2, 2, 4)
    num_res_blocks: Annotated[int, Ge(1), Le(1024)] = 2
    z_channels: Annotated[int, Ge(1), Le(65536)] = 256
    embed_dim: Annotated[int, Ge(1), Le(65536)] = 256
    num_codes: Annotated[int, Ge(1), Le(2**24)] = 16384
    quantizer: Quantizer = "nearest"

    def __post_init__(self) -> None:
        check(self, "tokenizer.")
        if self.ch % 32 or not 1 <= len(self.ch_mult) <= 8:
            raise UserError(f"ch is {self.ch}, a multiple of 32 is accepted; ch_mult has 1 to 8 levels.")

    @property
    def patch_size(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


def gumbel_f8() -> VQGANConfig:
    """The sizes of the OpenImages f8 model with 8192 codes; frames of 112² give it 14×14 patches (Table 1e)."""
    return VQGANConfig(ch_mult=(1, 1, 2, 4), num_codes=8192, quantizer="gumbel")


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResBlock(nn.Module):
    """Two 3×3 convolutions, each after norm and swish; a 1×1 shortcut where the width changes."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = group_norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x_FCHW: Tensor) -> Tensor:
        h_FCHW = self.conv1(F.silu(self.norm1(x_FCHW)))
        h_FCHW = self.conv2(F.silu(self.norm2(h_FCHW)))
        return h_FCHW + (x_FCHW if self.nin_shortcut is None else self.nin_shortcut(x_FCHW))


class Attention(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x_FCHW: Tensor) -> Tensor:
        h_FCHW = self.norm(x_FCHW)
        q_FND, k_FND, v_FND = (conv(h_FCHW).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        out_FND = F.scaled_dot_product_attention(q_FND[:, None], k_FND[:, None], v_FND[:, None])[:, 0]
        return x_FCHW + self.proj_out(out_FND.transpose(1, 2).reshape(x_FCHW.shape))


class Resample(nn.Module):
    """Half the size (`down`): a 3×3 convolution of stride 2, padded right and below. Or twice the size."""

    def __init__(self, width: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(width, width, 3, stride=2) if down else nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x_FCHW, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x_FCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, each with attention behind it if `attend`; the way to the next."""

    def __init__(self, width_in: int, width_out: int, num_blocks: int, *, attend: bool, resample: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(width_out if i else width_in, width_out) for i in range(num_blocks))
        self.attn = nn.ModuleList(Attention(width_out) if attend else nn.Identity() for _ in range(num_blocks))
        self.downsample = Resample(width_out, down=True) if resample == "down" else None
        self.upsample = Resample(width_out, down=False) if resample == "up" else None

    def forward(self, h_FCHW: Tensor) -> Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            h_FCHW = attention(block(h_FCHW))
        resample = self.downsample or self.upsample
        return resample(h_FCHW) if resample else h_FCHW


class Middle(nn.Module):
    """The blocks of the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResBlock(width, width)

    def forward(self, h_FCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h_FCHW)))


class VQGANEncoder(nn.Module):
    """RGB in [-1, 1] -> z_channels maps, 2^(levels - 1) times smaller."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[i - 1] if i else config.ch,
                widths[i],
                config.num_res_blocks,
                attend=i == last,
                resample="down" if i < last else "none",
            )
            for i in range(last + 1)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x_FCHW: Tensor) -> Tensor:
        h_FCHW = self.conv_in(x_FCHW)
        for level in self.down:
            h_FCHW = level(h_FCHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(h_FCHW))))


class VQGANDecoder(nn.Module):
    """The encoder backwards, with one block more per level. `up` counts from full size: it runs in reverse."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, last)],
                widths[i],
                config.num_res_blocks + 1,
                attend=i == last,
                resample="up" if i else "none",
            )
            for i in range(last + 1)
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_FCHW: Tensor) -> Tensor:
        h_FCHW = self.mid(self.conv_in(z_FCHW))
        for level in reversed(self.up):
            h_FCHW = level(h_FCHW)
        return self.conv_out(F.silu(self.norm_out(h_FCHW)))


class VQGAN(FrameTokenizer):
    """A frozen VQGAN tokenizer, in eval mode (Sec. 2.2, App. D); only pictures need its decoder."""

    def __init__(self, config: VQGANConfig, with_decoder: bool = True) -> None:
        super().__init__(patch_size=config.patch_size, num_codes=config.num_codes)
        self.config = config
        self.encoder = VQGANEncoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        codebook = nn.Embedding(config.num_codes, config.embed_dim)
        if config.quantizer == "gumbel":
            logits = nn.Conv2d(config.embed_dim, config.num_codes, 1)
            self.quantize = nn.ModuleDict({"proj": logits, "embed": codebook})
        else:
            self.quantize = nn.ModuleDict({"embedding": codebook})
        self.decoder = VQGANDecoder(config) if with_decoder else None
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1) if with_decoder else None
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, codes_FN: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Codes (F, N) on a grid -> frames (F, 3, rows·P, columns·P) in [0, 1]; UserError without a decoder."""
        if self.decoder is None or self.post_quant_conv is None:
            raise UserError(
                "This VQGAN has no decoder, so its codes cannot be drawn. "
                "Convert a checkpoint that holds decoder.* and post_quant_conv.*, as the official one does."
            )
        decoder = nn.Sequential(self.post_quant_conv, self.decoder)

        def decode(codes_FN: Tensor) -> Tensor:
            z_FND = self._codebook_KD[codes_FN]
            return decoder(z_FND.transpose(1, 2).unflatten(2, grid)).float()

        return ((in_chunks(decode, codes_FN) + 1) / 2).clamp(0, 1)

    @property
    def _codebook_KD(self) -> Tensor:
        gumbel = self.config.quantizer == "gumbel"
        return self.quantize.get_parameter("embed.weight" if gumbel else "embedding.weight")

    def encode(self, frames_FCHW: Tensor) -> Tensor:
        z_FCHW = self.quant_conv(self.encoder(frames_FCHW * 2 - 1))
        if self.config.quantizer == "gumbel":
            # The original samples with Gumbel noise even in eval mode; a target must be the same every time.
            proj = self.quantize["proj"]
            return likeliest_code(z_FCHW, proj.get_parameter("weight"), proj.get_parameter("bias"))
        return nearest_code(z_FCHW.flatten(2).transpose(1, 2), self._codebook_KD)


def load_vqgan(file: Path | str, *, quantizer: Quantizer = "nearest") -> VQGAN:
    """Loads a VQGAN that `mam2 tokenizer convert` wrote.

    UserError for one with another quantizer; other errors are those of `load_tokenizer`.
    """
    title, _, usual_name = OFFICIAL[quantizer]
    if_missing = (
        f"There is no VQGAN file {str(file)!r}. Download last.ckpt of '{title}' "
        "from https://github.com/CompVis/taming-transformers (model zoo), run "
        f"`mam2 tokenizer convert last.ckpt --out {usual_name}`, and name the result with "
        "`--targets.file`. mam2_tiny, mam2_b_k400_rp and mam2_lite_* need no file."
    )
    vqgan = load_tokenizer(file, VQGAN, VQGANConfig, if_missing=if_missing)
    config = vqgan.config
    if config.quantizer != quantizer:
        raise UserError(
            f"{file} holds a VQGAN of {config.num_codes} codes with the quantizer {config.quantizer!r}, but "
            f"{quantizer!r} is asked for. Name a file of '{title}', or set `--targets.appearance` to "
            f"{OFFICIAL[config.quantizer][1]}."
        )
    return vqgan
