"""The README's figure: top-1 of each cell of finished studies, a panel for each, seeds as dots and means as lines.

python benchmarks/plot_studies.py "Rendered motion=rendered/study.json" "Lips=lips/study.json" --out docs/flash.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; cells of one name stand in one row of all panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", metavar="TITLE=FILE", help="study.json files; one title, one panel")
    parser.add_argument("--test", default="finetune", help="of the study's tests (default finetune)")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    options = parser.parse_args(arguments)
    studies: dict[str, list[dict[str, Any]]] = {}
    for argument in options.studies:
        title, _, file = argument.partition("=")
        studies.setdefault(title, []).append(json.loads(Path(file).read_text()))
    values_of: dict[str, dict[str, dict[str, float]]] = {}
    for title, found in studies.items():
        cells = [cell for study in found for cell in study["cells"] if options.test in cell]  # others failed
        values_of[title] = {cell["cell"]: cell[options.test]["values"] for cell in cells}
    names = list(dict.fromkeys(name for shown in values_of.values() for name in shown))
    size = (4 + 3 * len(studies), 0.8 + 0.4 * len(names))
    figure, panels = pyplot.subplots(1, len(studies), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel, (title, values_by_cell) in zip(panels[0], values_of.items(), strict=True):
        for row, name in enumerate(names):
            if values := [100 * value for value in values_by_cell.get(name, {}).values()]:
                mean = sum(values) / len(values)
                panel.plot(values, [row] * len(values), "o", color="C0" if row == 0 else "C7", alpha=0.6)
                panel.plot([mean, mean], [row - 0.3, row + 0.3], color="black")
                panel.annotate(f"{mean:.1f}", (mean, row - 0.36), ha="center", fontsize=8)
        panel.axvline(100 / studies[title][0]["num_classes"], color="C3", linestyle=":", label="chance")
        panel.set(title=title, xlabel="top-1, %", xlim=(0, 100), ylim=(len(names) - 0.5, -0.8))
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].legend(loc="lower right")
    figure.savefig(options.out, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
