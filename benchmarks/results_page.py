"""Tables of docs/results.md and README.md, computed from the studies that benchmarks/results/matrix.csv lists.

python benchmarks/results_page.py            # writes the table into docs/results.md
python benchmarks/results_page.py --readme   # prints README's table; writes it, too, where README has the markers
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mam2.studies.summary import interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MARGIN = 5.0
"""Points of top-1 within which two methods are called equal."""

COLUMNS = {
    "flash": "MAM² flash",
    "mam2": "MAM²",
    "lite": "MAM² lite",
    "videomae": "VideoMAE",
    "on_flash": "VideoMAE's loss, flash's encoder",
    "st_mae": "ST-MAE",
    "v_jepa": "V-JEPA",
    "maskfeat": "MaskFeat",
    "random_flash": "random, flash's encoder",
    "random_mam2": "random, MAM²'s encoder",
    "random_videomae": "random, VideoMAE's encoder",
}
"""Methods, and random weights of their encoders."""
CELLS = {
    "MAM² flash": "flash",
    "MAM²": "mam2",
    "MAM² lite": "lite",
    "VideoMAE": "videomae",
    "VideoMAE, flash's encoder": "on_flash",
    "ST-MAE": "st_mae",
    "V-JEPA": "v_jepa",
    "MaskFeat": "maskfeat",
    "from scratch, flash's encoder": "random_flash",
    "from scratch, MAM²'s encoder": "random_mam2",
    "from scratch, joint attention": "random_videomae",
    "from scratch, VideoMAE's encoder": "random_videomae",
}
"""Column of each cell of a study; what "from scratch" alone means depends on the study."""
FROM_SCRATCH = {"fig2": "random_mam2", "flops": "random_videomae"}
OWN_RANDOM = {
    "flash": "random_flash",
    "on_flash": "random_flash",
    "mam2": "random_mam2",
    "videomae": "random_videomae",
    "st_mae": "random_videomae",
    "v_jepa": "random_videomae",
    "maskfeat": "random_videomae",
}
"""Random weights of each method's own encoder."""

README_ROWS = {
    "rendered motion": "4,000 steps; fine-tuned, 60 epochs",
    "lips": "2,000 steps; fine-tuned, 48 epochs",
    "dark videos": "2,000 steps; fine-tuned, 40 epochs",
}
"""Data sets of README's table, and their protocols: Fig. 2 of the paper, as many steps for each method."""

README_NOTE = """\
Three seeds. **Bold**: ahead of VideoMAE, the 95 % interval of the paired difference excludes zero. ↑: ahead of random
weights of the same encoder. On lips flash has 15 % fewer steps; only its encoder, which was chosen on these test clips,
fits the training clips."""

Scores = dict[int, float]  # top-1 in per cent by seed
Verdict = Literal["ahead", "behind", "equal", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: one data set, one protocol, one test.

    Attributes:
        data: name of the data set.
        protocol: length of pre-training, and the test.
        study: folder of its first file in benchmarks/results.
        scores: top-1 in per cent by seed, for each column that has been measured.
    """

    data: str
    protocol: str
    study: str
    scores: dict[str, Scores]

    def difference(self, column: str, reference: str) -> tuple[float, float] | None:
        """Mean of the differences of two columns, paired by seed, and half its 95 % interval.

        None where a column is missing or fewer than two seeds are common.
        """
        one, other = self.scores.get(column, {}), self.scores.get(reference, {})
        paired = [one[seed] - other[seed] for seed in one if seed in other]
        half = interval(paired)
        return None if half is None else (sum(paired) / len(paired), half)

    def verdict(self, column: str, reference: str) -> Verdict:
        """How a column compares with another: ahead or behind where the interval excludes zero."""
        found = self.difference(column, reference)
        if found is None:
            return "inconclusive"
        mean, half = found
        if abs(mean) > half:
            return "ahead" if mean > 0 else "behind"
        return "equal" if abs(mean) + half <= MARGIN else "inconclusive"

    def cell(self, column: str) -> str:
        """Mean with its marks: bold or italic against VideoMAE, an arrow against the encoder's own random weights."""
        if column not in self.scores:
            return ""
        values = self.scores[column].values()
        text = f"{sum(values) / len(values):.1f}"
        marks = {"ahead": f"**{text}**", "behind": f"*{text}*", "equal": f"{text} =", "inconclusive": text}
        text = text if column == "videomae" else marks[self.verdict(column, "videomae")]
        arrows = {"ahead": " ↑", "behind": " ↓", "equal": "", "inconclusive": ""}
        return text + arrows[self.verdict(column, OWN_RANDOM.get(column, ""))]

    def num_seeds(self) -> str:
        """Number of seeds, as a range where columns differ."""
        numbers = [len(values) for values in self.scores.values()]
        low, high = min(numbers), max(numbers)
        return str(high) if low == high else f"{low}–{high}"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="README's table in place of the page's")
    options = parser.parse_args(arguments)
    page, table = (README, readme_table()) if options.readme else (PAGE, matrix())
    if options.readme:
        print(table)
    text = page.read_text("utf-8")
    if BEGIN in text:
        page.write_text(with_table(text, table), "utf-8")


