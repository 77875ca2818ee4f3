"""A small VQ tokenizer, trained on one's own video.

It is used as a VQGAN is (`mam2.targets.tokenizers.vqgan`): frames in [0, 1] -> one code per patch. Its codes say less
than the paper's, but a first run, a test or an unusual domain can do without the official weights.

F frames, C channels, H W pixels, N patches (a frame's, row by row, or all), D width, K codes, P patch side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from mam2.config import UserError, check
from mam2.patches import patchify, to_float, unpatchify
from mam2.targets.tokenizers.codes import FrameTokenizer, check_frames, load_tokenizer, nearest_code

LEARNING_RATE = 1e-3  # of Adam: constant for the first half of training, then linear to zero


def code_usage(codes: Tensor, *, num_codes: int) -> dict[str, float]:
    """Use of the codebook by codes of any shape.

    Returns:
        `usage`: share of the K codes that occur; `perplexity`: e to the entropy of their frequencies, from 1 (one code
        only) to K (all equally often).
    """
    share_K = torch.bincount(codes.flatten(), minlength=num_codes).double() / codes.numel()
    return {
        "usage": (share_K > 0).double().mean().item(),
        "perplexity": torch.special.entr(share_K).sum().exp().item(),
    }


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """The sizes of a VQ model of patches; `code_dim` is a code's width, `width` that of the hidden layers."""

    FORMAT: ClassVar[str] = "mam2.vq"

    patch_size: Annotated[int, Ge(1), Le(1024)] = 16
    num_codes: Annotated[int, Ge(1), Le(2**24)] = 1024
    code_dim: Annotated[int, Ge(1), Le(65536)] = 32
    width: Annotated[int, Ge(1), Le(65536)] = 256

    def __post_init__(self) -> None:
        check(self, "tokenizer.")


class VQ(FrameTokenizer):
    """A frozen quantised autoencoder of single patches: MLP, nearest code by cosine, MLP; trained by `train_vq`."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__(patch_size=config.patch_size, num_codes=config.num_codes)
        self.config = config
        self.encoder = patch_mlp(3 * config.patch_size**2, config.width, config.code_dim)
        self.decoder = patch_mlp(config.code_dim, config.width, 3 * config.patch_size**2)
        self.codebook_KD: Tensor
        self.register_buffer("codebook_KD", torch.zeros(config.num_codes, config.code_dim))
        self.eval().requires_grad_(False)

    def encode(self, frames_FCHW: Tensor) -> Tensor:
        return self.encode_patches(patchify(frames_FCHW, self.patch_size))

    @torch.no_grad()
    def decode(self, codes_FN: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Codes (F, N) on a grid of (rows, columns) -> frames (F, 3, rows·P, columns·P) in [0, 1]."""
        return unpatchify(self.decode_patches(codes_FN).clamp(0, 1), self.patch_size, grid)

    def encode_patches(self, patches_ND: Tensor) -> Tensor:
        """Patches (..., 3·P·P) in [0, 1] -> codes (...)."""
        with torch.autocast(patches_ND.device.type, enabled=False):
            z_ND = self.encoder(scale(patches_ND.float()))
        return nearest_code(F.normalize(z_ND, dim=-1), self.codebook_KD)

    def decode_patches(self, codes_N: Tensor) -> Tensor:
        """Codes (...) -> patches (..., 3·P·P), not clamped."""
        with torch.autocast(codes_N.device.type, enabled=False):
            return unscale(self.decoder(self.codebook_KD[codes_N]))


def patch_mlp(width_in: int, width: int, width_out: int) -> nn.Sequential:
    """Two hidden layers of one width."""
    return nn.Sequential(
        nn.Linear(width_in, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width_out)
    )


def scale(patches_ND: Tensor) -> Tensor:
    """[0, 1] to about unit variance, so that reconstruction weighs as much as commitment to a code."""
    return (patches_ND - 0.5) * 4


def unscale(patches_ND: Tensor) -> Tensor:
    """The inverse of `scale`."""
    return patches_ND / 4 + 0.5


