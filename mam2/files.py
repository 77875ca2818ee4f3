"""Files written whole or not at all, tensor files, digests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mam2.config import UserError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place at the end: a file is written whole or not at all.

    Example: `with written_whole(path) as part: part.write_bytes(data)`. An error leaves the old file as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, in UTF-8."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def fingerprint(paths: Iterable[str]) -> str:
    """A hash of files' paths, sizes and times of change: other files, or changed ones, give another."""
    status = [(path, Path(path).stat()) for path in paths]
    found = [(path, of.st_size, of.st_mtime_ns) for path, of in status]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as part:
        save_file(on_host, part, metadata=metadata)


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
            f"{file} is no safetensors file ({first_line(error)}). Accepted are files that mam2 wrote: encoders, "
            "classifiers, tokenizers. Pickled checkpoints are not opened, since they can run code."
        ) from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises UserError, naming the first few, unless tensors have the expected names and shapes.

    Args:
        where: the beginning of the message: what the tensors are not.
    """
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of {shape}"
            for name, shape in expected.items()
            if name in found and tuple(found[name].shape) != shape
        ],
    }
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in wrong.items()
        if names
    ]
    if problems:
        raise UserError(f"{where}. {'; '.join(problems)}.")


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's tensors; the model can be on the meta device."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def read_json(path: Path) -> Any:
    """The contents of a JSON file that a run wrote; UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}). Restore it, or start again with another --out."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a message of our own."""
    return str(error).splitlines()[0][:150] if str(error) else type(error).__name__


def sync(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
