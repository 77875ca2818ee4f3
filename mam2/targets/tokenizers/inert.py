"""Reads a file of torch.save without running anything of what it holds.

Such a file is a pickle with the tensors' numbers beside it: a zip archive since torch 1.6, before that one file
with the numbers after the pickle. The pickle names classes of other libraries, and unpickling in the usual way
would run whatever it names. Here every name is inert: names that stand for tensors become notes on where the
numbers lie, all others take in what is done to them and do nothing. Before that, the pickle's bare operations are
looked through, because some make Python's unpickler take memory without bound.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
MAX_DEPTH = 32  # of modules within modules; the official ones have 5 levels
MAX_NESTING = 500  # of tuples within tuples


@dataclass(frozen=True)
class StorageNote:
    """Where a storage lies in the file."""

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
    """Stands for any foreign class, function or object: takes in what a pickle does with it, does nothing.

    It must take any arguments, as it stands for anything. The attributes that a pickle gives an object are kept
    in `state`, aside from the object's own: they can't stand in for a method.
    """

    state: object = None

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> Inert:
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle without importing or calling anything it names; `storages` collects those it names."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.storages: dict[str, StorageNote] = {}

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

    def persistent_load(self, pid: Any) -> object:
        """What torch.save writes aside: ("storage", type, key, location, number of elements), and before torch
        1.6 with None for "no view", and ("module", class, source file, source)."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel), *rest) if rest in ([], [None]):
                return self.storages.setdefault(key, StorageNote(dtype, key, numel))
            case ("module", type() as cls, *_) if issubclass(cls, Inert):
                return cls
        return Inert()


def note_maker() -> Callable[..., TensorNote | Inert]:
    """An inert stand-in for torch's `_rebuild_tensor_v2(storage, offset, size, stride, ...)`."""

    def note(
        storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: object
    ) -> TensorNote | Inert:
        return TensorNote(storage, offset, size, stride) if isinstance(storage, StorageNote) else Inert()

    return note


def look_through(stream: Any, num_bytes: int) -> None:
    """Goes through one pickle of a stream to its end, building nothing.

    CPython's unpickler keeps its memo in an array, as long as the greatest number it is told; and the hash of a
    tuple of tuples of tuples ... overflows the C stack.

    Raises:
        ValueError or another Exception: it is cut short or wrong, or would take memory or stack without bound.
    """
    stack: list[int] = []  # how deep tuples are nested in each thing on the unpickler's stack; -1 is a mark
    memo: dict[int, int] = {}
    for opcode, arg, _ in pickletools.genops(stream):
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise ValueError("the pickle names an entry of a registry outside it")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if opcode.name == "MEMOIZE" else int(arg or 0)
            if number > num_bytes:
                raise ValueError(f"the pickle asks for a memo of {number} entries")
            memo[number] = stack[-1]
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(arg or 0)])
        elif opcode.name == "MARK":
            stack.append(-1)
        else:
            taken, num_taken = [0], len(opcode.stack_before)
            if pickletools.markobject in opcode.stack_before:
                num_taken = opcode.stack_before.index(pickletools.markobject)
                while (top := stack.pop()) != -1:
                    taken.append(top)
            taken += [stack.pop() for _ in range(num_taken)]
            depth = max(taken) + (opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"))
            if depth > MAX_NESTING:
                raise ValueError(f"the pickle nests more than {MAX_NESTING} tuples")
            stack += [depth] * len(opcode.stack_after)


class TorchFile:
    """An open file of torch.save: `state`, what it holds, with notes for tensors; `read` gives their numbers."""

    def __init__(self, state: object, raw: Callable[[StorageNote], bytes]) -> None:
        self.state, self.raw = state, raw

    def read(self, note: TensorNote) -> Tensor:
        """The numbers a note points at, in fp32. Raises ValueError or RuntimeError if the note lies."""
        storage = note.storage
        if not storage.dtype.is_floating_point:
            raise ValueError(f"storage {storage.key} holds {storage.dtype}, not floating point")
        raw = bytearray(self.raw(storage))
        if len(raw) != storage.numel * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} has {len(raw)} bytes, not {storage.numel} numbers")
        numbers = torch.frombuffer(raw, dtype=storage.dtype)
        return numbers.as_strided(note.size, note.stride, note.offset).float().contiguous()  # checks the bounds


