"""The HTML pages: one style for all, the facts of how each was made, and at its end what to type next."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from mam2.config import printable
from mam2.files import write_text
from mam2.version import __version__


def write_html(
    file: Path,
    template: str,
    values: Mapping[str, object],
    *,
    title: str,
    facts: Mapping[str, str],
    commands: Sequence[str],
) -> None:
    """Writes one HTML file that asks for no other: it opens without a server.

    Args:
        file: the file to write; its folder is made.
        template: the name of a file *.html.jinja in this folder, which extends page.html.jinja.
        values: variables of the template.
        title: plain text, as are the next two.
        facts: facts of how the page was made; the version and the commit are added.
        commands: command lines for videos of one's own.
    """
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template(f"{template}.html.jinja").render(
        values,
        title=printable(title),
        facts={name: printable(fact) for name, fact in {**facts, "page written by": written_by()}.items()},
        commands=[printable(command) for command in commands],
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, page)


def written_by() -> str:
    """The version; in a git checkout the commit too, with `-dirty` where files differ from it."""
    words = f"mam2 {__version__}"
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return words
    ask = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a slow disk
        return words
    return f"{words}, commit {found.stdout.strip()}" if found.returncode == 0 else words


def command_line(words: Sequence[object], options: Mapping[str, object]) -> str:
    """A command line: `mam2`, words and options; options without a value are left out."""
    line = ["mam2", *map(str, words)]
    for name, value in options.items():
        values = value if isinstance(value, list | tuple) else [] if value in ("", None) else [value]
        line += [f"--{name.replace('_', '-')}", *map(str, values)] if values else []
    return shlex.join(line)


def video_title(path: str | Path) -> str:
    """A video's name after that of its folder, which in class folders is its class."""
    return "/".join(Path(path).absolute().parts[-2:]).lstrip("/")


def in_markdown(words: str) -> str:
    """Plain text as Markdown that shows it: on one line, with no links, tags, code or table cells in it."""
    return re.sub(r"([\\`*_\[\]<>&|#~!$:]|^[-+=])", r"\\\1", " ".join(printable(words).split()))


def code_in_markdown(words: str) -> str:
    """Plain text as a span of code in Markdown, on one line."""
    line = " ".join(printable(words).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"
