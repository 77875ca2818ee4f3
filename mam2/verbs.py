"""Commands by name: arguments, summary, examples. It imports nothing heavy, so that `mam2 --help` is quick."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        usage: its arguments.
        summary: one line about it.
        examples: arguments to begin with.
    """

    usage: str
    summary: str
    examples: tuple[str, ...]


VERBS = {
    "quickstart": Verb(
        "[--out DIR]",
        "Render videos, pre-train, fine-tune, report: seven minutes on two cores",
        ("", "--out runs/first"),
    ),
    "pretrain": Verb(
        "RECIPE --data.root DIR --out RUN",
        "Pre-train on a folder of videos, or a CSV",
        (
            "mam2_tiny --data.root VIDEOS --out runs/mine",
            "mam2_lite_b_k400 --data.root VIDEOS.csv --out runs/lite --loop.batch-size 32",
        ),
    ),
    "finetune": Verb(
        "RECIPE --init RUN --data.root DIR --out RUN",
        "Fine-tune on class folders, or a CSV",
        (
            "finetune_tiny --init runs/mine --data.root LABELLED --out runs/tuned",
            "finetune_tiny --init scratch --data.root LABELLED --out runs/scratch",
        ),
    ),
    "import": Verb(
        "SOURCE --out FILE",
        "Make a published image or video encoder one of ours",
        (
            "timm:vit_base_patch16_224.mae --out mae.safetensors",
            "hf:MCG-NJU/videomae-base --out videomae.safetensors --size 112",
        ),
    ),
    "evaluate": Verb(
        "RUN --data.root DIR",
        "Test a fine-tuned run on labelled videos",
        ("runs/tuned --data.root TEST", "runs/tuned --data.root LIST.csv --data.split val --clips 5 --crops 3"),
    ),
    "predict": Verb(
        "RUN VIDEOS --out FILE",
        "Predict the labels of videos, or of sliding windows in them",
        (
            "runs/tuned VIDEOS --out labels.csv",
            "runs/tuned VIDEOS --out labels.csv --window '2 s' --hop '1 s' --timeline scores.html",
        ),
    ),
    "export": Verb(
        "SOURCE --format onnx|pt2|aoti --out FILE",
        "Export a model to ONNX, torch.export, AOTInductor",
        (
            "runs/tuned --format onnx --out classifier.onnx",
            "runs/mine --format pt2 --pool mean --out vectors.pt2",
        ),
    ),
    "push": Verb(
        "SOURCE USER/NAME",
        "Share a model on the Hugging Face hub, with a card made from its run",
        ("runs/tuned ada/lips --license apache-2.0", "runs/tuned ada/lips --folder for_the_hub"),
    ),
    "probe": Verb(
        "ENCODER --train DIR --test DIR",
        "Probe a frozen encoder: linear, ridge, attentive, knn",
        ("runs/mine --train LABELLED --test TEST", "runs/mine --train LABELLED --test TEST --kind knn"),
    ),
    "embed": Verb(
        "SOURCE VIDEOS --out FILE.parquet",
        "Write a vector for each sliding window in videos",
        (
            "runs/mine VIDEOS --out features.parquet",
            "timm:vit_base_patch16_224.mae VIDEOS --out features.parquet --window '2 s' --hop '1 s'",
        ),
    ),
    "search": Verb(
        "FILE.parquet VIDEO",
        "Find similar windows, or --near-duplicates, in what was embedded",
        (
            "features.parquet VIDEO --html hits.html",
            "features.parquet --near-duplicates --html pairs.html",
        ),
    ),
    "study": Verb(
        "NAME --unlabelled DIR --train DIR --test DIR --out DIR",
        "Compare recipes by one protocol",
        (
            "fig2 --unlabelled VIDEOS --train LABELLED --test TEST --out runs/fig2",
            "table2 --unlabelled VIDEOS --train LABELLED --test TEST --out runs/table2 --seeds 0 1",
        ),
    ),
    "compare": Verb(
        "RUN [RUN ...]",
        "Compare finished runs: accuracy over seeds, difference, cost",
        ("runs/scratch runs/tuned", "runs/scratch runs/tuned --out comparison.html"),
    ),
    "demo": Verb(
        "SOURCE",
        "Try a run on a local web page: upload a video, see the model's answer",
        ("runs/tuned --videos VIDEOS", "runs/mine --features features.parquet --videos VIDEOS"),
    ),
    "show": Verb(
        "RUN VIDEO",
        "Draw what a pre-trained run predicts for a video",
        ("runs/mine VIDEO.mp4 --out sheet.png", "runs/tuned VIDEO.mp4 --augment"),
    ),
    "report": Verb(
        "RUN",
        "Write the page of a run, finished or not: health, curves, pictures, cost",
        ("runs/mine", "runs/mine --out mine.html --video VIDEO.mp4"),
    ),
    "masks": Verb(
        "[VIDEO]", "Draw every kind of mask over a video (Fig. 3)", ("", "VIDEO.mp4 --ratio 0.9 --out masks.png")
    ),
    "recipes": Verb(
        "[RECIPE]", "List the recipes, print one, or a table of the paper", ("", "mam2_tiny", "--table 1d --scale tiny")
    ),
    "targets": Verb("", "List the appearance and motion targets", ("",)),
    "cost": Verb(
        "RECIPE",
        "Estimate what pre-training takes: hours, memory, disk",
        ("mam2_tiny --videos 1000 --device cpu", "mam2_b_k400_rp --videos 240000 --loop.duration '100 epochs'"),
    ),
    "prepare": Verb(
        "NAME --root DIR",
        "Check a data set and write its manifest",
        ("folder --root VIDEOS", "ucf101 --root UCF-101 --annotations ucfTrainTestlist"),
    ),
    "tokenizer convert": Verb(
        "FILE --out FILE",
        "Convert an official VQGAN or DALL-E checkpoint",
        ("last.ckpt --out vqgan.safetensors", "encoder.pkl --decoder decoder.pkl --out dalle.safetensors"),
    ),
    "tokenizer train": Verb(
        "DIR --out FILE",
        "Train a small VQ tokenizer on your own videos",
        ("VIDEOS --out vq.safetensors", "VIDEOS --out vq.safetensors --num-codes 4096 --num-steps 2000"),
    ),
}


def module_of(verb: str) -> str:
    """The file in `mam2.cli` whose `main(verb, arguments)` runs a command: it has the command's name."""
    first = verb.split()[0]
    return "import_" if first == "import" else first


def usage(width: int) -> str:
    """The page of `mam2 --help`, wrapped at a width."""
    left = max(map(len, VERBS)) + 4
    rows = [textwrap.wrap(verb.summary, max(20, width - left), break_on_hyphens=False) for verb in VERBS.values()]
    lines = [
        f"{f'  {name}' if number == 0 else '':<{left}}{line}"
        for name, wrapped in zip(VERBS, rows, strict=True)
        for number, line in enumerate(wrapped)
    ]
    return "\n".join(["usage: mam2 COMMAND ...", "", *lines, "", "`mam2 COMMAND --help` lists a command's options."])
