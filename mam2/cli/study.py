"""`mam2 study` and `mam2 compare`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro
from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional, arg

from mam2.cli import tables
from mam2.cli.parse import Flat, finished, first_word, parse, typed
from mam2.config import UserError, printable
from mam2.files import write_text
from mam2.pictures.score_page import write_report
from mam2.studies.builtin import STUDIES
from mam2.studies.compare import compared
from mam2.studies.conduct import run_study
from mam2.studies.study import Settings, get_study
from mam2.studies.study_page import html_table, write_study_report
from mam2.studies.summary import as_markdown, as_text, not_fitted, table_of


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Run a comparison: pre-train every cell, fine-tune and probe it, test it; or resume it."""

    config: Annotated[Settings, Flat]
    out: Annotated[Path, arg(help="folder of the study; an interrupted study resumes there")]
    jobs: Annotated[int, arg(help="runs side by side")] = 1
    shard: Annotated[str, arg(help="i/n: only every n-th run, from number i, counted from 0")] = "0/1"


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare finished runs of one kind: figures over seeds, difference from the first, cost.

    Attributes:
        runs: folders of fine-tunings that `mam2 evaluate` has tested, of probes (or a probe_KIND.json), or of
            pre-trainings.
        out: a file to write the table to: .md, .csv or .html.
    """

    runs: Positional[tuple[Path, ...]]
    out: Path | None = None


def main(verb: str, arguments: list[str]) -> None:
    """Runs a study, or compares runs."""
    if verb == "compare":
        compare(parse(CompareCommand, verb, arguments))
    else:
        name, rest = first_word(verb, arguments, names=f"a study ({', '.join(STUDIES)})")
        get_study(name, STUDIES)
        default = StudyCommand(config=Settings(), out=cast(Path, tyro.MISSING))
        study(name, parse(StudyCommand, f"study {name}", rest, default=default))


def study(name: str, command: StudyCommand) -> None:
    """Runs a study."""
    start = time.monotonic()
    try:
        i, n = (int(part) for part in command.shard.split("/"))
    except ValueError:
        i, n = 0, 0
    if not 0 <= i < n or command.jobs < 1:
        raise UserError(
            f"--shard is {command.shard!r} and --jobs {command.jobs}; accepted: i/n with i from 0 to n - 1, such as "
            "0/4, and at least one job."
        )
    chosen = get_study(name, STUDIES)
    report = run_study(name, chosen, command.config, command.out, jobs=command.jobs, shard=(i, n))
    if report is None:
        sys.exit(143)  # as a process that SIGTERM ends
    lines = table_of(report)
    show(lines, report["title"])
    if warning := not_fitted(report):
        logging.getLogger("mam2").warning(warning)
    write_text(command.out / "table.md", as_markdown(lines))
    page = write_study_report(report, command.out, chance=1 / report["num_classes"])
    finished(f"{command.out}/study.json, table.md, {page.name}", start)


def compare(command: CompareCommand) -> None:
    """Compares runs."""
    start = time.monotonic()
    lines = compared(command.runs)
    show(lines, f"{len(command.runs)} runs")
    if command.out:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        if command.out.suffix == ".html":
            write_comparison(command.out, lines, command.runs)
        else:
            write_text(command.out, as_text(lines, command.out.suffix))
        finished(str(command.out), start)


def write_comparison(file: Path, lines: list[list[str]], runs: Sequence[Path]) -> None:
    """Writes a page with the table of runs."""
    words = "Means over seeds; shares in per cent. The difference is from the first line."
    write_report(
        file,
        title=f"Comparison of {len(runs)} run{'' if len(runs) == 1 else 's'}",
        summary_html=f"<p>{words}</p>{html_table(lines)}",
        scores=[],
        charts=[],
        sheets=[],
        facts={"command": typed(), "runs": ", ".join(map(str, runs))},
        commands=["mam2 evaluate RUN --data.root TEST", "mam2 compare RUN RUN --out compare.html"],
        chance=0.0,
    )


def show(lines: list[list[str]], title: str) -> None:
    """Prints a table."""
    table = Table(*lines[0], title=title)
    table.columns[0].overflow = "fold"  # a name that is cut short says nothing
    for line in lines[1:]:
        table.add_row(*(printable(escape(cell)) for cell in line))
    tables.show(table)
