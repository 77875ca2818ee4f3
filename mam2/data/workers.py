"""Processes that make a data set's items ahead of time; one that dies or hangs is replaced."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from mam2.config import UserError
from mam2.device import return_freed_memory

_LOG = logging.getLogger("mam2")
_ATTEMPTS = 4
_AHEAD = 2  # items that each process makes ahead of time
_LOOK_SECONDS = 1  # between two looks whether the processes are alive


class VideoSet(Protocol):
    """Data set whose items are made of videos."""

    @property
    def quarantined(self) -> dict[str, str]:
        """Reasons, by path, of videos that end or stall the process that decodes them: they are not used again."""

    def __getitem__(self, index: int, /) -> Any: ...

    def paths(self, index: int) -> list[str]:
        """Paths of the videos that an item is made of."""

    def decode(self, path: str) -> object:
        """Does with a video what an item needs. Raises UserError for an unusable one."""


def parallel(dataset: VideoSet, indices: range, *, num_workers: int, timeout_seconds: int) -> Generator[Any]:
    """Items of a data set at indices, in order, made by `num_workers` processes; 0 makes them in this one.

    A process that dies (out of memory, a crash in a decoder) or makes nothing for `timeout_seconds` is replaced, and
    the item is made again. If that fails, each of its videos, and of the items made ahead of it, is tried in a process
    of its own, and the first that ends or stalls it is quarantined.

    Raises:
        UserError: the same item failed again and again, the processes can't start, or the shared memory is full.
    """
    if num_workers == 0:
        yield from (dataset[index] for index in indices)
        return
    done = failures = 0
    while done < len(indices):
        crew = _Crew(dataset, indices[done:], num_workers)
        try:
            for result in crew.results(timeout_seconds):
                if isinstance(result, _NoRoom):
                    raise UserError(result.message())
                yield result
                done += 1
                failures = 0
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it handed over an item
            if not _process_failed(error):
                raise
            failures += 1
            reason = crew.fault() or (str(error) or type(error).__name__).splitlines()[0]
            if done == 0 and crew.ended_at_start():
                raise UserError(
                    f"The decoding processes end as soon as they start; what is printed above says why. If this is a "
                    f"script of yours, begin training under `if __name__ == '__main__':`, because each process runs "
                    f"the script again (start method {multiprocessing.get_start_method()}); or use "
                    "--data.num-workers 0."
                ) from error
            if failures == _ATTEMPTS:
                raise UserError(
                    f"Decoding failed {failures} times at the same place ({reason}). If memory is short, use fewer "
                    "num_workers; if the disk is slow, a larger timeout_seconds."
                ) from error
            _LOG.warning(f"A decoding process failed ({reason}); starting new ones.")
            if failures > 1:
                _quarantine(dataset, indices[done : done + num_workers * _AHEAD], timeout_seconds)


class QuarantinedError(UserError):
    """Video that ends or stalls the process that decodes it."""


@dataclass(frozen=True)
class VideoByVideo:
    """A `VideoSet` of one item per video: what a function of its path gives, or the UserError that it raises."""

    decode: Callable[[str], Any]
    videos: Sequence[str]
    quarantined: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Any:
        path = self.videos[index]
        try:
            if path in self.quarantined:
                raise QuarantinedError(self.quarantined[path])
            return self.decode(path)
        except UserError as error:
            return error

    def paths(self, index: int) -> list[str]:
        return [self.videos[index]]


def parallel_map(
    function: Callable[[str], Any], videos: Sequence[str], *, num_workers: int, timeout_seconds: int
) -> Generator[Any]:
    """Items of `VideoByVideo` for all videos, in order, made by `parallel`."""
    dataset = VideoByVideo(function, videos)
    return parallel(dataset, range(len(videos)), num_workers=num_workers, timeout_seconds=timeout_seconds)


class _Crew:
    """Processes that make a data set's items."""

    def __init__(self, dataset: VideoSet, indices: range, num_workers: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
            self._loader: DataLoader[Any] = DataLoader(
                _Shared(dataset),  # type: ignore[arg-type]  # it asks for a Dataset, but uses __getitem__ only
                batch_size=None,  # an item is a whole batch already
                sampler=indices,
                num_workers=num_workers,
                prefetch_factor=_AHEAD,
                collate_fn=_unchanged,
                worker_init_fn=_start,
                timeout=_LOOK_SECONDS,  # then it looks whether its processes are alive, and can be asked again
                generator=torch.Generator(),  # or else the loader would draw from the run's own random numbers
            )
        self._processes = list[Any]()

    def results(self, timeout_seconds: int) -> Iterator[Any]:
        """Items in order. A process that dies is noticed within seconds, and raises."""
        others = set(multiprocessing.active_children())
        with _sigchld_kept():
            results = iter(self._loader)
        self._processes = [child for child in multiprocessing.active_children() if child not in others]
        while True:
            deadline = time.monotonic() + timeout_seconds
            while True:
                try:
                    result = next(results)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if f"timed out after {_LOOK_SECONDS} " not in str(error):
                        raise
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"DataLoader got nothing for {timeout_seconds} seconds") from error
                else:
                    break
            yield result

    def fault(self) -> str:
        """Ending of the processes that failed, in words; empty if none did."""
        exits = [process.exitcode for process in self._processes if process.exitcode]
        return f"ended with {_exit_in_words(exits[0])}" if exits else ""

    def ended_at_start(self) -> bool:
        """Did a process that runs the main script again end by itself, with an error?"""
        forked = multiprocessing.get_start_method() == "fork"
        return not forked and any((process.exitcode or 0) > 0 for process in self._processes)


