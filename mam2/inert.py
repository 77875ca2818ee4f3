"""Reads a file of torch.save without running anything of what it holds.

Such a file is a pickle with the tensors' numbers beside it: a zip archive since torch 1.6, before that one file with
the numbers after the pickle. Here nothing that the pickle names is imported or called: torch's names for tensors are
understood, all others become inert objects. Memory stays bounded by the file's size.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mam2.config import UserError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # begins a file of torch.save before 1.6
PROTOCOL = 1001
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_DEPTH = 32  # of modules within modules; the official ones have 5 levels
ReadStorage = Callable[[str, torch.dtype, int], Tensor]
"""The 1-D tensor of a storage: its key in the file, its type, its number of elements."""


class Inert:
    """Any foreign class, function or object: it accepts what a pickle does with it, and does nothing.

    The attributes that a pickle gives an object are kept in `state`, apart from its own: they can't replace a method.
    """

    state: object = None

    def __init__(self, *args: object) -> None:
        pass

    def __call__(self, *args: object) -> Inert:
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    extend = add = append


class Mapping(dict[Any, Any]):
    """A dictionary of the file. Its keys hold no nested tuples, whose hashes could take for ever."""

    def __init__(self) -> None:
        super().__init__()

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, tuple) and any(isinstance(item, tuple) for item in key):
            raise ValueError("a key of the pickle is a tuple of tuples")
        super().__setitem__(key, value)


class InertUnpickler(pickle._Unpickler):
    """Reads a pickle; `read_storage` gives the numbers of the storages that it names.

    Python's own unpickler, not that in C, whose memo takes memory for the greatest number that a pickle mentions.
    """

    def __init__(self, file: io.BytesIO, read_storage: ReadStorage) -> None:
        super().__init__(file)
        self.read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return Mapping
            case "torch", name if name in DTYPES:
                return DTYPES[name]
            # A new function each time: a pickle may set attributes on it, which must not outlive this call.
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, size, stride, *rest: storage.as_strided(size, stride, offset)
            case "torch._utils", "_rebuild_parameter":
                return lambda data, *rest: data
        return type(f"{module}.{name}", (Inert,), {})

    def persistent_load(self, pid: Any) -> object:
        """A storage or, before torch 1.6, a class with its source; the trailing None there means "no view"."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel), *rest) if rest in ([], [None]):
                return self.read_storage(key, dtype, numel)
            case ("module", type() as cls, *_) if issubclass(cls, Inert):
                return cls
        return Inert()

    # append and pop_mark are the Python unpickler's own; its stubs leave them out.
    def load_empty_dictionary(self) -> None:
        self.append(Mapping())  # type: ignore[attr-defined]

    def load_empty_set(self) -> None:
        self.append(Inert())  # type: ignore[attr-defined]

    def load_frozenset(self) -> None:
        self.pop_mark()  # type: ignore[attr-defined]
        self.append(Inert())  # type: ignore[attr-defined]


REFUSED = b"d\x82\x83\x84\x96\x97\x98"  # DICT, EXT1, EXT2, EXT4, BYTEARRAY8, NEXT_BUFFER, READONLY_BUFFER
REPLACED: dict[int, Any] = {
    pickle.EMPTY_DICT[0]: InertUnpickler.load_empty_dictionary,
    pickle.EMPTY_SET[0]: InertUnpickler.load_empty_set,
    pickle.FROZENSET[0]: InertUnpickler.load_frozenset,
}
allowed = {code: load for code, load in pickle._Unpickler.dispatch.items() if code not in REFUSED}
InertUnpickler.dispatch = allowed | REPLACED


def read_torch_file(file: Path) -> object:
    """The contents of a file of torch.save of any age; foreign objects are `Inert`.

    Raises:
        UserError: no such file, one of another kind, or a damaged or hostile one.
    """
    if not file.is_file():
        raise UserError(f"There is no checkpoint {file}. Name the downloaded file.")
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty. Download it again.")
    try:
        return read_archive(file) if zipfile.is_zipfile(file) else read_legacy(file)
    except UserError:
        raise
    except Exception as error:  # whatever it was, nothing of the file was run
        raise UserError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}: {str(error)[:200]}). Download it again."
        ) from error


