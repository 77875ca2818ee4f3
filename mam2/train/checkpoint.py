"""Checkpoints of a run, `checkpoints/step_00001000/`: model.safetensors, optimizer.pt, state.json.

Each is written whole or not at all; none can execute code.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from torch import nn

from mam2 import distributed
from mam2.config import UserError
from mam2.files import file_checksum, first_line, read_object, read_tensors, write_tensors, write_text, written_whole
from mam2.model.weights import load_strictly

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.pt"
STATE = "state.json"


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, *, keep: int) -> None:
    """Writes checkpoints/step_N after N steps, then removes all checkpoints but the newest `keep`."""
    place = folder / "checkpoints"
    part = place / f".part_{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_tensors(part / MODEL, model.state_dict(), {})
    with written_whole(part / OPTIMIZER) as file, file.open("wb") as opened:
        torch.save(optimizer.state_dict(), opened)
    write_text(part / STATE, json.dumps({"step": step, "optimizer": file_checksum(part / OPTIMIZER)}))
    final = place / f"step_{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    part.replace(final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first; folders of other names are the user's."""
    found = (folder / "checkpoints").glob("step_*")
    return sorted(place for place in found if re.fullmatch(r"step_[0-9]{8,}", place.name))


def remove_leftovers(folder: Path) -> None:
    """Removes half-written files and checkpoints that a killed process left in the folder of a run."""
    for part in folder.glob("*.part"):
        part.unlink()
    for part in (folder / "checkpoints").glob(".part_*"):
        shutil.rmtree(part)


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the newest checkpoint.

    Returns:
        Number of steps done; 0 without a checkpoint.

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
    newest = found[-1]
    try:
        return _load(newest, model, optimizer)
    except UserError as error:
        then = f"resume from {found[-2].name}" if len(found) > 1 else "start again, as there is no other"
        raise UserError(f"{error} Or remove {newest} to {then}.") from error


def _load(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = read_object(place / STATE, {"step": int})
    step: int = state["step"]
    if place.name != f"step_{step:08d}":
        raise UserError(f"{place / STATE} is damaged: it names step {step}. Restore it.")
    load_model(place / MODEL, model)
    file = place / OPTIMIZER
    written = state.get("optimizer")  # version 0.1 kept none
    try:
        if written is not None and written != file_checksum(file):
            raise ValueError("its contents are not those that were written: the checksum differs")
        optimizer.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    except Exception as error:  # torch names no common class for what a damaged file raises
        raise UserError(f"{file} can't be read ({first_line(error)}). Restore it.") from error
    return step


def load_model(file: Path, model: nn.Module) -> None:
    """Loads a state dict strictly.

    Raises:
        UserError: not a safetensors file, or one of another architecture.
    """
    tensors, _ = read_tensors(file)
    load_strictly(model, tensors, file)