def train_vq(
    batches: Iterable[Tensor],
    config: VQConfig,
    *,
    num_steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[VQ, dict[str, float]]:
    """Trains a VQ tokenizer on frames; the same for the same batches and seed.

    Args:
        batches: frames (F, 3, H, W), uint8 or floats in [0, 1]; gone through again when they end.
        num_steps: optimiser steps, one batch each; the first takes as many as the codebook's start needs.
        seed: seed of the weights and of the codes' starting places.
        device: device to train on; the tokenizer stays there.

    Returns:
        The frozen tokenizer, and a report on its last batches: `mse` of pixels in [0, 1], `mse_of_mean` (with the
        mean patch as prediction), `usage`, `perplexity`.

    Raises:
        UserError: no batches, too few, or frames of a wrong shape; no steps.
    """
    from vector_quantize_pytorch import VectorQuantize  # which takes seconds

    if num_steps < 1:
        raise UserError(f"num_steps is {num_steps}; a VQ tokenizer takes at least 1, and some hundreds to be of use.")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        vq = VQ(config).to(device).requires_grad_(True)
        patches = patch_batches(batches, config, device)
        first_ND = next(patches)
        dead_below = 0.1 * len(first_ND) / config.num_codes
        while len(first_ND) < 4 * config.num_codes:
            first_ND = torch.cat([first_ND, next(patches)])
        quantizer = VectorQuantize(
            dim=config.code_dim,
            codebook_size=config.num_codes,
            decay=0.9,
            kmeans_init=True,
            use_cosine_sim=True,  # pictures as good as by squared distance, codes steadier under noise
            threshold_ema_dead_code=dead_below,  # without it 8 codes of 1024 were left after 200 steps
            sync_codebook=False,
        ).to(device)
        optimizer = torch.optim.Adam(vq.parameters(), lr=LEARNING_RATE)
        recent: deque[Tensor] = deque(maxlen=16)
        for step in range(num_steps):
            patches_ND = first_ND if step == 0 else next(patches)
            z_ND, _, commitment = quantizer(vq.encoder(scale(patches_ND)))
            loss = F.mse_loss(vq.decoder(z_ND), scale(patches_ND)) + commitment
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, 2 * (num_steps - step) / num_steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recent.append(patches_ND)
    with torch.no_grad():
        vq.codebook_KD.copy_(quantizer.codebook)
    vq.eval().requires_grad_(False)
    return vq, report(vq, torch.cat(list(recent)))


def patch_batches(batches: Iterable[Tensor], config: VQConfig, device: torch.device) -> Iterator[Tensor]:
    """The patches (N, 3·P·P) of one batch of frames after another, for ever."""
    while True:
        empty = True
        for frames_FCHW in batches:
            empty = empty and frames_FCHW.numel() == 0
            frames_FCHW = to_float(frames_FCHW.to(device))
            check_frames(frames_FCHW, patch_size=config.patch_size)
            yield patchify(frames_FCHW, config.patch_size).flatten(0, 1)
        if empty:
            raise UserError(
                "The frames to train the VQ tokenizer on ended too early, or there are none. "
                "Give a list or a loader, which can be gone through again, or ask for fewer steps."
            )


@torch.no_grad()
def report(vq: VQ, patches_ND: Tensor) -> dict[str, float]:
    """`mse`, `mse_of_mean`, `usage` and `perplexity` of a VQ tokenizer on patches."""
    codes_N = torch.cat([vq.encode_patches(part) for part in patches_ND.split(4096)])
    shown_ND = torch.cat([vq.decode_patches(part) for part in codes_N.split(4096)]).clamp(0, 1)
    return {
        "mse": F.mse_loss(shown_ND, patches_ND).item(),
        "mse_of_mean": patches_ND.var(0, unbiased=False).mean().item(),
        **code_usage(codes_N, num_codes=vq.num_codes),
    }


def load_vq(file: Path | str) -> VQ:
    """Loads a VQ tokenizer that `mam2 tokenizer train` wrote; errors are those of `load_tokenizer`."""
    if_missing = (
        f"There is no VQ tokenizer {str(file)!r}. Train one on your own video with "
        "`mam2 tokenizer train`, and name it with `--targets.file`."
    )
    return load_tokenizer(file, lambda config, decoder: VQ(config), VQConfig, if_missing=if_missing)
