"""The figures of the documents, from study.json files: top-1 of each cell, or top-1 against what pre-training costs.

python benchmarks/plot_studies.py "Rendered motion=rendered/study.json" "Lips=lips/study.json" --out rows.png
python benchmarks/plot_studies.py "Rendered motion=fig2/study.json" --against epochs minutes --out lines.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COSTS = {"epochs": ("epochs", 1.0), "TFLOP": ("tflop", 1.0), "minutes": ("seconds", 60.0)}
"""Of pre-training: the field of study.json, and what of it makes one."""
TESTS = {"finetune": "fine-tuned", "ridge": "ridge regression, frozen", "linear": "linear probe", "knn": "k-NN"}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; studies of one title share a panel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", metavar="TITLE=FILE", help="study.json files; one title, one panel")
    parser.add_argument("--tests", nargs="+", choices=TESTS, default=["finetune"], help="of the studies")
    parser.add_argument("--against", nargs="+", choices=COSTS, default=[], help="lines against these, not a row a cell")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args(arguments)
    studies: dict[str, dict[str, Any]] = {}
    for argument in options.studies:
        title, _, file = argument.partition("=")
        found = json.loads(Path(file).read_text())
        studies.setdefault(title, found | {"cells": []})["cells"] += found["cells"]
    if options.against:
        figure = draw_lines(studies, options.tests, options.against)
    else:
        figure = draw_rows(studies, options.tests)
    figure.savefig(options.out, dpi=130)
    pyplot.close(figure)


def draw_rows(studies: dict[str, dict[str, Any]], tests: list[str]) -> Figure:
    """A panel for each study and test, a row for each cell: seeds as dots, means as lines."""
    panels_of = [(title, test) for title in studies for test in tests]
    values_of = {
        (title, test): {cell["cell"]: cell[test]["values"] for cell in studies[title]["cells"] if test in cell}
        for title, test in panels_of
    }
    names = list(dict.fromkeys(name for shown in values_of.values() for name in shown))
    size = (4 + 3 * len(panels_of), 0.8 + 0.4 * len(names))
    figure, panels = pyplot.subplots(1, len(panels_of), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel, (title, test) in zip(panels[0], panels_of, strict=True):
        for row, name in enumerate(names):
            if values := [100 * value for value in values_of[title, test].get(name, {}).values()]:
                mean = sum(values) / len(values)
                panel.plot(values, [row] * len(values), "o", color="C0" if row == 0 else "C7", alpha=0.6)
                panel.plot([mean, mean], [row - 0.3, row + 0.3], color="black")
                panel.annotate(f"{mean:.1f}", (mean, row - 0.36), ha="center", fontsize=8)
        panel.axvline(100 / studies[title]["num_classes"], color="C3", linestyle=":", label="chance")
        panel.set(title=_title(title, test, tests), xlabel="top-1, %", xlim=(0, 100), ylim=(len(names) - 0.5, -0.8))
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].legend(loc="lower right")
    return figure


def draw_lines(studies: dict[str, dict[str, Any]], tests: list[str], against: list[str]) -> Figure:
    """A row of panels for each study and test, a column for each cost: seeds as dots, lines through the means.

    What is not pre-trained is a dashed line across.
    """
    rows = [(title, test) for title in studies for test in tests]
    names = dict.fromkeys(cell["cell"] for study in studies.values() for cell in study["cells"])
    colors = {name: f"C{n}" for n, name in enumerate(names)}
    size = (4.2 * len(against) + 2.2, 3.2 * len(rows))
    figure, panels = pyplot.subplots(len(rows), len(against), figsize=size, squeeze=False, layout="constrained")
    for (title, test), row in zip(rows, panels, strict=True):
        for cost, panel in zip(against, row, strict=True):
            cells = [cell for cell in studies[title]["cells"] if test in cell]
            for name, color in colors.items():
                _line(panel, [cell for cell in cells if cell["cell"] == name], test, cost, color)
            panel.axhline(100 / studies[title]["num_classes"], color="black", linestyle=":", linewidth=1)
            panel.set(title=_title(title, test, tests), xlabel=f"{cost} of pre-training", ylabel="top-1, %")
            panel.set_xlim(left=0)
            panel.grid(alpha=0.3)
    handles = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    chance = Line2D([], [], color="black", linestyle=":", label="chance")
    figure.legend(handles=[*handles, chance], loc="outside right center")
    return figure


def _line(panel: Axes, cells: list[dict[str, Any]], test: str, cost: str, color: str) -> None:
    """A line through the shares of the budget of one cell."""
    field, unit = COSTS[cost]
    points = [(cell[field] / unit, 100 * cell[test]["mean"]) for cell in cells if cell[test]["values"]]
    if points and not cells[-1]["steps"]:
        panel.axhline(points[-1][1], color=color, linestyle="--")
    elif points:
        panel.plot(*zip(*points, strict=True), color=color)
        for (place, _), cell in zip(points, cells, strict=True):
            values = [100 * value for value in cell[test]["values"].values()]
            panel.plot([place] * len(values), values, "o", color=color, alpha=0.6, markersize=4)


def _title(title: str, test: str, tests: list[str]) -> str:
    return title if len(tests) == 1 else f"{title}: {TESTS[test]}"


if __name__ == "__main__":
    main()
