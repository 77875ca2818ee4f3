"""Rows of the paper's tables (`TABLES`), each with the recipes that reproduce it."""

from __future__ import annotations

from dataclasses import dataclass

from mam2.config import UserError
from mam2.data.benchmarks import BENCHMARKS


@dataclass(frozen=True)
class TableRow:
    """A row of one of the paper's tables.

    Attributes:
        name: the paper's name of the row.
        recipe: recipe of the pre-training; for Table 8, of the fine-tuning.
        paper: the paper's number, top-1 in per cent after fine-tuning; empty for Tables 7 and 8, which list settings.
        finetune: recipe of the fine-tuning that follows; empty in Table 8.
        top5: the paper's top-5, where it has one (Tables 3 and 4).
    """

    name: str
    recipe: str
    paper: str
    finetune: str
    top5: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: its title, and the rows that are MAM²'s or a rival's with a recipe here."""

    title: str
    rows: tuple[TableRow, ...]


DATA_SETS = {"k400": "Kinetics-400", "ssv2": "SSv2", "ucf101": "UCF101", "hmdb51": "HMDB51", "ablation": "UCF101"}
"""Data sets by the word for them in a recipe's name; other recipes are for any videos."""
NUM_TRAINING_VIDEOS = {DATA_SETS[name]: benchmark.num_train for name, benchmark in BENCHMARKS.items()}


def _table(title: str, *rows: TableRow) -> PaperTable:
    return PaperTable(title, rows)


def _on_ucf101(title: str, *rows: tuple[str, str, str]) -> PaperTable:
    return _table(f"{title}, UCF101", *(TableRow(*row, finetune="finetune_b_ucf101") for row in rows))


