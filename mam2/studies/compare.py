"""A table of finished runs of one kind: those that differ in their seeds only make a line."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from mam2.config import UserError
from mam2.files import write_text
from mam2.pictures.score_page import write_report
from mam2.studies.results import Result, read_results
from mam2.studies.study_page import html_table
from mam2.studies.summary import interval, percent, table_text

NUMBERS = ("R²", "mean error")
"""Figures that are not in per cent."""


def compared(runs: Sequence[Path]) -> list[list[str]]:
    """The lines of the table as text, the first with the names of the columns.

    The first figure has its standard deviation over seeds, and its difference from the first line: the mean over pairs
    of runs of the same seed with its 95 % interval; without one where the seeds do not pair.

    Raises:
        UserError: no run, one that is not finished, or runs of several kinds.
    """
    if not runs:
        raise UserError("Name the runs to compare: mam2 compare RUN [RUN ...].")
    results = [result for run in runs for result in read_results(run)]
    check_alike(results)
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.settings, []).append(result)
    lines = list(groups.values())
    figures = list(dict.fromkeys(name for result in results for name in result.figures))
    costs = list(dict.fromkeys(name for result in results for name in result.cost))
    spread = ["sd", "difference"] if figures else []
    table = [["run", "starts from", "seeds", *figures[:1], *spread, *figures[1:], *costs]]
    for name, line in zip(names_of([line[0].run for line in lines]), lines, strict=True):
        cells = [name, line[0].start, ", ".join(map(str, seeds_of(line)))]
        for figure in figures:
            values = figure_by_run(line, figure)
            cells.append(text_of(figure, statistics.fmean(values)) if values else "-")
            if figure == figures[0]:
                cells.append(text_of(figure, statistics.stdev(values)) if len(values) > 1 else "-")
                cells.append(difference(figure, line, lines[0]))
        for column in costs:
            spent = [result.cost[column] for result in line if column in result.cost]
            cells.append(number(statistics.fmean(spent)) if spent else "-")
        table.append(cells)
    return table


def check_alike(results: Sequence[Result]) -> None:
    """Raises UserError if the runs are of several kinds, or were judged on different videos."""
    for field in ("kind", "judged"):
        found: dict[str, list[str]] = {}
        for result in results:
            if words := getattr(result, field):
                found.setdefault(words, []).append(str(result.run))
        if len(found) > 1:
            listed = "; ".join(f"{', '.join(runs)} ({words})" for words, runs in found.items())
            raise UserError(
                f"These runs can't be compared: {listed}. Give runs of one kind, judged on the same videos."
            )


def names_of(runs: Sequence[Path]) -> list[str]:
    """The paths of runs, without the folders that all of them have in common."""
    paths = [os.path.abspath(run) for run in runs]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def seeds_of(line: Sequence[Result]) -> list[int]:
    """Seeds that tell the runs of a line apart: their own; if these repeat, those of their pre-trainings."""
    own = [result.seed for result in line]
    starts = [result.start_seed for result in line if result.start_seed is not None]
    return starts if len(set(own)) < len(own) == len(starts) else own


def figure_by_run(line: Sequence[Result], figure: str) -> list[float]:
    """A figure of each run of a line; none if one of them lacks it."""
    values = [result.figures[figure] for result in line if figure in result.figures]
    return values if len(values) == len(line) else []


def difference(figure: str, line: Sequence[Result], first: Sequence[Result]) -> str:
    """Difference of a line's figure from the first line's, paired by seed if each of its seeds is there once."""
    values = figure_by_run(line, figure)
    reference = figure_by_run(first, figure)
    if line is first or not values or not reference:
        return "-"
    seeds = seeds_of(line)
    by_seed = dict(zip(seeds_of(first), reference, strict=True))
    if len(by_seed) == len(first) and len(set(seeds)) == len(seeds) and set(seeds) <= by_seed.keys():
        pairs = [value - by_seed[seed] for seed, value in zip(seeds, values, strict=True)]
        return text_of(figure, statistics.fmean(pairs), interval(pairs), signed=True)
    return text_of(figure, statistics.fmean(values) - statistics.fmean(reference), signed=True)


def text_of(figure: str, value: float, half: float | None = None, *, signed: bool = False) -> str:
    """A figure ± half its interval: shares in per cent, others as they are."""
    if figure not in NUMBERS:
        return percent(value, half, signed=signed)
    text = number(value, sign="+" if signed else "")
    return text if half is None else f"{text} ± {number(half)}"


def number(value: float, *, sign: str = "") -> str:
    """Three digits, or whole numbers from 100 on."""
    return f"{value:{sign}.0f}" if abs(value) >= 100 else f"{value:{sign}.3g}"


def write_comparison(file: Path, lines: list[list[str]], runs: Sequence[Path], *, typed: str) -> None:
    """Writes the table of runs, as `compared` returns it, and the command that was typed: .md, .csv or .html."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix != ".html":
        write_text(file, table_text(lines, file.suffix))
        return
    words = "Means over seeds; shares in per cent. The difference is from the first line."
    write_report(
        file,
        title=f"Comparison of {len(runs)} run{'' if len(runs) == 1 else 's'}",
        summary_html=f"<p>{words}</p>{html_table(lines)}",
        scores=[],
        charts=[],
        sheets=[],
        facts={"command": typed, "runs": ", ".join(map(str, runs))},
        commands=["mam2 evaluate RUN --data.root TEST", "mam2 compare RUN RUN --out compare.html"],
        chance=0.0,
    )
