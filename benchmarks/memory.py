"""Peak memory and seconds of the appearance loss, forward and backward, with all logits at once or in portions.

    python benchmarks/memory.py --clips 4 --precision bf16 --out memory.json

Three ways to the same number, each in a process of its own so that its peak is its own: "plain", the linear layer and
`F.cross_entropy`; "portions", what training uses; "torch", `F.linear_cross_entropy` with its chunks, where this torch
has it. Memory is counted on top of the tokens, the head's weights and the program.

S tokens, D width, K codes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, peak_memory_gib, times_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mam2.cross_entropy import linear_cross_entropy
from mam2.device import local_device

WAYS = ("plain", "portions", "torch")


def way(name: str, x_SD: Tensor, head: nn.Linear, code_S: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The loss by one of WAYS, under autocast to `dtype` unless that is float32."""

    def plain() -> Tensor:
        return F.cross_entropy(head(x_SD).float(), code_S)

    def portions() -> Tensor:
        return linear_cross_entropy(x_SD, head.weight, head.bias, code_S)

    def chunks() -> Tensor:  # it does not follow autocast
        options = nn.LinearCrossEntropyOptions()
        x, weight, bias = (tensor.to(dtype) for tensor in (x_SD, head.weight, head.bias))
        return F.linear_cross_entropy(x, weight, code_S, linear_bias=bias, options=options)

    return {"plain": plain, "portions": portions, "torch": chunks}[name]


def one(name: str, *, tokens: int, width: int, codes: int, precision: str, repeats: int) -> dict[str, Any]:
    """Memory and time of one way, in this process: call it in a fresh one."""
    device, dtype = local_device(), {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    torch.manual_seed(0)
    with device:
        x_SD, head = torch.randn(tokens, width, requires_grad=True), nn.Linear(width, codes)
        code_S = torch.randint(codes, (tokens,))
    loss_of = way(name, x_SD, head, code_S, dtype)
    losses = []

    def both_ways() -> None:
        x_SD.grad = head.weight.grad = head.bias.grad = None
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        losses.append(loss.item())

    before = peak_memory_gib(device)
    seconds = times_of(both_ways, device, repeats + 1)[1:]
    assert x_SD.grad is not None
    return {
        "loss": losses[0],
        "gradient_norm": x_SD.grad.double().norm().item(),
        "peak_mib": 1024 * (peak_memory_gib(device) - before),
        "seconds": statistics.median(seconds),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns what `--out` writes."""
    parser = argparse.ArgumentParser(description="Memory and time of the appearance loss, by three ways.")
    parser.add_argument("--clips", type=int, default=4, help="clips (default 4)")
    parser.add_argument("--tokens", type=int, default=2352, help="masked tokens per clip (default 2352, ViT-B's)")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--repeats", type=int, default=5, help="after a warm-up; medians are reported (default 5)")
    parser.add_argument("--way", choices=WAYS, help="measure one way in this process, and print JSON")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    if min(options.clips, options.tokens, options.width, options.codes, options.repeats) < 1:
        parser.error("all numbers must be at least 1.")
    words = list(sys.argv[1:] if arguments is None else arguments)
    sizes = {"tokens": options.clips * options.tokens, "width": options.width, "codes": options.codes}
    if options.way:
        row = one(options.way, **sizes, precision=options.precision, repeats=options.repeats)
        print(json.dumps(row))
        return row
    rows = {}
    for name in WAYS:
        if name != "torch" or hasattr(nn, "LinearCrossEntropyOptions"):
            command = [sys.executable, __file__, *words, "--way", name]
            rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    result = {
        "benchmark": "memory",
        "command": shlex.join(["python", "benchmarks/memory.py", *words]),
        "machine": machine(local_device()),
        **sizes,
        "precision": options.precision,
        "ways": rows,
        "ratios": {
            name: {
                "memory_over_plain": row["peak_mib"] / rows["plain"]["peak_mib"],
                "seconds_over_plain": row["seconds"] / rows["plain"]["seconds"],
            }
            for name, row in rows.items()
        },
    }
    show(result, Console(width=110))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """The result as a table."""
    title = f"{result['tokens']} tokens × {result['width']}, {result['codes']} codes, {result['precision']}"
    table = Table(title=f"{title}, {result['machine']['device']}")
    for column in ("appearance loss", "peak MiB", "of plain", "seconds", "of plain", "loss"):
        table.add_column(column, justify="left" if column == "appearance loss" else "right")
    for name, row in result["ways"].items():
        ratios = result["ratios"][name]
        memory, seconds = f"{ratios['memory_over_plain']:.3f}", f"{ratios['seconds_over_plain']:.2f}"
        table.add_row(name, f"{row['peak_mib']:,.0f}", memory, f"{row['seconds']:.2f}", seconds, f"{row['loss']:.5f}")
    console.print(table, "Aims: at most 1/6 of plain's memory, 1.1 × its seconds.")


if __name__ == "__main__":
    main()
