"""Checkpoints of a run, `checkpoints/step_00001000/`: model.safetensors, optimizer.pt, state.json.

They are written whole or not at all, and nothing in them can execute code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mam2 import distributed
from mam2.config import UserError
from mam2.files import first_line, read_json, read_tensors, sync
from mam2.model.weights import load_strictly


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, *, keep: int) -> None:
    """Writes checkpoints/step_N, N the number of steps done, then removes all but the newest `keep`."""
    place = folder / "checkpoints"
    part = place / f".part_{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(on_host, part / "model.safetensors")
    torch.save(optimizer.state_dict(), part / "optimizer.pt")
    (part / "state.json").write_text(json.dumps({"step": step}))
    for file in part.iterdir():
        sync(file)
    final = place / f"step_{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    part.replace(final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """A run's finished checkpoints, oldest first."""
    return sorted((folder / "checkpoints").glob("step_*"))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the newest checkpoint.

    Returns:
        The number of steps done; 0 where there is no checkpoint.

    Raises:
        UserError: the checkpoint is damaged or of another architecture, or processes see different ones.
    """
    found = checkpoints(folder)
    seen = set(distributed.gather(found[-1].name if found else "no checkpoint"))
    if len(seen) > 1:
        raise UserError(
            f"{folder} is not the same on all machines: {' here, '.join(sorted(seen))} there. Give an --out that they "
            "share."
        )
    if not found:
        return 0
    load_model(found[-1] / "model.safetensors", model)
    try:
        optimizer.load_state_dict(torch.load(found[-1] / "optimizer.pt", weights_only=True, map_location="cpu"))
    except Exception as error:  # torch names no common class for what a damaged file raises
        raise UserError(
            f"{found[-1] / 'optimizer.pt'} can't be read ({first_line(error)}). "
            f"Remove {found[-1]} to resume from the checkpoint before it."
        ) from error
    step: int = read_json(found[-1] / "state.json")["step"]
    return step


def load_model(file: Path, model: nn.Module) -> None:
    """Loads a state dict strictly.

    Raises:
        UserError: no safetensors file, or one of another architecture.
    """
    tensors, _ = read_tensors(file)
    load_strictly(model, tensors, file)
