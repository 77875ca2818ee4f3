"""A study's HTML report and its plots: accuracy against epochs, operations and seconds."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from mam2.config import to_json
from mam2.pictures.charts import COLORS, add_line, chart, shorten
from mam2.pictures.page import command_line
from mam2.pictures.score_page import ScoreRow, write_report
from mam2.studies.study import StudySettings
from mam2.studies.summary import not_fitted, table_of


def write_study_report(report: dict[str, Any], out: Path, *, chance: float) -> Path:
    """Writes report.html from the contents of a study.json."""
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
    settings = report["settings"]
    usual = to_json(StudySettings())
    changed = {name: value for name, value in settings.items() if value != usual.get(name)}
    own = {"unlabelled": "VIDEOS", "train": "LABELLED", "test": "TEST", "out": "MY_STUDY"}
    splits = {"unlabelled_split": "", "train_split": "", "test_split": ""}
    colors = {name: COLORS[n % len(COLORS)] for n, name in enumerate(dict.fromkeys(x["cell"] for x in report["cells"]))}
    legend = (f'<b style="color:{color}">●</b> {escape(shorten(name, 60))}' for name, color in colors.items())
    note = "<br>".join(["A dot for each seed; lines join the means, dotted where nothing is pre-trained.", *legend])
    path = out / "report.html"
    write_report(
        path,
        title=report["title"],
        summary_html=html_table(table_of(report)) + _warnings(report),
        scores=scores,
        charts=[("Top-1 against what pre-training costs", note, study_charts(report, colors))],
        sheets=[],
        facts={
            "command": command_line(["study", report["study"]], {**changed, "out": out}),
            **{name: words for name, value in {**settings, **report["machine"]}.items() if (words := _words(value))},
        },
        commands=[command_line(["study", report["study"]], {**changed, **splits, **own})],
        chance=chance,
    )
    return path


def html_table(lines: list[list[str]]) -> str:
    """A table with the first line as its head."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _warnings(report: dict[str, Any]) -> str:
    errors = {f"Failed: {line['cell']}: {error}" for line in report["cells"] for error in line["errors"]}
    return "".join(f"<p>{escape(words)}</p>" for words in [*sorted(errors), not_fitted(report)] if words)


def study_charts(report: dict[str, Any], colors: dict[str, str]) -> list[go.Figure]:
    """Charts for each test: top-1 against epochs, PFLOP and minutes; `colors` are by the cells' names."""
    figures = []
    axes = (("epochs", 1.0, "epochs"), ("tflop", 1e3, "PFLOP"), ("seconds", 60.0, "minutes"))
    for test in report["settings"]["tests"]:
        for field, unit, label in axes:
            figure = chart(f"top-1, %: {test}", below=label)
            figure.update_xaxes(rangemode="tozero")  # equal budgets are equal, whatever the last step adds
            figures.append(figure)
            for name, color in colors.items():
                lines = [line for line in report["cells"] if line["cell"] == name and line[test]["values"]]
                if lines and not lines[-1]["steps"]:
                    figure.add_hline(100 * lines[-1][test]["mean"], line={"color": color, "dash": "dot"})
                elif lines:
                    places = [line[field] / unit for line in lines]
                    means = [100 * line[test]["mean"] for line in lines]
                    add_line(figure, list(zip(places, means, strict=True)), name=name, color=color)
                    seeds = [
                        (x, 100 * y)
                        for x, line in zip(places, lines, strict=True)
                        for y in line[test]["values"].values()
                    ]
                    x, y = zip(*seeds, strict=True)
                    marker = {"color": color, "size": 8, "opacity": 0.6}
                    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, showlegend=False))
    return figures


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
