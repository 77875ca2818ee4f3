"""Growth of a step: operations, seconds and memory against frames, resolution and batch, one at a time.

    python benchmarks/scaling.py --model vit_b --out scaling.json --plot scaling.png

The rest is the paper's: 16 frames of 224², one clip. Every step runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import machine
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from workload import SIZES, in_a_process

from mam2.device import local_device
from mam2.model.blocks import can_compile

AXES = ("frames", "size", "batch")


def measure(
    model: str, values: dict[str, list[int]], *, precision: str, repeats: int, compiled: bool
) -> list[dict[str, Any]]:
    """One row for every value of every axis, with its number of tokens (patches of a step's clips)."""
    encoder, rows = SIZES[model].encoder, []
    for axis in AXES:
        for value in values[axis]:
            at = {"frames": encoder.frames, "size": encoder.size, "batch": 1, axis: value}
            flags = [word for name, number in at.items() for word in (f"--{name}", str(number))]
            flags += ["--model", model, "--precision", precision, "--repeats", str(repeats)]
            found = in_a_process("mam2", *flags, *(["--compile"] if compiled else []))
            assert found
            tokens = at["batch"] * at["frames"] * (at["size"] // encoder.patch_size) ** 2
            rows.append({"axis": axis, **at, "tokens": tokens, **found})
    return rows


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Seconds and memory against tokens, a line for each axis; where a line rises by one, cost is linear."""
    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    titles = {"flops": "TFLOP", "seconds": "seconds", "peak_gib": "peak memory, GiB"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for axis in AXES:
            of_axis = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["tokens"])
            unit = 1e12 if name == "flops" else 1
            panel.loglog([r["tokens"] for r in of_axis], [r[name] / unit for r in of_axis], "o-", label=axis)
        panel.set(title=title, xlabel="patches")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `--out` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(SIZES), default="vit_b")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--size", type=int, nargs="+", default=[112, 160, 224, 320])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--repeats", type=int, default=1, help="after a warm-up; the median is reported (default 1)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="blocks (default: as loop.compile auto)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    options = parser.parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)
    for file in (options.out, options.plot):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    device = local_device()
    compiled = can_compile(device) if options.compile is None else options.compile
    values = {axis: getattr(options, axis) for axis in AXES}
    rows = measure(options.model, values, precision=options.precision, repeats=options.repeats, compiled=compiled)
    table = Table(title=f"{options.model}, {options.precision}; the rest is the model's own")
    for column in ("", "patches", "TFLOP", "GFLOP per patch", "seconds", "ms per patch", "peak GiB"):
        table.add_column(column, justify="right")
    for row in rows:
        tokens, tflop, seconds = row["tokens"], row["flops"] / 1e12, row["seconds"]
        cells = [f"{tokens:,}", f"{tflop:.2f}", f"{1e3 * tflop / tokens:.3f}", f"{seconds:.2f}"]
        cells += [f"{1e3 * seconds / tokens:.2f}", f"{row['peak_gib']:.2f}"]
        table.add_row(f"{row['axis']} {row[row['axis']]}", *cells)
    Console(width=110).print(table)
    result: dict[str, Any] = {
        "benchmark": "scaling",
        "command": shlex.join(["python", "benchmarks/scaling.py", *words]),
    }
    result |= {"machine": machine(device), "model": options.model, "precision": options.precision, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        plot(rows, options.plot)
    return result


if __name__ == "__main__":
    main()