def _exit_in_words(code: int) -> str:
    return f"exit {code}" if code > 0 else signal.Signals(-code).name


@dataclass(frozen=True)
class _NoRoom:
    """There was no shared memory to hand an item over."""

    reason: str

    def message(self) -> str:
        usage = shutil.disk_usage("/dev/shm")
        return (
            f"The shared memory through which decoding processes hand over batches is full: /dev/shm has "
            f"{usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MiB free ({self.reason}). Give the container more "
            "(docker run --shm-size 8g, or --ipc host), or use --data.num-workers 0."
        )


@dataclass(frozen=True)
class _Shared:
    """Data set whose items are put into shared memory; where that is full, an item says so and none is lost."""

    dataset: VideoSet

    def __getitem__(self, index: int) -> Any:
        result = self.dataset[index]
        try:
            for tensor in _tensors_in(result):
                tensor.share_memory_()
        except RuntimeError as error:
            return _NoRoom(str(error).splitlines()[0])
        return result


def _tensors_in(result: Any) -> Iterator[torch.Tensor]:
    """Tensors in a result of tuples and dataclasses."""
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, tuple):
        for part in result:
            yield from _tensors_in(part)
    elif is_dataclass(result):
        for field_ in fields(result):
            yield from _tensors_in(getattr(result, field_.name))


def _process_failed(error: Exception) -> bool:
    """True if a process failed, not the data set in it, whose errors DataLoader passes on as "Caught ..."."""
    own = not str(error).startswith("Caught ")
    return own and ("DataLoader" in str(error) or not isinstance(error, RuntimeError))


@contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Undoes the handler that DataLoader installs: it raises wherever the main thread happens to be when a worker dies,
    in the middle of a step for one. Without it, the loader itself notices when it waits for that worker."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _quarantine(dataset: VideoSet, indices: range, timeout_seconds: int) -> None:
    for path in dict.fromkeys(path for index in indices for path in dataset.paths(index)):
        if path not in dataset.quarantined and (fault := _fault(dataset, path, timeout_seconds)):
            dataset.quarantined[path] = fault
            return


def _fault(dataset: VideoSet, path: str, timeout_seconds: int) -> str:
    """Tries a video in a process of its own: the fault of that process in words, or nothing."""
    process = multiprocessing.Process(target=_decode_alone, args=(dataset, path), daemon=True)
    process.start()
    process.join(timeout_seconds)
    if process.is_alive():
        process.kill()
        return f"{path} could not be decoded within {timeout_seconds} seconds. Re-encode or remove it."
    if process.exitcode:
        return f"{path} ends the process that decodes it ({_exit_in_words(process.exitcode)}). Re-encode or remove it."
    return ""


def _decode_alone(dataset: VideoSet, path: str) -> None:
    torch.set_num_threads(1)  # the threads of the process it was forked from are not here, and would be waited for
    with suppress(UserError):  # an unusable video is no fault of the process
        dataset.decode(path)


def _start(worker: int) -> None:
    """Keeps signals to the trainer's group (torchrun, Ctrl-C) from a process, which the trainer still needs to save.
    Also keeps its memory flat."""
    os.setpgrp()
    return_freed_memory()


def _unchanged(result: Any) -> Any:
    return result
