"""Progress bars on stderr, drawn by the first process only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ItemT = TypeVar("ItemT")
REDRAWN_SECONDS = 0.2


def stderr_console() -> Console:
    """A console on stderr, so that stdout holds results only; one for each live display."""
    return Console(stderr=True)


def progress(
    items: Iterable[ItemT],
    *,
    title: str,
    total: int,
    hidden: bool = False,
    size: Callable[[ItemT], int] = lambda item: 1,
) -> Iterator[ItemT]:
    """Yields the items, and draws a bar of how many are done and how long the others take.

    This thread draws it: a second one would make it unsafe to fork workers meanwhile.

    Args:
        items: the items, one after another.
        title: words before the bar.
        total: number of items, in units of `size`.
        hidden: draws nothing.
        size: number that an item counts for.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_first = os.environ.get("RANK", "0") == "0"  # torchrun numbers the processes
    bar = Progress(*columns, console=stderr_console(), auto_refresh=False, disable=hidden or not is_first)
    with bar:
        task = bar.add_task(title, total=total)
        drawn = 0.0
        for item in items:
            yield item
            bar.advance(task, size(item))
            if time.monotonic() - drawn > REDRAWN_SECONDS:
                bar.refresh()
                drawn = time.monotonic()
