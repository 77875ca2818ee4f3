"""Converts the official VQGAN checkpoint to safetensors, running nothing of what the checkpoint holds.

A published `.ckpt` is a zip archive: a pickle, and the tensors' numbers beside it. The pickle names classes
of other libraries (callbacks, configurations), and unpickling in the usual way would run whatever it names.
Here it is read with every name inert: names that stand for tensors become notes on where the numbers lie,
all others absorb what is done to them. Only the tensors that the tokenizer needs are then read from the
archive.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mam2.config import UserError
from mam2.targets.tokenizer import check_tensors
from mam2.targets.vqgan import VQGANConfig, save_vqgan, vqgan_shapes

KEPT = ("encoder.", "quant_conv.", "quantize.", "decoder.", "post_quant_conv.")
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}


def convert_checkpoint(
    source: Path | str, out: Path | str, *, config: VQGANConfig | None = None
) -> dict[str, str | int | bool]:
    """Writes the tokenizer of a taming-transformers checkpoint as safetensors, for `load_vqgan`.

    Args:
        source: the Lightning checkpoint `last.ckpt` of "VQGAN ImageNet (f=16), 16384".
        out: the file to write; it appears whole or not at all.
        config: the sizes, where they are not those of the official model.

    Returns:
        A summary: `file`, `num_tensors`, `num_parameters`, `has_decoder`, `num_dropped` (tensors that only
        training needs).

    Raises:
        UserError: no such file, a file of another kind or age, another tokenizer, or tensors that do not fit.
    """
    config = config or VQGANConfig()
    source = Path(source)
    if not source.is_file():
        raise UserError(f"There is no checkpoint {source}. Name the downloaded last.ckpt.")
    if not zipfile.is_zipfile(source):
        raise UserError(
            f"{source} is no zip archive: it was written by torch < 1.6, is no checkpoint, or was cut short. "
            "Download it again, or load it where you trust it and re-save it with a present torch.save."
        )
    try:
        with zipfile.ZipFile(source) as archive:
            root = archive_root(archive, source)
            state = read_pickle(archive.read(f"{root}/data.pkl"))
            notes = find_tensors(state, source)
            kept = {name: note for name, note in notes.items() if name.startswith(KEPT)}
            has_decoder = any(name.startswith(("decoder.", "post_quant_conv.")) for name in kept)
            expected = vqgan_shapes(config, with_decoder=has_decoder)
            check_tensors({name: note.size for name, note in kept.items()}, expected, where=str(source))
            tensors = {name: read_tensor(archive, root, note) for name, note in kept.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile pickle may fail in any way; none of them ran anything
        raise UserError(
            f"{source} cannot be read as a checkpoint ({type(error).__name__}: {error}). Download it again."
        ) from error
    save_vqgan(tensors, out, config=config)
    return {
        "file": str(out),
        "num_tensors": len(tensors),
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "has_decoder": has_decoder,
        "num_dropped": len(notes) - len(kept),
    }


def archive_root(archive: zipfile.ZipFile, source: Path) -> str:
    """The folder inside the archive under which torch.save put everything."""
    names = set(archive.namelist())
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1 or f"{roots[0]}/constants.pkl" in names:
        raise UserError(f"{source} is a zip archive, but not one written by torch.save. Name the downloaded last.ckpt.")
    if f"{roots[0]}/byteorder" in names and archive.read(f"{roots[0]}/byteorder") != b"little":
        raise UserError(f"{source} was written on a big-endian machine; re-save it on a little-endian one.")
    return roots[0]


def find_tensors(state: Any, source: Path) -> dict[str, TensorNote]:
    """The named tensors of an unpickled checkpoint; a UserError where it is another tokenizer's."""
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    kind = type(state).__name__
    if kind.startswith("dall_e.") or (isinstance(state, dict) and any(str(k).startswith("blocks.") for k in state)):
        raise UserError(
            f"{source} is the DALL-E tokenizer, which is not supported; use the VQGAN f16 with 16384 codes."
        )
    if not isinstance(state, dict):
        raise UserError(f"{source} holds a {kind}, not a state dict. Name the downloaded last.ckpt.")
    if "quantize.embed.weight" in state or "quantize.proj.weight" in state:
        raise UserError(
            f"{source} is a Gumbel VQGAN (as the OpenImages f8 with 8192 codes is), which is not supported; "
            "use the ImageNet f16 with 16384 codes."
        )
    return {str(name): note for name, note in state.items() if isinstance(note, TensorNote)}


def read_tensor(archive: zipfile.ZipFile, root: str, note: TensorNote) -> Tensor:
    """The numbers a note points at, in fp32. Raises ValueError or RuntimeError if the note lies."""
    raw = bytearray(archive.read(f"{root}/data/{note.storage.key}"))
    if len(raw) != note.storage.numel * note.storage.dtype.itemsize:
        raise ValueError(f"storage {note.storage.key} has {len(raw)} bytes, not {note.storage.numel} numbers")
    numbers = torch.frombuffer(raw, dtype=note.storage.dtype)
    return numbers.as_strided(note.size, note.stride, note.offset).float().contiguous()  # as_strided checks bounds


@dataclass(frozen=True)
class StorageNote:
    """Where a storage lies in the archive."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class TensorNote:
    """A tensor not read yet: a window on a storage."""

    storage: StorageNote
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Stands for any foreign class, function or object: absorbs what a pickle does with it, does nothing.

    It must take any arguments, as it stands for anything.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle without importing or calling anything it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        # The names torch writes for a tensor and a parameter. A fresh function or class each time: a pickle
        # may set attributes on what it is given, and that must not outlive this call.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return note_maker()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        return type(f"{module}.{name}", (Inert,), {})

    def persistent_load(self, pid: Any) -> StorageNote | Inert:
        """The storages of torch.save: ("storage", type, key, location, number of elements)."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel)):
                return StorageNote(dtype, key, numel)
        return Inert()


def note_maker() -> Callable[..., TensorNote | Inert]:
    """An inert stand-in for torch's `_rebuild_tensor_v2(storage, offset, size, stride, ...)`."""

    def note(
        storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object
    ) -> TensorNote | Inert:
        return TensorNote(storage, offset, size, stride) if isinstance(storage, StorageNote) else Inert()

    return note


def read_pickle(data: bytes) -> Any:
    """The object a torch.save pickle describes, with tensors as `TensorNote` and everything foreign inert."""
    return InertUnpickler(io.BytesIO(data)).load()
