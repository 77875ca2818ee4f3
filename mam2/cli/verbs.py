"""The table of commands: where each lives, and what it does. It imports nothing, so that `mam2 --help` is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        module: the file in `mam2.cli` whose `main(verb, arguments)` runs it.
        usage: its arguments.
        summary: one line about it.
        examples: arguments to begin with, for a command that takes a recipe or an encoder.
    """

    module: str
    usage: str
    summary: str
    examples: tuple[str, ...] = ()


PRETRAIN = (
    "mam2_tiny --data.root VIDEOS --out runs/mine",
    "mam2_lite_b_k400 --data.root VIDEOS.csv --out runs/lite --loop.batch-size 32",
)
FINETUNE = (
    "finetune_tiny --init runs/mine --data.root LABELLED --out runs/tuned",
    "finetune_tiny --init scratch --data.root LABELLED --out runs/scratch",
)
PROBE = (
    "runs/mine --train LABELLED --test TEST",
    "runs/mine --train LABELLED --test TEST --kind knn",
)
STUDY = (
    "fig2 --unlabelled VIDEOS --train LABELLED --test TEST --out runs/fig2",
    "table2 --unlabelled VIDEOS --train LABELLED --test TEST --out runs/table2 --seeds 0 1",
)
COST = ("mam2_tiny --videos 1000 --device cpu", "mam2_b_k400_rp --videos 240000 --loop.duration '100 epochs'")
VERBS = {
    "quickstart": Verb("quickstart", "", "Render videos, pre-train, fine-tune, report: seven minutes on two cores"),
    "pretrain": Verb(
        "train", "RECIPE --data.root DIR --out RUN", "Pre-train on a folder of videos, or a CSV", PRETRAIN
    ),
    "finetune": Verb(
        "train", "RECIPE --init RUN --data.root DIR --out RUN", "Fine-tune on class folders, or a CSV", FINETUNE
    ),
    "import": Verb("public", "SOURCE --out FILE", "Make a published image or video encoder one of ours"),
    "evaluate": Verb("evaluate", "RUN --data.root DIR", "Test a fine-tuned run on labelled videos"),
    "predict": Verb("use", "RUN VIDEOS --out FILE", "Predict the labels of videos, or of windows along them"),
    "export": Verb(
        "export", "SOURCE --format onnx|pt2|aoti --out FILE", "Export a model to ONNX, torch.export, AOTInductor"
    ),
    "push": Verb("push", "SOURCE USER/NAME", "Share a model on the Hugging Face hub, with a card made from its run"),
    "probe": Verb("evaluate", "RUN --train DIR --test DIR", "Probe a frozen encoder: linear, attentive, knn", PROBE),
    "embed": Verb("use", "SOURCE VIDEOS --out FILE.parquet", "Write a vector for each window along videos"),
    "search": Verb("use", "FILE.parquet VIDEO", "Find similar windows, or --near-duplicates, in what was embedded"),
    "study": Verb(
        "study", "NAME --unlabelled DIR --train DIR --test DIR --out DIR", "Compare recipes by one protocol", STUDY
    ),
    "compare": Verb("study", "RUN [RUN ...]", "Compare finished runs: accuracy over seeds, difference, cost"),
    "demo": Verb("demo", "SOURCE", "Try a run on a local web page: upload a video, see what the model makes of it"),
    "show": Verb("show", "RUN VIDEO", "Draw what a pre-trained run predicts for a video"),
    "report": Verb("show", "RUN", "Write the page of a run, finished or not: health, curves, pictures, cost"),
    "masks": Verb("show", "[VIDEO]", "Draw every kind of mask over a video (Fig. 3)"),
    "recipes": Verb("lists", "[RECIPE]", "List the recipes, print one, or a table of the paper"),
    "targets": Verb("lists", "", "List the appearance and motion targets"),
    "cost": Verb("lists", "RECIPE", "Estimate what pre-training takes: hours, memory, disk", COST),
    "prepare": Verb("prepare", "NAME --root DIR", "Check a data set and write its manifest"),
    "tokenizer convert": Verb("prepare", "FILE --out FILE", "Convert an official VQGAN or DALL-E checkpoint"),
    "tokenizer train": Verb("prepare", "DIR --out FILE", "Train a small VQ tokenizer on your own videos"),
}


def usage() -> str:
    """The page of `mam2 --help`."""
    rows = "\n".join(f"  {name:<18} {verb.summary}" for name, verb in VERBS.items())
    return f"usage: mam2 COMMAND ...\n\n{rows}\n\n`mam2 COMMAND --help` lists a command's options."
