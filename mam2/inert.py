"""Reader of torch.save's files that runs nothing of what they hold: foreign objects come out inert.

`torch.load(weights_only=True)` refuses the official checkpoints, which hold whole modules, objects of training
libraries or pickles of a newer protocol, and computes for ever where a key is made of nested tuples. Here nothing that
a pickle names is imported or called, and memory stays bounded by the file's size.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
ReadStorage = Callable[[str, torch.dtype, int], Tensor]
"""1-D tensor of a storage, by its key in the file, its type and its number of elements."""


class Inert:
    """Stand-in for a foreign class, function or object: it accepts what a pickle does with it, and does nothing.

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
    """Dictionary of the file, without keys of nested tuples: hashing 60 levels of pairs takes 2^60 steps."""

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, tuple) and any(isinstance(item, tuple) for item in key):
            raise ValueError("a key of the pickle is a tuple of tuples")
        super().__setitem__(key, value)


class InertUnpickler(pickle._Unpickler):
    """Python's unpickler, not the one in C, whose memo takes memory for the greatest number that a pickle mentions."""

    def __init__(self, file: io.BytesIO, read_storage: ReadStorage) -> None:
        super().__init__(file)
        self.read_storage = read_storage

    def find_class(self, module: str, name: str) -> Any:
        # A new function or class each time: a pickle may set attributes on it, which must not outlive this call.
        match module, name:
            case "collections", "OrderedDict":
                return lambda: Mapping()
            case "torch", name if name in DTYPES:
                return DTYPES[name]
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, size, stride, *rest: storage.as_strided(size, stride, offset)
            case "torch._utils", "_rebuild_parameter":
                return lambda data, *rest: data
        return type(f"{module}.{name}", (Inert,), {})

    def persistent_load(self, pid: Any) -> object:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel), *rest) if rest in ([], [None]):
                return self.read_storage(key, dtype, numel)
            case ("module", cls, *_):  # before torch 1.6, with the source of the class
                return cls
        return Inert()

    def load_frozenset(self) -> None:
        self.pop_mark()  # type: ignore[attr-defined]  # the stubs leave out what is the Python unpickler's own
        self.append(Inert())  # type: ignore[attr-defined]


REFUSED = b"d\x82\x83\x84\x96\x97\x98"  # DICT, EXT1, EXT2, EXT4, BYTEARRAY8, NEXT_BUFFER, READONLY_BUFFER
REPLACED: dict[int, Any] = {
    pickle.EMPTY_DICT[0]: lambda self: self.append(Mapping()),
    pickle.EMPTY_SET[0]: lambda self: self.append(Inert()),  # its items would be hashed
    pickle.FROZENSET[0]: InertUnpickler.load_frozenset,
}
allowed = {code: load for code, load in pickle._Unpickler.dispatch.items() if code not in REFUSED}
InertUnpickler.dispatch = allowed | REPLACED


def read_torch_file(file: Path) -> object:
    """Reads a file of torch.save of any age; foreign objects are `Inert`.

    Raises:
        UserError: no such file, one of another kind, or a damaged or hostile one.
    """
    if not file.is_file():
        raise UserError(f"There is no checkpoint {file}. Name the downloaded file.")
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty. Download it again.")
    try:
        return read_archive(file) if zipfile.is_zipfile(file) else read_legacy(file)
    except Exception as error:  # whatever it was, nothing of the file was run
        raise UserError(
            f"{file} cannot be read as a checkpoint of torch.save ({type(error).__name__}: {str(error)[:200]}): it is "
            "of another kind, cut short or damaged. Download it again, or name the downloaded file."
        ) from error


def read_archive(file: Path) -> object:
    """Reads the zip archive of torch.save since 1.6: a pickle, and one entry for each storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}/constants.pkl" in entries:
            raise ValueError("a zip archive, but not one written by torch.save")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("a compressed archive, as torch.save writes none")
        if sum(entry.file_size for entry in entries.values()) > file.stat().st_size:
            raise ValueError("entries of the archive share their bytes")
        root = roots[0]
        if f"{root}/byteorder" in entries and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine; re-save it on a little-endian one")
        storages = dict[str, Tensor]()

        def read_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
            if key not in storages:
                storages[key] = as_tensor(archive.read(f"{root}/data/{key}"), key, dtype, numel)
            return storages[key]

        return InertUnpickler(io.BytesIO(archive.read(f"{root}/data.pkl")), read_storage).load()


def read_legacy(file: Path) -> object:
    """Reads the one file of torch.save before 1.6: five pickles, then the storages in the order of the fifth."""
    data = io.BytesIO(file.read_bytes())
    storages = dict[str, Tensor]()

    def reserve_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if key not in storages:
            taken = sum(storage.nbytes for storage in storages.values())
            if not 0 <= numel * dtype.itemsize <= file.stat().st_size - taken:
                raise ValueError(f"storage {key} has not the {numel} numbers it should have")
            storages[key] = torch.empty(numel, dtype=dtype)
        return storages[key]

    def next_pickle() -> Any:
        return InertUnpickler(data, reserve_storage).load()

    if (next_pickle(), next_pickle()) != (MAGIC_NUMBER, PROTOCOL):
        raise ValueError("neither a zip archive, nor of torch.save before 1.6")
    if next_pickle()["little_endian"] is not True:
        raise ValueError("it was written on a big-endian machine; re-save it on a little-endian one")
    state = next_pickle()
    for key in next_pickle():
        storage = storages[key]
        if int.from_bytes(data.read(8), "little") != storage.numel():
            raise ValueError(f"storage {key} has not the {storage.numel()} numbers it should have")
        storage.copy_(as_tensor(data.read(storage.nbytes), key, storage.dtype, storage.numel()))
    return state


def as_tensor(raw: bytes, key: str, dtype: torch.dtype, numel: int) -> Tensor:
    """Numbers of a storage, 1-D; ValueError if there are more or fewer than its pickle says."""
    if len(raw) != numel * dtype.itemsize:
        raise ValueError(f"storage {key} has {len(raw)} bytes, not {numel} numbers")
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
