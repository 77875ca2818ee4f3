"""`mam2 study`."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from tyro.conf import arg

from mam2.cli import tables
from mam2.cli.help import options_of, start_page
from mam2.cli.parse import Flat, finished, first_word, parse
from mam2.config import UserError, check
from mam2.files import write_text
from mam2.studies.builtin import STUDIES, get_study
from mam2.studies.conduct import run_study
from mam2.studies.study import StudySettings
from mam2.studies.study_page import write_study_report
from mam2.studies.summary import as_markdown, not_fitted, table_of

Jobs = Annotated[int, Ge(1), arg(help="number of runs side by side")]
Shard = Annotated[str, arg(help="i/n: only every n-th run, from number i, counted from 0")]


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """Run a comparison: pre-train every cell, fine-tune and probe it, test it; or resume it."""

    config: Annotated[StudySettings, Flat] = field(default_factory=StudySettings)
    out: Annotated[Path, arg(help="folder of the study; an interrupted study resumes there")]
    jobs: Jobs = 1
    shard: Shard = "0/1"

    def __post_init__(self) -> None:
        check(self, "")

    def part(self) -> tuple[int, int]:
        """The numbers i and n of the shard; UserError for another form, or numbers outside their range."""
        i, _, n = self.shard.partition("/")
        if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
            raise UserError(f"--shard is {self.shard!r}; accepted: i/n with i from 0 to n - 1, such as 0/4.")
        return int(i), int(n)


def main(verb: str, arguments: list[str]) -> None:
    """Runs a study."""
    name, rest = first_word(verb, arguments, names=f"a study ({', '.join(STUDIES)})", page=first_page)
    study = get_study(name)
    command = parse(StudyCommand, verb, rest, first=name)
    shard = command.part()
    report = run_study(name, study, command.config, command.out, jobs=command.jobs, shard=shard)
    if report is None:
        sys.exit(143)  # as a process that SIGTERM ends
    lines = table_of(report)
    tables.print_lines(lines, report["title"])
    if warning := not_fitted(report):
        logging.getLogger("mam2").warning(warning)
    write_text(command.out / "table.md", as_markdown(lines))
    page = write_study_report(report, command.out, chance=1 / report["num_classes"])
    finished(f"{command.out}/study.json, table.md, {page.name}")


def first_page() -> str:
    """The help page without a study."""
    starts = {name: study.title for name, study in STUDIES.items()}
    return start_page("study", "Studies:", starts, options_of(StudyCommand))
