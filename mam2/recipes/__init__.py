"""The paper's runs by name, and its tables row by row. A recipe is a function that returns a complete configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mam2.config import UserError, did_you_mean
from mam2.recipes import ablations, finetune, pretrain
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain


@dataclass(frozen=True)
class Recipe:
    """A named run.

    Attributes:
        make: returns the configuration.
        data: the data set it is meant for.
        model: the encoder's size.
    """

    make: Callable[[], Pretrain | Finetune]
    data: str
    model: str


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables.

    Attributes:
        name: as the paper calls it.
        recipe: what to pre-train with; for Table 8, what to fine-tune with.
        paper: the paper's number, top-1 in per cent after fine-tuning; empty for Tables 7 and 8, which give settings.
        finetune: what to fine-tune with afterwards; empty in Table 8.
    """

    name: str
    recipe: str
    paper: str
    finetune: str


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: what it is about, and its rows that are MAM²'s."""

    title: str
    rows: tuple[Row, ...]


NUM_TRAINING_VIDEOS = {"Kinetics-400": 240_000, "SSv2": 169_000, "UCF101": 9_500, "HMDB51": 3_500}  # Table 6

RECIPES: dict[str, Recipe] = {
    "mam2_b_k400": Recipe(pretrain.mam2_b_k400, "Kinetics-400", "ViT-B"),
    "mam2_l_k400": Recipe(pretrain.mam2_l_k400, "Kinetics-400", "ViT-L"),
    "mam2_l_k400_600": Recipe(pretrain.mam2_l_k400_600, "Kinetics-400", "ViT-L"),
    "mam2_b_ssv2": Recipe(pretrain.mam2_b_ssv2, "SSv2", "ViT-B"),
    "mam2_b_ucf101": Recipe(pretrain.mam2_b_ucf101, "UCF101", "ViT-B"),
    "mam2_b_hmdb51": Recipe(pretrain.mam2_b_hmdb51, "HMDB51", "ViT-B"),
    **{
        make.__name__: Recipe(make, "UCF101", "ViT-B")
        for make in (
            ablations.ablation,
            ablations.ablation_depth_2_2,
            ablations.ablation_depth_4_4,
            ablations.ablation_stride_2,
            ablations.ablation_stride_8,
            ablations.ablation_width_384,
            ablations.ablation_width_512,
            ablations.ablation_cube_40,
            ablations.ablation_tube_60,
            ablations.ablation_tube_90,
            ablations.ablation_vqgan_8192,
            ablations.ablation_dalle,
            ablations.ablation_optical_flow,
            ablations.ablation_clip_order,
            ablations.ablation_coupled,
            ablations.ablation_no_appearance,
            ablations.ablation_no_motion,
            ablations.ablation_no_regressor,
            ablations.ablation_no_alignment,
        )
    },
    "mam2_b_k400_rp": Recipe(pretrain.mam2_b_k400_rp, "Kinetics-400", "ViT-B"),
    "mam2_lite_b_k400": Recipe(pretrain.mam2_lite_b_k400, "Kinetics-400", "ViT-B"),
    "mam2_lite_l_k400": Recipe(pretrain.mam2_lite_l_k400, "Kinetics-400", "ViT-L"),
    "mam2_tiny": Recipe(pretrain.mam2_tiny, "any folder", "tiny"),
    "finetune_b_k400": Recipe(finetune.finetune_b_k400, "Kinetics-400", "ViT-B"),
    "finetune_l_k400": Recipe(finetune.finetune_l_k400, "Kinetics-400", "ViT-L"),
    "finetune_b_ssv2": Recipe(finetune.finetune_b_ssv2, "SSv2", "ViT-B"),
    "finetune_b_ucf101": Recipe(finetune.finetune_b_ucf101, "UCF101", "ViT-B"),
    "finetune_b_hmdb51": Recipe(finetune.finetune_b_hmdb51, "HMDB51", "ViT-B"),
    "finetune_lite_b_k400": Recipe(finetune.finetune_lite_b_k400, "Kinetics-400", "ViT-B"),
    "finetune_lite_l_k400": Recipe(finetune.finetune_lite_l_k400, "Kinetics-400", "ViT-L"),
    "finetune_tiny": Recipe(finetune.finetune_tiny, "any class folders", "tiny"),
}


def _on_ucf101(*rows: tuple[str, str, str]) -> tuple[Row, ...]:
    return tuple(Row(name, recipe, paper, "finetune_b_ucf101") for name, recipe, paper in rows)


