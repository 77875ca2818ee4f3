"""Results over seeds: means, 95 % intervals, paired differences; as a table in a terminal, Markdown or CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from mam2.config import UserError
from mam2.studies.study import Study, StudySettings

# Training accuracy at the end of fine-tuning. VideoMAE on lips, with less, gained 43 points by longer fine-tuning.
FITTED = 0.8
# Student's t, 97.5 %, for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    degrees = len(values) - 1
    t = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.5 / degrees
    return t * statistics.stdev(values) / math.sqrt(len(values))


def summarised(study: Study, settings: StudySettings, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summary of each cell and share of the budget: values by seed, mean, interval, difference from the first cell.

    Differences are paired by seed, at the same share. Values are top-1 in [0, 1]; training_accuracy, the mean over
    seeds, too.
    """
    by_key = {(job["cell"], job["share"], job["seed"]): job for job in jobs}
    reference = study.cells[0].name
    lines = []
    for cell in study.cells:
        for share in study.shares:
            found = {seed: by_key[key] for seed in settings.seeds if (key := (cell.name, share, seed)) in by_key}
            if not found:
                continue
            done = {seed: job for seed, job in found.items() if "error" not in job}
            line: dict[str, Any] = {"cell": cell.name, "share": share, "paper": cell.paper}
            line["errors"] = [job["error"] for job in found.values() if "error" in job]
            for name in ("steps", "epochs", "tflop", "seconds"):
                line[name] = statistics.fmean(job[name] for job in done.values()) if done else None
            fit = [job["training_accuracy"] for job in done.values() if "training_accuracy" in job]
            line["training_accuracy"] = statistics.fmean(fit) if fit else None
            for test in settings.tests:
                values = {seed: job[test] for seed, job in done.items() if test in job}
                others = {seed: by_key.get((reference, share, seed), {}).get(test) for seed in values}
                differences = [values[seed] - other for seed, other in others.items() if other is not None]
                line[test] = {
                    "values": values,
                    "mean": statistics.fmean(values.values()) if values else None,
                    "interval": interval(list(values.values())),
                    "difference": statistics.fmean(differences) if differences and cell.name != reference else None,
                    "difference_interval": interval(differences) if cell.name != reference else None,
                }
            lines.append(line)
    return lines


def percent(mean: float | None, half: float | None, *, signed: bool = False) -> str:
    """`61.2 ± 0.8`, in per cent; "-" for none."""
    if mean is None:
        return "-"
    text = f"{100 * mean:+.1f}" if signed else f"{100 * mean:.1f}"
    return text if half is None else f"{text} ± {100 * half:.1f}"


def table_of(report: dict[str, Any]) -> list[list[str]]:
    """The lines of a study.json as text, the first with the names of the columns."""
    tests = report["settings"]["tests"]
    first = report["cells"][0]["cell"] if report["cells"] else ""
    fit = any(line.get("training_accuracy") is not None for line in report["cells"])
    head = ["cell", "epochs", "PFLOP", "minutes", *(c for t in tests for c in (t, f"{t} - {first}"))]
    lines = [[*head, *["training accuracy"] * fit, "paper"]]
    for line in report["cells"]:
        cost = ["-"] * 3
        if line["steps"]:
            cost = [f"{line['epochs']:.3g}", f"{line['tflop'] / 1e3:.3g}", f"{line['seconds'] / 60:.3g}"]
        results = []
        for test in tests:
            found = line[test]
            results += [
                percent(found["mean"], found["interval"]),
                percent(found["difference"], found["difference_interval"], signed=True),
            ]
        if line["errors"]:
            results[0] += f" ({len(line['errors'])} failed)"
        if fit:
            results.append(percent(line["training_accuracy"], None))
        lines.append([line["cell"], *cost, *results, line["paper"] or "-"])
    return lines


def not_fitted(report: dict[str, Any]) -> str:
    """A warning that names the cells of a study.json that do not fit their training clips; "" for none."""
    accuracy = {line["cell"]: line["training_accuracy"] for line in report["cells"]}  # with the whole budget
    names = [cell for cell, value in accuracy.items() if value is not None and value < FITTED]
    if not names:
        return ""
    return (
        f"Fine-tuning is short: at its end less than {FITTED:.0%} of the training clips are right for "
        f"{', '.join(names)}. More --finetune-epochs may change the order; the same command and --out keep the "
        "pre-trained encoders."
    )


def as_markdown(lines: list[list[str]]) -> str:
    """A table for a document."""
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]]) + "\n"


def as_csv(lines: list[list[str]]) -> str:
    """A table for a spreadsheet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def table_text(lines: list[list[str]], suffix: str) -> str:
    """A table for a file that ends in .md or .csv; UserError for another ending."""
    formats = {".md": as_markdown, ".csv": as_csv}
    if suffix not in formats:
        raise UserError(f"A table can't be written as {suffix!r}; accepted: {', '.join([*formats, '.html'])}.")
    return formats[suffix](lines)