def read_archive(file: Path) -> object:
    """The zip archive of torch.save since 1.6."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        roots = [
            name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(roots) != 1 or f"{roots[0]}/constants.pkl" in names:
            raise UserError(f"{file} is a zip archive, but not one written by torch.save. Name the downloaded file.")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError(f"{file} is a compressed archive, as torch.save writes none. Name the downloaded file.")
        root = roots[0]
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise UserError(f"{file} was written on a big-endian machine; re-save it on a little-endian one.")
        storages = dict[str, Tensor]()
        left = file.stat().st_size  # entries of a hostile archive may share their bytes

        def read_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            nonlocal left
            if key not in storages:
                left -= archive.getinfo(f"{root}/data/{key}").file_size
                raw = archive.read(f"{root}/data/{key}") if left >= 0 else b""
                storages[key] = as_tensor(raw, key, dtype, numel)
            return storages[key]

        return InertUnpickler(io.BytesIO(archive.read(f"{root}/data.pkl")), read_storage).load()


def read_legacy(file: Path) -> object:
    """The one file of torch.save before 1.6: five pickles, then the storages in the order of the fifth."""
    data = io.BytesIO(file.read_bytes())
    size = file.stat().st_size
    storages = dict[str, Tensor]()

    def reserve_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in storages:
            taken = sum(storage.nbytes for storage in storages.values())
            if not 0 <= numel * dtype.itemsize <= size - taken:
                raise ValueError(f"storage {key} has not the {numel} numbers it should have")
            storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    def next_pickle() -> Any:
        return InertUnpickler(data, reserve_storage).load()

    try:
        start = (next_pickle(), next_pickle())
    except Exception as error:
        raise not_torch(file) from error
    if start != (MAGIC_NUMBER, PROTOCOL):
        raise not_torch(file)
    if next_pickle()["little_endian"] is not True:
        raise UserError(f"{file} was written on a big-endian machine; re-save it on a little-endian one.")
    state = next_pickle()
    for key in next_pickle():
        storage = storages[key]
        if int.from_bytes(data.read(8), "little") != storage.numel():
            raise ValueError(f"storage {key} has not the {storage.numel()} numbers it should have")
        storage.copy_(as_tensor(data.read(storage.nbytes), key, storage.dtype, storage.numel()))
    return cast(object, state)


def not_torch(file: Path) -> UserError:
    """The error for a file of another kind."""
    return UserError(
        f"{file} is no checkpoint: neither a zip archive, nor of torch.save before 1.6, or it was cut short. "
        "Download it again."
    )


def as_tensor(raw: bytes, key: str, dtype: torch.dtype, numel: int) -> Tensor:
    """The numbers of a storage, 1-D; ValueError if there are more or fewer than its pickle says."""
    if len(raw) != numel * dtype.itemsize:
        raise ValueError(f"storage {key} has {len(raw)} bytes, not {numel} numbers")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def module_tensors(module: Inert) -> dict[str, Tensor]:
    """The parameters and buffers of a pickled torch module that came out inert, under their dotted names.

    Raises:
        UserError: modules within themselves or very deep, as only a hostile file has them.
    """
    tensors = dict[str, Tensor]()
    seen = set[int]()

    def walk(module: Inert, prefix: str, depth: int) -> None:
        if id(module) in seen or depth > MAX_DEPTH:
            raise UserError(f"The module {prefix[:80]!r} is there twice, or lies too deep. Download the file again.")
        seen.add(id(module))
        for group in ("_parameters", "_buffers"):
            found = members(module, group)
            tensors.update({f"{prefix}{name}": part for name, part in found.items() if isinstance(part, Tensor)})
        for name, child in members(module, "_modules").items():
            if isinstance(child, Inert):
                walk(child, f"{prefix}{name}.", depth + 1)

    walk(module, "", 0)
    return tensors


def members(module: Inert, group: str) -> dict[str, object]:
    """One of the dictionaries in which a torch module keeps its parts."""
    found = module.state.get(group) if isinstance(module.state, dict) else None
    return {name: part for name, part in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}