TABLES: dict[str, PaperTable] = {
    "1a": PaperTable(
        "Depth of appearance and motion decoder, UCF101",
        _on_ucf101(
            ("2, 2", "ablation_depth_2_2", "90.54"),
            ("4, 4", "ablation_depth_4_4", "90.97"),
            ("4, 2", "ablation", "91.09"),
        ),
    ),
    "1b": PaperTable(
        "Stride of frames in pre-training, UCF101",
        _on_ucf101(
            ("2", "ablation_stride_2", "90.86"),
            ("4", "ablation", "91.09"),
            ("8", "ablation_stride_8", "90.27"),
        ),
    ),
    "1c": PaperTable(
        "Width of regressor and decoders, UCF101",
        _on_ucf101(
            ("384", "ablation_width_384", "90.08"),
            ("512", "ablation_width_512", "90.35"),
            ("768", "ablation", "91.09"),
        ),
    ),
    "1d": PaperTable(
        "Mask strategy, UCF101",
        _on_ucf101(
            ("cube 40%", "ablation_cube_40", "89.87"),
            ("tube 60%", "ablation_tube_60", "90.26"),
            ("tube 75%", "ablation", "91.09"),
            ("tube 90%", "ablation_tube_90", "87.76"),
        ),
    ),
    "1e": PaperTable(
        "Appearance target, UCF101",
        _on_ucf101(
            ("VQGAN-8192", "ablation_vqgan_8192", "90.88"),
            ("VQGAN-16384", "ablation", "91.09"),
            ("DALL-E", "ablation_dalle", "90.61"),
        ),
    ),
    "1f": PaperTable(
        "Motion target, UCF101",
        _on_ucf101(
            ("optical flow", "ablation_optical_flow", "91.05"),
            ("RGB-diff", "ablation", "91.09"),
            ("clip-order", "ablation_clip_order", "90.12"),
        ),
    ),
    "2": PaperTable(
        "Main components, UCF101",
        _on_ucf101(
            ("MAM²-c", "ablation_coupled", "89.82"),
            ("w/o appearance", "ablation_no_appearance", "87.56"),
            ("w/o motion", "ablation_no_motion", "90.03"),
            ("w/o regressor", "ablation_no_regressor", "90.84"),
            ("w/o alignment", "ablation_no_alignment", "90.63"),
            ("MAM²", "ablation", "91.09"),
        ),
    ),
    "3": PaperTable(
        "Kinetics-400, 7 × 3 views",
        (
            Row("ViT-B, 800 epochs", "mam2_b_k400", "82.3", "finetune_b_k400"),
            Row("ViT-L, 600 epochs", "mam2_l_k400_600", "84.8", "finetune_l_k400"),
            Row("ViT-L, 800 epochs", "mam2_l_k400", "85.3", "finetune_l_k400"),
        ),
    ),
    "4": PaperTable("SSv2, 2 × 3 views", (Row("ViT-B, 1200 epochs", "mam2_b_ssv2", "71.3", "finetune_b_ssv2"),)),
    "5": PaperTable(
        "UCF101 and HMDB51",
        (
            Row("UCF101, 1200 epochs", "mam2_b_ucf101", "91.5", "finetune_b_ucf101"),
            Row("HMDB51, 1600 epochs", "mam2_b_hmdb51", "62.5", "finetune_b_hmdb51"),
        ),
    ),
    "7": PaperTable(
        "Pre-training settings",
        (
            Row("Kinetics-400", "mam2_b_k400", "", "finetune_b_k400"),
            Row("Sth-Sth V2", "mam2_b_ssv2", "", "finetune_b_ssv2"),
            Row("UCF101", "mam2_b_ucf101", "", "finetune_b_ucf101"),
            Row("HMDB51", "mam2_b_hmdb51", "", "finetune_b_hmdb51"),
        ),
    ),
    "8": PaperTable(
        "Fine-tuning settings",
        (
            Row("Kinetics-400 (B)", "finetune_b_k400", "", ""),
            Row("Kinetics-400 (L)", "finetune_l_k400", "", ""),
            Row("Sth-Sth V2", "finetune_b_ssv2", "", ""),
            Row("UCF101", "finetune_b_ucf101", "", ""),
            Row("HMDB51", "finetune_b_hmdb51", "", ""),
        ),
    ),
}


def get_recipe(name: str, kind: type[Pretrain] | type[Finetune] | None = None) -> Pretrain | Finetune:
    """The configuration of a recipe.

    Raises:
        UserError: an unknown name, or a recipe of the other kind.
    """
    if name not in RECIPES:
        raise UserError(f"There is no recipe {name!r}. {did_you_mean(name, RECIPES)} `mam2 recipes` lists them all.")
    config = RECIPES[name].make()
    if kind is not None and not isinstance(config, kind):
        raise UserError(f"{name} is a recipe of `mam2 {type(config).__name__.lower()}`. `mam2 recipes` lists them all.")
    return config


def get_table(number: str) -> PaperTable:
    """One of the paper's tables: "1a" to "1f", "2", "3", "4", "5", "7", "8".

    Raises:
        UserError: another number.
    """
    if number not in TABLES:
        raise UserError(f"There is no table {number!r} of recipes. Accepted: {', '.join(TABLES)}.")
    return TABLES[number]


def tables_of(recipe: str) -> list[str]:
    """The numbers of the paper's tables that a recipe belongs to."""
    return [n for n, table in TABLES.items() if any(recipe in (row.recipe, row.finetune) for row in table.rows)]
