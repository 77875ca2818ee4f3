"""A study's HTML report and its plots: accuracy against epochs, operations and seconds."""

from __future__ import annotations

import statistics
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mam2.files import written_whole
from mam2.pictures.charts import plain_axes, shorten
from mam2.pictures.report import ScoreRow, write_report
from mam2.studies.summary import table_of


def write_study_report(report: dict[str, Any], out: Path, *, chance: float) -> Path:
    """Writes report.html, and study.png with the plots, from the contents of a study.json."""
    tests = report["settings"]["tests"]
    scores = [
        ScoreRow(
            name=f"{line['cell']}, {line['share']:g} of the budget: {test}",
            values=tuple(line[test]["values"].values()),
            note=f"paper: {line['paper']}" if line["paper"] else "",
        )
        for test in tests
        for line in report["cells"]
        if line[test]["values"]
    ]
    plot = out / "study.png"
    with written_whole(plot) as part:
        plots(report).savefig(part, format="png", facecolor="white")
    path = out / "report.html"
    write_report(
        path,
        title=report["title"],
        summary_html=html_table(table_of(report)) + _failures(report),
        scores=scores,
        curves=[],
        sheets=[("Top-1 against what pre-training costs; a dot for each seed, lines join the means.", plot)],
        facts={name: str(value) for name, value in {**report["settings"], **report["machine"]}.items() if value != ""},
        chance=chance,
    )
    return path


def write_table_page(path: Path, lines: list[list[str]], *, title: str) -> None:
    """Writes a table as a page of its own."""
    table = html_table(lines)
    write_report(path, title=title, summary_html=table, scores=[], curves=[], sheets=[], facts={}, chance=0.0)


def html_table(lines: list[list[str]]) -> str:
    """A table with the first line as its head."""
    head, *rows = [
        "".join(f"<t{'h' if n == 0 else 'd'}>{escape(cell)}</t{'h' if n == 0 else 'd'}>" for cell in line)
        for n, line in enumerate(lines)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _failures(report: dict[str, Any]) -> str:
    errors = {f"{line['cell']}: {error}" for line in report["cells"] for error in line["errors"]}
    return "".join(f"<p>Failed: {escape(error)}</p>" for error in sorted(errors))


def plots(report: dict[str, Any]) -> Figure:
    """A row of panels for each test: top-1 against epochs, PFLOP and minutes."""
    tests = report["settings"]["tests"]
    figure = Figure(figsize=(12, 3.6 * len(tests)), dpi=120, layout="constrained")
    panels = figure.subplots(len(tests), 3, sharey="row", squeeze=False)
    axes_of = (("epochs", 1.0, "epochs"), ("tflop", 1e3, "PFLOP"), ("seconds", 60.0, "minutes"))
    names = list(dict.fromkeys(line["cell"] for line in report["cells"]))
    for row, test in enumerate(tests):
        for axes, (field, unit, label) in zip(panels[row], axes_of, strict=True):
            for number, name in enumerate(names):
                lines = [line for line in report["cells"] if line["cell"] == name and line[test]["values"]]
                colour = f"C{number % 10}"
                if lines and not lines[-1]["steps"]:
                    axes.axhline(100 * lines[-1][test]["mean"], color=colour, linestyle=":", label=shorten(name, 28))
                    continue
                places = [line[field] / unit for line in lines]
                means = [100 * statistics.fmean(line[test]["values"].values()) for line in lines]
                axes.plot(places, means, color=colour, label=shorten(name, 28))
                for place, line in zip(places, lines, strict=True):
                    values = [100 * value for value in line[test]["values"].values()]
                    axes.plot([place] * len(values), values, "o", color=colour, alpha=0.6)
            axes.set_xlabel(label)
            axes.set_xlim(left=0)  # equal budgets are equal, whatever the last step adds
            plain_axes(axes)
        panels[row][0].set_ylabel(f"top-1, %: {test}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure
