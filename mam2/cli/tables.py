"""Tables that the commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mam2.config import printable
from mam2.terminal import say, width_of, wrapped, wrapped_command

if TYPE_CHECKING:  # no command needs all of them
    from mam2.data.prepare.manifest import Report
    from mam2.evaluate import Evaluation
    from mam2.recipes.scales import ScaleName
    from mam2.train.pretrain import Pretrain
    from mam2.use.features_file import Place
    from mam2.use.search import Hit, Pair

UNLIMITED = 10_000  # columns, where nobody reads along


def print_table(table: Table, *notes: str, names: int = 0) -> None:
    """Prints a table, of escaped cells, and notes below it. No cell is cut: its end continues on the next line.

    Args:
        names: number of columns, from the left, whose names will be typed again: these stay on a line if they can.
    """
    width = width_of(sys.stdout)
    for number, column in enumerate(table.columns):
        column.overflow = "fold"
        column.no_wrap = number < names
    Console(width=width or UNLIMITED).print(table)
    for note in notes:
        say(wrapped_command(note, width) if note.startswith("mam2 ") else wrapped(note, width))


def print_lines(lines: Sequence[Sequence[str]], title: str) -> None:
    """A table of runs or of cells: its first line is the head."""
    table = Table(*lines[0], title=title)
    for line in lines[1:]:
        table.add_row(*(printable(escape(cell)) for cell in line))
    print_table(table, names=1)


def print_evaluation(result: Evaluation, report: dict[str, Any]) -> None:
    """Accuracy of single views and of all; or the measures of other labels than one class each."""
    if "labels" in report:
        names = {"map": "mAP", "mae": "mean error", "rmse": "root of mean square", "r2": "R²"}
        found = {title: report[name] for name, title in names.items() if name in report}
        table = Table("views", *found, title=f"{report['num_videos']} videos")
        views = f"{report['clips']} × {report['crops']}"
        table.add_row(views, *("-" if value is None else f"{value:.4f}" for value in found.values()))
        print_table(table)
        return
    table = Table("views", "top-1", "top-5", title=f"{len(result.label_B)} videos")
    if result.single_view:
        table.add_row("1, on average", *(f"{share:.4f}" for share in result.single_view))
    table.add_row(f"{report['clips']} × {report['crops']}", f"{result.top(1):.4f}", f"{result.top(5):.4f}")
    print_table(table)


def print_probe(kind: str, report: dict[str, Any]) -> None:
    """Accuracy of a probe, and of the untrained encoder's."""
    table = Table("encoder", "top-1", "top-5", title=f"{kind}, {report['num_videos']} videos")
    for name, found in (("pre-trained", report), ("untrained", report["baseline"])):
        if found:
            table.add_row(name, f"{found['top1']:.4f}", f"{found['top5']:.4f}")
    print_table(table)


def print_hits(hits: list[Hit]) -> None:
    """The hits of a search."""
    table = Table("score", "video", "seconds", "label", "like the query's", title=f"{len(hits)} windows")
    for hit in hits:
        at = f"{hit.query.start:.2f} to {hit.query.end:.2f}"
        table.add_row(f"{hit.score:.4f}", *_cells(hit.found), printable(escape(hit.found.label or "-")), at)
    print_table(table)


def print_pairs(pairs: list[Pair], *, shown: int, threshold: float) -> None:
    """The first of the near-duplicates."""
    table = Table("score", "video", "seconds", "video", "seconds", title=f"{len(pairs)} pairs")
    for pair in pairs[:shown]:
        table.add_row(f"{pair.score:.4f}", *_cells(pair.one), *_cells(pair.other))
    more = [f"{len(pairs) - shown} more; --out hits.json writes all."] if len(pairs) > shown else []
    print_table(table, *(more if pairs else [f"No two windows reach {threshold:g}; see --threshold."]))


def _cells(place: Place) -> tuple[str, str]:
    return printable(escape(place.path)), f"{place.start:.2f} to {place.end:.2f}"


def print_prepared(report: Report) -> None:
    """Counts of a data set's videos, and their problems."""
    columns = ("split", "listed", "in the manifest", "Table 6", "seconds per video")
    table = Table(*columns, title=printable(escape(str(report.manifest))))
    for split in report.splits:
        table6 = f"{split.table6:,}" if split.table6 else "-"
        seconds = f"{split.mean_seconds:.1f}" if split.mean_seconds else "-"
        table.add_row(printable(split.split), f"{split.listed:,}", f"{split.written:,}", table6, seconds)
    problems = [
        f"{kind}: {problem.count:,}, such as {', '.join(problem.first)}"
        for kind in ("missing", "unreadable", "short", "extra", "duplicates")
        if (problem := getattr(report, kind)).count
    ]
    print_table(table, f"{report.num_classes} classes.", *problems, *report.notes)


def print_recipes() -> None:
    """All recipes."""
    from mam2.recipes import RECIPES
    from mam2.recipes.tables import tables_of

    table = Table("recipe", "paper's tables", "data", "model", "length")
    for name, recipe in RECIPES.items():
        length = str(recipe.make().loop.duration)
        table.add_row(name, ", ".join(tables_of(name)) or "-", recipe.data, recipe.model, length)
    note = "`mam2 recipes NAME` prints a recipe; `mam2 recipes --table 1d` a table of the paper, with costs."
    print_table(table, note, names=1)