TABLES: dict[str, PaperTable] = {
    "1a": _on_ucf101(
        "Depth of appearance and motion decoder",
        ("2, 2", "ablation_depth_2_2", "90.54"),
        ("4, 4", "ablation_depth_4_4", "90.97"),
        ("4, 2", "ablation", "91.09"),
    ),
    "1b": _on_ucf101(
        "Stride of frames in pre-training",
        ("2", "ablation_stride_2", "90.86"),
        ("4", "ablation", "91.09"),
        ("8", "ablation_stride_8", "90.27"),
    ),
    "1c": _on_ucf101(
        "Width of regressor and decoders",
        ("384", "ablation_width_384", "90.08"),
        ("512", "ablation_width_512", "90.35"),
        ("768", "ablation", "91.09"),
    ),
    "1d": _on_ucf101(
        "Mask strategy",
        ("cube 40%", "ablation_cube_40", "89.87"),
        ("tube 60%", "ablation_tube_60", "90.26"),
        ("tube 75%", "ablation", "91.09"),
        ("tube 90%", "ablation_tube_90", "87.76"),
    ),
    "1e": _on_ucf101(
        "Appearance target",
        ("VQGAN-8192", "ablation_vqgan_8192", "90.88"),
        ("VQGAN-16384", "ablation", "91.09"),
        ("DALL-E", "ablation_dalle", "90.61"),
    ),
    "1f": _on_ucf101(
        "Motion target",
        ("optical flow", "ablation_optical_flow", "91.05"),
        ("RGB-diff", "ablation", "91.09"),
        ("clip-order", "ablation_clip_order", "90.12"),
    ),
    "2": _on_ucf101(
        "Main components",
        ("MAM²-c", "ablation_coupled", "89.82"),
        ("w/o appearance", "ablation_no_appearance", "87.56"),
        ("w/o motion", "ablation_no_motion", "90.03"),
        ("w/o regressor", "ablation_no_regressor", "90.84"),
        ("w/o alignment", "ablation_no_alignment", "90.63"),
        ("MAM²", "ablation", "91.09"),
    ),
    "3": _table(
        "Kinetics-400, 7 × 3 views",
        TableRow("MaskFeat, MViT-L (here ViT-B)", "maskfeat_b_k400", "84.3", "finetune_b_k400", "96.3"),
        TableRow("BEVT, Swin-B (here ViT-B)", "tokens_b_k400", "80.6", "finetune_b_k400"),
        TableRow("VideoMAE, ViT-B", "videomae_b_k400", "80.9", "finetune_b_k400", "94.7"),
        TableRow("VideoMAE, ViT-L", "videomae_l_k400", "84.7", "finetune_l_k400", "96.5"),
        TableRow("OmniMAE, ViT-B", "omnimae_b_k400", "80.6", "finetune_b_k400"),
        TableRow("ST-MAE, ViT-B", "stmae_b_k400", "81.3", "finetune_b_k400", "94.9"),
        TableRow("ST-MAE, ViT-L", "stmae_l_k400", "84.8", "finetune_l_k400", "96.2"),
        TableRow("MAM², ViT-B, 800 epochs", "mam2_b_k400", "82.3", "finetune_b_k400", "95.3"),
        TableRow("MAM², ViT-L, 600 epochs", "mam2_l_k400_600", "84.8", "finetune_l_k400", "96.4"),
        TableRow("MAM², ViT-L, 800 epochs", "mam2_l_k400", "85.3", "finetune_l_k400", "96.7"),
    ),
    "4": _table(
        "SSv2, 2 × 3 views",
        TableRow("OmniMAE, ViT-B", "omnimae_b_ssv2", "69.5", "finetune_b_ssv2"),
        TableRow("VideoMAE, ViT-B", "videomae_b_ssv2", "70.6", "finetune_b_ssv2", "92.7"),
        TableRow("MAM², ViT-B, 1200 epochs", "mam2_b_ssv2", "71.3", "finetune_b_ssv2", "93.1"),
    ),
    "5": _table(
        "UCF101 and HMDB51",
        TableRow("VideoMAE, UCF101", "videomae_b_ucf101", "90.8", "finetune_b_ucf101"),
        TableRow("VideoMAE, HMDB51", "videomae_b_hmdb51", "61.1", "finetune_b_hmdb51"),
        TableRow("MAM², UCF101, 1200 epochs", "mam2_b_ucf101", "91.5", "finetune_b_ucf101"),
        TableRow("MAM², HMDB51, 1600 epochs", "mam2_b_hmdb51", "62.5", "finetune_b_hmdb51"),
    ),
    "7": _table(
        "Pre-training settings",
        TableRow("Kinetics-400", "mam2_b_k400", "", "finetune_b_k400"),
        TableRow("Sth-Sth V2", "mam2_b_ssv2", "", "finetune_b_ssv2"),
        TableRow("UCF101", "mam2_b_ucf101", "", "finetune_b_ucf101"),
        TableRow("HMDB51", "mam2_b_hmdb51", "", "finetune_b_hmdb51"),
    ),
    "8": _table(
        "Fine-tuning settings",
        TableRow("Kinetics-400 (B)", "finetune_b_k400", "", ""),
        TableRow("Kinetics-400 (L)", "finetune_l_k400", "", ""),
        TableRow("Sth-Sth V2", "finetune_b_ssv2", "", ""),
        TableRow("UCF101", "finetune_b_ucf101", "", ""),
        TableRow("HMDB51", "finetune_b_hmdb51", "", ""),
    ),
}


def get_table(number: str) -> PaperTable:
    """One of the paper's tables: "1a" to "1f", "2", "3", "4", "5", "7", "8"; UserError for another number."""
    if number not in TABLES:
        raise UserError(f"There is no table {number!r} of recipes. Accepted: {', '.join(TABLES)}.")
    return TABLES[number]


def tables_of(recipe: str) -> list[str]:
    """The numbers of the paper's tables that a recipe belongs to."""
    return [n for n, table in TABLES.items() if any(recipe in (row.recipe, row.finetune) for row in table.rows)]
