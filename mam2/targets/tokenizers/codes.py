"""What all appearance tokenizers share: the check of their input, the nearest code, their files.

Shape letters: F frames, C channels, H W pixels, N vectors, D width, K codes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mam2.config import UserError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


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
    """The index of the nearest code by squared distance, for (..., D) vectors; int64, computed in fp32.

    |z - e|² = |z|² - 2 z·e + |e|², and |z|² is the same for every code: one matrix product is enough.
    Autocast is off, because bf16 cannot tell thousands of codes apart.
    """
    with torch.autocast(z_ND.device.type, enabled=False):
        codebook_KD = codebook_KD.float()
        norms_K = codebook_KD.square().sum(-1)
        return (norms_K - 2 * z_ND.float() @ codebook_KD.T).argmin(-1)


def likeliest_code(z_FCHW: Tensor, weight_KD11: Tensor, bias_K: Tensor) -> Tensor:
    """The index of the greatest of K logits, a 1×1 convolution of the features, at each place; in fp32.

    Returns:
        int64 (F, H·W), row by row.
    """
    with torch.autocast(z_FCHW.device.type, enabled=False):
        logits_FKHW = F.conv2d(z_FCHW.float(), weight_KD11.float(), bias_K.float())
        return logits_FKHW.argmax(1).flatten(1)


def check_tensors(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises UserError, naming the first few, unless two sets of tensors have the same names and shapes."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    mis_shaped = [
        f"{name} {tuple(found[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mis_shaped),
        )
        if names
    ]
    if problems:
        raise UserError(f"{where} does not hold the tensors of this tokenizer. {'; '.join(problems)}.")


def save_tokenizer(tensors: Mapping[str, Tensor], file: Path | str, *, metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft, metadata)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def check_converted(file: Path | str) -> None:
    """Raises UserError if a file is a checkpoint as it was published, which `mam2 tokenizer convert` must read."""
    file = Path(file)
    with file.open("rb") as handle:
        start = handle.read(2)
    if start in (b"PK", b"\x80\x02") or file.suffix in (".ckpt", ".pkl"):
        raise UserError(
            f"{file} is a checkpoint as it was published. Convert it once: "
            f"`mam2 tokenizer convert {file.name} --out {file.stem}.safetensors`, and name the result."
        )


def assign_tensors(model: ModuleT, tensors: Mapping[str, Tensor], *, where: str) -> ModuleT:
    """Gives a model built on the meta device its tensors; it comes back frozen, in eval mode.

    Raises:
        UserError: names or shapes do not fit.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, where=where)
    model.load_state_dict(tensors, assign=True)
    # Channels last is what GPUs take for convolutions in bf16; on a CPU it is no slower, and the codes the same.
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def read_tokenizer(file: Path | str, *, format: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The fp32 tensors of a file by `save_tokenizer`, and the tokenizer's configuration as parsed JSON.

    Raises:
        UserError: no safetensors file, or one of another format.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            metadata = handle.metadata() or {}
            if metadata.get("format") == format:
                # The handle is no dict: it can't be iterated but through keys().
                tensors = {name: handle.get_tensor(name).float() for name in handle.keys()}  # noqa: SIM118
                return tensors, json.loads(metadata["config"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{file} cannot be read as a tokenizer: {error}. Make or convert it again.") from error
    raise UserError(
        f"{file} is of format {metadata.get('format')!r}; accepted: {format!r}. Give another file, or the "
        "--targets.appearance that it belongs to."
    )