def print_paper_table(number: str, tflops: float, scale: ScaleName) -> None:
    """The rows of a table of the paper with its numbers, estimated costs and commands."""
    from mam2 import cost
    from mam2.recipes import RECIPES
    from mam2.recipes.scales import scaled
    from mam2.recipes.tables import NUM_TRAINING_VIDEOS, get_table
    from mam2.targets.table import appearance_row
    from mam2.train.pretrain import Pretrain, trains_tokenizer

    paper = get_table(number)
    top5 = any(row.top5 for row in paper.rows)
    columns = ("row", "recipe", "paper's top-1", *["paper's top-5"] * top5, "TFLOP/clip", "GiB/clip", "GPU-hours")
    table = Table(*columns, title=f"Table {number}: {paper.title}")
    commands = []
    for row in paper.rows:
        config = RECIPES[row.recipe].make()
        estimates = ["-"] * 3
        at = "" if scale == "base" else f" --scale {scale}"
        if isinstance(config, Pretrain):
            config = scaled(config, scale)
            estimate = cost.remembered(config)
            num_videos = NUM_TRAINING_VIDEOS[RECIPES[row.recipe].data]
            hours = cost.gpu_hours(config, estimate, num_videos=num_videos, tflops=tflops)
            estimates = [f"{estimate.tflop:.3g}", f"{estimate.clip_gib:.2g}", f"{hours:,.3g}"]
            weights = appearance_row(config.targets.appearance).weights
            needs = config.objective.needs_appearance and weights != "none" and not trains_tokenizer(config)
            commands.append(
                f"mam2 pretrain {row.recipe}{at} --data.root DIR --out RUN{' --targets.file FILE' * needs}"
                f" && mam2 finetune {row.finetune}{at} --init RUN --data.root DIR --out TUNED"
                " && mam2 evaluate TUNED --data.root TEST"
            )
        else:
            commands.append(f"mam2 finetune {row.recipe}{at} --data.root DIR --out RUN --init PRETRAINED")
        table.add_row(row.name, row.recipe, row.paper or "-", *[row.top5 or "-"] * top5, *estimates)
    print_table(
        table,
        "Accuracy after fine-tuning as the paper has it; none has been rerun here. Estimates for pre-training: TFLOP "
        "with the targets; GiB kept for the backward pass in bf16, without the weights; hours of one GPU at "
        f"{tflops:g} TFLOP/s.",
        *dict.fromkeys(commands),
        names=2,
    )


def print_targets() -> None:
    """All appearance and motion targets."""
    from mam2.targets.table import APPEARANCE_TARGETS, MOTION_TARGETS

    table = Table("--targets.appearance", "what", "fed", "range", "K", "GFLOP/clip", "weights")
    for name, row in APPEARANCE_TARGETS.items():
        codes = str(row.num_outputs or ("-" if row.load is None else "yours"))
        table.add_row(name, row.title, f"{row.size}²", row.range, codes, f"{row.gflop:,}", row.weights)
    print_table(table, "For a clip of 16 frames of 224².", names=1)
    table = Table("--targets.motion", "what", "units", "numbers per patch of 16²", "GFLOP/clip")
    for name, motion in MOTION_TARGETS.items():
        numbers = str(motion.channels * 256) if motion.load else "2 per tube"
        table.add_row(name, motion.title, motion.units, numbers, f"{motion.gflop:,}")
    print_table(table, names=1)


def print_cost(recipe: str, config: Pretrain, *, device: str, utilisation: float, num_videos: int) -> None:
    """Cost of a pre-training: operations by part, hours, memory, disk."""
    from mam2 import cost

    on = cost.this_cpu(width=config.encoder.width) if device == "cpu" else cost.MACHINES[device]
    estimate = cost.estimate(config)
    table = Table("part of a step", "TFLOP per clip", "share", title=recipe)
    for name, tflop in sorted(cost.tflop_by_part(config).items(), key=lambda part: -part[1]):
        table.add_row(name, f"{tflop:.4g}", f"{tflop / estimate.tflop:.0%}")
    table.add_section()
    table.add_row("whole step", f"{estimate.tflop:.4g}", "")
    duration = config.loop.duration
    run = f"{on.title}: give --videos N, your number of training videos, for hours."
    if num_videos or duration.unit == "steps":
        achieved = utilisation * on.peak_tflops
        hours = cost.gpu_hours(config, estimate, num_videos=num_videos, tflops=achieved)
        length = f"{duration} of {num_videos:,} videos" if duration.unit == "epochs" else str(duration)
        time = f"{hours:,.3g} hours" if hours >= 0.01 else f"{3600 * hours:.2g} seconds"
        run = (
            f"{time} on one {on.title}, for {length} at {achieved:.3g} TFLOP/s "
            f"({utilisation:.0%} of {on.peak_tflops:.3g})."
        )
    disk = f"Disk: up to {cost.run_folder_gib(config, estimate):.2f} GiB for the run's folder"
    if config.targets.cache and num_videos:
        disk += f", {cost.cache_gib(config, num_videos):.2f} GiB for the token cache"
    fits = max(0, int((0.9 * on.memory_gib - estimate.state_gib) / estimate.clip_gib))
    print_table(
        table,
        run,
        f"Memory: {estimate.state_gib:.2f} GiB for weights, gradients and AdamW, {estimate.clip_gib:.3g} GiB per clip, "
        f"besides the tokenizer's own: some {fits} clips fit in 90 % of {on.memory_gib:.0f} GiB.",
        f"{disk}.",
    )