def with_table(page: str, table: str) -> str:
    """A page with the text between its two markers replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def rows() -> list[Row]:
    """The lines of benchmarks/results/matrix.csv with what their files hold.

    A column comes from the first file that has it. Where names of columns follow a path, only these are taken from it.
    """
    found = []
    with (RESULTS / "matrix.csv").open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            scores: dict[str, Scores] = {}
            for entry in line["files"].split(";"):
                file, *wanted = entry.split()
                measured = _measured(file, line["test"], float(line["share"]))
                for column in wanted or measured:
                    scores.setdefault(column, measured[column])
            study = line["files"].split("/")[0]
            found.append(Row(data=line["data"], protocol=line["protocol"], study=study, scores=scores))
    return found


def matrix() -> str:
    """The table of docs/results.md, and how many comparisons its marks stand for."""
    lines = rows()
    pairs = [(row, column, "videomae") for row in lines for column in COLUMNS if column != "videomae"]
    pairs += [(row, column, random) for row in lines for column, random in OWN_RANDOM.items()]
    num = sum(row.difference(column, reference) is not None for row, column, reference in pairs)
    cells = [[row.data, row.protocol, row.num_seeds(), *map(row.cell, COLUMNS), row.study] for row in lines]
    note = f"The marks come from {num} comparisons: chance alone would give about {round(num / 20)} of them."
    return "\n".join([*_table(["data", "protocol", "seeds", *COLUMNS.values(), "study"], cells), "", note])


def readme_table() -> str:
    """README's table: fine-tuned top-1 of five methods on three data sets, and what pre-training costs."""
    by_place = {(row.data, row.protocol): row for row in rows()}
    columns = {column: COLUMNS[column] for column in ("flash", "mam2", "videomae", "st_mae")}
    columns["random_flash"] = "random weights, flash's encoder"
    cells = [[data, *map(by_place[data, protocol].cell, columns)] for data, protocol in README_ROWS.items()]
    tflop = _tflop("fig2_rendered/epochs_60.json")
    costs = [f"{tflop[column] / tflop['videomae']:.2g}" for column in columns]
    lines = _table(["fine-tuned top-1, %", *columns.values()], [*cells, ["operations, VideoMAE = 1", *costs]])
    return "\n".join([*lines, "", README_NOTE])


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)]


@cache
def _results(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / file).read_text("utf-8"))


def _column(cell: str, study: str) -> str | None:
    return FROM_SCRATCH.get(study) if cell == "from scratch" else CELLS.get(cell.replace(", the paper's step", ""))


def _measured(file: str, test: str, share: float) -> dict[str, Scores]:
    """Scores of one test by column; random weights have no share of the budget."""
    results = _results(file)
    found: dict[str, Scores] = {}
    for job in results["jobs"]:
        column = _column(job["cell"], job.get("study", results.get("study", "")))
        in_share = job.get("share", 1.0) == share or job["cell"].startswith("from scratch")
        if column and in_share and test in job:
            found.setdefault(column, {})[job["seed"]] = 100 * job[test]
    return found


def _tflop(file: str) -> dict[str, float]:
    """Operations of the whole pre-training by column."""
    results = _results(file)
    whole = {_column(job["cell"], results["study"]): job["tflop"] for job in results["jobs"] if job["share"] == 1}
    return {column: tflop for column, tflop in whole.items() if column}


if __name__ == "__main__":
    main()
