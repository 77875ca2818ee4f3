"""The DALL-E dVAE with 8192 codes of 8×8 pixels, with the official weights (Table 1e).

Modules are named as in the official encoder.pkl and decoder.pkl, under `encoder.` and `decoder.`: these two
prefixes keep both in one file, and are the only renaming. Frames of 112² give 14×14 patches.

F frames, C channels, H W pixels, N patches per frame (row by row), D width, K codes, P patch side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from mam2.config import UserError, check
from mam2.targets.tokenizers.codes import FrameTokenizer, in_chunks, likeliest_code, load_tokenizer

MULTIPLES = (1, 2, 4, 8)  # widths of the four groups, in multiples of `width`
EPS = 0.1  # pixels are kept this far from 0 and 1, as its logit-Laplace likelihood wants


@dataclass(frozen=True, kw_only=True)
class DALLEConfig:
    """The sizes of a DALL-E dVAE; the defaults are the official model's.

    Attributes:
        width: width of the first group; the others are 2, 4 and 8 times as wide.
        num_blocks: residual blocks in each of the four groups.
        decoder_width: width of the decoder's input.
    """

    FORMAT: ClassVar[str] = "mam2.dalle"

    width: Annotated[int, Ge(1), Le(65536)] = 256
    num_blocks: Annotated[int, Ge(1), Le(1024)] = 2
    decoder_width: Annotated[int, Ge(1), Le(65536)] = 128
    num_codes: Annotated[int, Ge(1), Le(2**24)] = 8192

    def __post_init__(self) -> None:
        check(self, "tokenizer.")

    @property
    def patch_size(self) -> int:
        return 2 ** (len(MULTIPLES) - 1)


class NamedConv(nn.Module):
    """A convolution that keeps the size, with the official parameters' names."""

    def __init__(self, width_in: int, width_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(width_out, width_in, kernel, kernel) / (width_in * kernel**2) ** 0.5)
        self.b = nn.Parameter(torch.zeros(width_out))

    def forward(self, x_FCHW: Tensor) -> Tensor:
        return F.conv2d(x_FCHW, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Four convolutions, each after a ReLU, through a quarter of the width; added with a small gain."""

    def __init__(self, width_in: int, width_out: int, *, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        widths = [width_in, *[width_out // 4] * (len(kernels) - 1), width_out]
        convs = {f"conv_{i + 1}": NamedConv(widths[i], widths[i + 1], kernel) for i, kernel in enumerate(kernels)}
        self.res_path = nn.ModuleDict(convs)
        self.id_path = NamedConv(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x_FCHW: Tensor) -> Tensor:
        h_FCHW = x_FCHW
        for conv in self.res_path.values():
            h_FCHW = conv(F.relu(h_FCHW))
        return self.id_path(x_FCHW) + self.gain * h_FCHW


class DalleStack(nn.Module):
    """The encoder or the decoder: `blocks` holds the input, four groups of blocks, and the output.

    `forward` runs the groups alone, as both halves have an end of their own: logits to choose a code from, or
    codes to look up. Between groups the encoder halves the size by max-pooling; the decoder doubles it.
    """

    def __init__(self, config: DALLEConfig, *, decoder: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.num_blocks = config.num_blocks
        widths = [config.width * multiple for multiple in MULTIPLES]
        gain = (len(MULTIPLES) * config.num_blocks) ** -2
        if decoder:
            widths.reverse()
            first = NamedConv(config.num_codes, config.decoder_width, 1)
            last = NamedConv(widths[-1], 6, 1)
        else:
            first = NamedConv(3, widths[0], 7)
            last = NamedConv(widths[-1], config.num_codes, 1)
        kernels = (1, 3, 3, 3) if decoder else (3, 3, 3, 1)
        self.blocks = nn.ModuleDict({"input": first})
        width_in = first.w.shape[0]
        for group, width in enumerate(widths, start=1):
            blocks = {}
            for i in range(1, config.num_blocks + 1):
                blocks[f"block_{i}"] = Block(width_in, width, kernels=kernels, gain=gain)
                width_in = width
            self.blocks[f"group_{group}"] = nn.ModuleDict(blocks)
        self.blocks["output"] = nn.ModuleDict({"conv": last})

    def forward(self, h_FCHW: Tensor) -> Tensor:
        for group in range(1, len(MULTIPLES) + 1):
            if group > 1 and self.decoder:
                h_FCHW = F.interpolate(h_FCHW, scale_factor=2.0, mode="nearest")
            elif group > 1:
                h_FCHW = F.max_pool2d(h_FCHW, 2)
            for i in range(1, self.num_blocks + 1):
                h_FCHW = self.blocks.get_submodule(f"group_{group}.block_{i}")(h_FCHW)
        return F.relu(h_FCHW)


class DALLE(FrameTokenizer):
    """A frozen DALL-E tokenizer, in eval mode (Table 1e); only pictures need its decoder."""

    def __init__(self, config: DALLEConfig, with_decoder: bool = True) -> None:
        super().__init__(patch_size=config.patch_size, num_codes=config.num_codes)
        self.config = config
        self.encoder = DalleStack(config, decoder=False)
        self.decoder = DalleStack(config, decoder=True) if with_decoder else None
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, codes_FN: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Codes (F, N) on a grid -> frames (F, 3, rows·P, columns·P) in [0, 1]; UserError without a decoder."""
        if self.decoder is None:
            raise UserError(
                "This DALL-E tokenizer has no decoder, so its codes cannot be drawn. "
                "Convert encoder.pkl again, with `--decoder decoder.pkl`."
            )
        decoder = self.decoder
        first = decoder.blocks["input"]
        last = decoder.blocks.get_submodule("output.conv")
        weight_KD = first.get_parameter("w").flatten(1).T  # a 1×1 convolution of one-hot codes picks its columns

        def decode(codes_FN: Tensor) -> Tensor:
            z_FND = weight_KD[codes_FN] + first.get_parameter("b")
            out_FCHW = last(decoder(z_FND.transpose(1, 2).unflatten(2, grid)))
            return out_FCHW[:, :3].float().sigmoid()  # the other three channels are scales

        return ((in_chunks(decode, codes_FN) - EPS) / (1 - 2 * EPS)).clamp(0, 1)

    def encode(self, frames_FCHW: Tensor) -> Tensor:
        x_FCHW = (1 - 2 * EPS) * frames_FCHW + EPS
        h_FCHW = self.encoder(self.encoder.blocks["input"](x_FCHW))
        last = self.encoder.blocks.get_submodule("output.conv")
        return likeliest_code(h_FCHW, last.get_parameter("w"), last.get_parameter("b"))


def load_dalle(file: Path | str) -> DALLE:
    """Loads a DALL-E tokenizer that `mam2 tokenizer convert` wrote; errors are those of `load_tokenizer`."""
    if_missing = (
        f"There is no DALL-E file {str(file)!r}. Download encoder.pkl and, to draw codes, decoder.pkl, both named "
        "in the notebook of https://github.com/openai/DALL-E, run "
        "`mam2 tokenizer convert encoder.pkl --decoder decoder.pkl --out dalle.safetensors`, and name the result "
        "with `--targets.file`. mam2_tiny, mam2_b_k400_rp and mam2_lite_* need no file."
    )
    return load_tokenizer(file, DALLE, DALLEConfig, if_missing=if_missing)
