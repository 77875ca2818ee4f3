"""Files written whole or not at all, tensor files, digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mam2.config import UserError


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A number, in hexadecimal, that follows from names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes safetensors whole or not at all."""
    part = path.with_name(path.name + ".part")
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        part,
        metadata=metadata,
    )
    sync(part)
    part.replace(path)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: the file is missing, or is no safetensors file; a pickle is never opened.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist. Give a run's folder or a .safetensors file that mam2 wrote.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        return load_file(file), metadata
    except SafetensorError as error:
        raise UserError(
            f"{file} is no safetensors file ({first_line(error)}). Accepted is encoder.safetensors of a run; pickled "
            "checkpoints are not opened, since they can run code."
        ) from error


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}). Restore it, or start anew with another --out."
        ) from error


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:150] if str(error) else type(error).__name__


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
