"""Words for people: log messages, lines and commands that fit a terminal, with odd names of files made harmless."""

from __future__ import annotations

import logging
import os
import re
import shutil
import textwrap
from typing import TextIO

from mam2.config import printable


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def start_logging() -> None:
    """Logs to stderr."""
    from rich.console import Console  # here, as `mam2 --help` needs none
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("mam2").setLevel(logging.INFO)


def say(words: str, *, file: TextIO | None = None) -> None:
    """Prints words that may hold names of files; by default on stdout."""
    print(printable(words), file=file)


def width_of(stream: TextIO) -> int:
    """Columns of a terminal, or of $COLUMNS; 0 for a file or a pipe, whose lines are not wrapped."""
    if stream.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return 0


def wrapped(text: str, width: int) -> str:
    """Text that is wrapped between words, paragraph by paragraph; as it is for a width of 0."""
    if not width:
        return text
    paragraphs = text.split("\n")
    return "\n".join(
        textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False) for paragraph in paragraphs
    )


def wrapped_command(command: str, width: int, *, indent: str = "") -> str:
    """A command that is wrapped between its words, with backslashes, so that it can be copied; not within quotes."""
    if not width or len(indent + command) <= width:
        return indent + command
    words = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "\0"), command)
    words = re.sub(r"(--\S+) (?!-)", "\\1\0", words)  # an option stays with its value
    lines = textwrap.wrap(
        words,
        width - 2,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\0", " ")