@contextmanager
def open_torch_file(file: Path) -> Iterator[TorchFile]:
    """Opens what torch.save wrote, of any age, running nothing of it.

    Raises:
        UserError: no such file, or one of another kind. What fails later, as a damaged or hostile file may in any
            way, is a UserError too.
    """
    if not file.is_file():
        raise UserError(f"There is no checkpoint {file}. Name the downloaded file.")
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                yield open_archive(archive, file)
        elif file.stat().st_size == 0:
            raise UserError(f"{file} is empty. Download it again.")
        else:
            with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield open_legacy(data, file)
    except UserError:
        raise
    except Exception as error:  # whatever it was, nothing of the file was run
        raise UserError(
            f"{file} cannot be read as a checkpoint ({type(error).__name__}: {str(error)[:200]}). Download it again."
        ) from error


def open_archive(archive: zipfile.ZipFile, file: Path) -> TorchFile:
    """The zip archive of torch.save since 1.6."""
    names = set(archive.namelist())
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1 or f"{roots[0]}/constants.pkl" in names:
        raise UserError(f"{file} is a zip archive, but not one written by torch.save. Name the downloaded file.")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise UserError(f"{file} is a compressed archive, as torch.save writes none. Name the downloaded file.")
    root = roots[0]
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise UserError(f"{file} was written on a big-endian machine; re-save it on a little-endian one.")
    pickled = archive.read(f"{root}/data.pkl")
    look_through(io.BytesIO(pickled), len(pickled))
    return TorchFile(InertUnpickler(pickled).load(), lambda storage: archive.read(f"{root}/data/{storage.key}"))


def open_legacy(data: mmap.mmap, file: Path) -> TorchFile:
    """The one file of torch.save before 1.6: five pickles, then the storages in the order of the fifth."""
    not_torch = UserError(
        f"{file} is no checkpoint: neither a zip archive, nor of torch.save before 1.6, or it was cut short. "
        "Download it again."
    )

    def next_pickle() -> InertUnpickler:
        start = data.tell()
        look_through(data, len(data))
        return InertUnpickler(data[start : data.tell()])

    try:
        magic, protocol = next_pickle().load(), next_pickle().load()
    except Exception as error:
        raise not_torch from error
    if (magic, protocol) != (MAGIC_NUMBER, PROTOCOL):
        raise not_torch
    if next_pickle().load()["little_endian"] is not True:
        raise UserError(f"{file} was written on a big-endian machine; re-save it on a little-endian one.")
    unpickler = next_pickle()
    state, spans = unpickler.load(), {}
    for key in next_pickle().load():
        storage, numel = unpickler.storages[key], int.from_bytes(data.read(8), "little")
        spans[key] = (data.tell(), data.tell() + numel * storage.dtype.itemsize)
        if numel != storage.numel or spans[key][1] > len(data):
            raise ValueError(f"storage {key} has not the {storage.numel} numbers it should have")
        data.seek(spans[key][1])

    return TorchFile(state, lambda storage: data[slice(*spans[storage.key])])


def module_tensors(module: object) -> dict[str, TensorNote]:
    """The parameters and buffers of a pickled torch module that came out inert, under their dotted names.

    Raises:
        ValueError: modules within themselves or very deep, as only a hostile file has them.
    """
    notes: dict[str, TensorNote] = {}
    seen: set[int] = set()
    todo: list[tuple[str, int, object]] = [("", 0, module)]
    while todo:
        prefix, depth, module = todo.pop()
        if id(module) in seen or depth > MAX_DEPTH:
            raise ValueError(f"the module {prefix[:80]!r} is there twice, or lies too deep")
        seen.add(id(module))
        for group in ("_parameters", "_buffers"):
            for name, note in members(module, group).items():
                if isinstance(note, TensorNote):
                    notes[f"{prefix}{name}"] = note
        for name, child in reversed(list(members(module, "_modules").items())):
            if isinstance(child, Inert):
                todo.append((f"{prefix}{name}.", depth + 1, child))
    return notes


def members(module: object, group: str) -> Mapping[str, object]:
    """One of the dictionaries in which a torch module keeps its parts."""
    state = module.state if isinstance(module, Inert) else None
    found = state.get(group) if isinstance(state, dict) else None
    return {name: part for name, part in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}
