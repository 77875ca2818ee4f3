"""Shared parts of all appearance tokenizers: frames checked and encoded in chunks, the search for codes, files.

F frames, C channels, H W pixels, N vectors, D width, K codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.config import UserError, to_json
from mam2.files import check_finite, check_tensors, config_of, read_tensors, shapes_of, write_tensors

FRAMES_AT_ONCE = 8  # encoded or decoded in one call, to bound memory


class TokenizerConfig(Protocol):
    """Configuration of a tokenizer: a dataclass that names the format of its files."""

    FORMAT: ClassVar[str]


TokenizerConfigT = TypeVar("TokenizerConfigT", bound=TokenizerConfig)


class FrameTokenizer(nn.Module):
    """A frozen tokenizer: frames in [0, 1], of any size in whole patches -> codes (F, N), int64, row by row.

    `tokenizer(frames_FCHW)` raises UserError for frames of another shape or type.
    """

    def __init__(self, *, patch_size: int, num_codes: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_codes = num_codes

    @torch.no_grad()
    def forward(self, frames_FCHW: Tensor) -> Tensor:
        check_frames(frames_FCHW, patch_size=self.patch_size)
        return in_chunks(self.encode, frames_FCHW)

    def encode(self, frames_FCHW: Tensor) -> Tensor:
        """Codes (F, N) of a few frames."""
        raise NotImplementedError


TokenizerT = TypeVar("TokenizerT", bound=FrameTokenizer)


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Computes `function(x)` for a few rows of x at a time."""
    return torch.cat([function(part) for part in x.split(FRAMES_AT_ONCE)])


def check_frames(frames_FCHW: Tensor, *, patch_size: int) -> None:
    """Raises UserError unless the frames are RGB, floating point and cut into whole patches."""
    shape = tuple(frames_FCHW.shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] % patch_size or shape[3] % patch_size:
        raise UserError(
            f"The tokenizer was given frames of shape {shape}; it takes (F, 3, H, W), "
            f"H and W multiples of {patch_size}. Resize or crop the frames."
        )
    if not frames_FCHW.is_floating_point():
        raise UserError(
            f"The tokenizer was given {frames_FCHW.dtype} frames; it takes floating point in [0, 1]. "
            "Divide uint8 frames by 255."
        )


def nearest_code(z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index of the nearest code by squared distance, for (..., D) vectors; int64, computed in fp32.

    |z - e|² = |z|² - 2 z·e + |e|², and |z|² is the same for every code: one matrix product is enough.
    """
    # bf16 can't tell thousands of codes apart
    with torch.autocast(z_ND.device.type, enabled=False):
        codebook_KD = codebook_KD.float()
        norms_K = codebook_KD.square().sum(-1)
        return (norms_K - 2 * z_ND.float() @ codebook_KD.T).argmin(-1)


def likeliest_code(z_FCHW: Tensor, weight_KD11: Tensor, bias_K: Tensor) -> Tensor:
    """Index of the greatest of K logits, a 1×1 convolution of the features, in fp32: int64 (F, H·W), row by row."""
    with torch.autocast(z_FCHW.device.type, enabled=False):
        logits_FKHW = F.conv2d(z_FCHW.float(), weight_KD11.float(), bias_K.float())
        return logits_FKHW.argmax(1).flatten(1)


def save_tokenizer(tensors: Mapping[str, Tensor], file: Path | str, *, config: TokenizerConfig) -> None:
    """Writes a tokenizer's tensors and configuration as safetensors, whole or not at all."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_tensors(Path(file), tensors, {"format": config.FORMAT, "config": json.dumps(to_json(config))})


def load_tokenizer(
    file: Path | str,
    make: Callable[[TokenizerConfigT, bool], TokenizerT],
    config_type: type[TokenizerConfigT],
    *,
    if_missing: str,
) -> TokenizerT:
    """Loads a tokenizer that `save_tokenizer` wrote, frozen and in eval mode, with its decoder if the file holds one.

    Args:
        file: the safetensors file.
        make: the tokenizer of a configuration, with the decoder or without; called on the meta device.
        config_type: class of the configuration, whose FORMAT the file must have.
        if_missing: message of the error for a missing file.

    Raises:
        UserError: no such file, a file as it was published, one of another format, or tensors that do not fit.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(if_missing)
    with file.open("rb") as handle:
        start = handle.read(2)
    if start in (b"PK", b"\x80\x02") or file.suffix in (".ckpt", ".pkl"):
        raise UserError(
            f"{file} is a checkpoint as it was published. Convert it once: "
            f"`mam2 tokenizer convert {file.name} --out {file.stem}.safetensors`, and name the result."
        )
    found, metadata = read_tensors(file)
    if metadata.get("format") != config_type.FORMAT:
        raise UserError(
            f"{file} is of format {metadata.get('format')!r}; accepted: {config_type.FORMAT!r}. Give another file, or "
            "the --targets.appearance that it belongs to."
        )
    config = config_of(metadata, config_type, file=file)
    check_finite(found, file=file)
    tensors = {name: tensor.float() for name, tensor in found.items()}
    with torch.device("meta"):  # nothing is initialised in vain
        model = make(config, any(name.startswith("decoder.") for name in tensors))
    check_tensors(tensors, shapes_of(model), where=f"{file} does not hold the tensors of this tokenizer")
    model.load_state_dict(tensors, assign=True)
    # Channels last is what GPUs take for convolutions in bf16; on a CPU it is no slower, and the codes the same.
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
