"""The built-in studies: the paper's figures and tables, and ours."""

from __future__ import annotations

from dataclasses import replace

from mam2.config import Epochs, Steps, UserError, did_you_mean
from mam2.recipes.tables import TABLES
from mam2.studies.study import Cell, Study


def _table(number: str, first: str) -> Study:
    """A table of the paper with the row `first` as the reference, and training from scratch."""
    rows = sorted(TABLES[number].rows, key=lambda row: row.name != first)
    cells = tuple(Cell(row.name, row.recipe, paper=row.paper) for row in rows)
    return Study(
        title=f"Table {number}: {TABLES[number].title}",
        cells=(*cells, Cell("from scratch", "ablation", scratch=True)),
        finetune=rows[0].finetune,
    )


def _eq3(reduction: str, scale: str) -> tuple[tuple[str, object], ...]:
    """Changes to a reading of Eq. 3, whatever a scale of recipes takes by itself."""
    return (("objective.motion_reduction", reduction), ("targets.motion_scale", scale))


def _at_rates(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Each cell at its learning rate, and at 0.3 and 3 times that."""
    return tuple(
        replace(cell, name=cell.name if rate == 1.0 else f"{cell.name}, rate × {rate:g}", rate=rate)
        for cell in cells
        for rate in (1.0, 0.3, 3.0)
    )


_QUARTER = (("mask.ratio", 0.75),)
"""A tenth of the patches of a small frame says too little: 90 % of 36 leaves 4."""
_FLASH_ENCODER = (
    ("encoder.attention", "factorised"),
    ("encoder.tubelet", 1),
    ("encoder.positions", "separable"),
    ("encoder.differences", True),
    ("targets.appearance", "pixels"),
)
_RIVAL_ENCODER = (("encoder.differences", False), ("encoder.attention", "joint"), ("encoder.tubelet", 2))
_AS_ST_MAE = (*_RIVAL_ENCODER, ("mask.kind", "random"))
_AS_VIDEOMAE = (
    *_RIVAL_ENCODER,
    *_QUARTER,
    ("encoder.positions", "sequence"),
    ("targets.appearance", "pixels_of_tubelets"),
)

STUDIES: dict[str, Study] = {
    "fig2": Study(
        title="Fig. 2: top-1 against epochs of pre-training",
        cells=(
            Cell("MAM²", "mam2_b_k400", paper="82.3"),
            Cell("VideoMAE", "videomae_b_k400", paper="80.9"),
            Cell("ST-MAE", "stmae_b_k400", paper="81.3"),
            Cell("MAM² flash", "mam2_flash_b_k400", changes=_QUARTER),
            Cell("from scratch", "mam2_b_k400", scratch=True),
            Cell("from scratch, joint attention", "videomae_b_k400", scratch=True),
            Cell("from scratch, flash's encoder", "mam2_flash_b_k400", scratch=True),
        ),
        finetune="finetune_b_k400",
        shares=(0.5, 1.0),
    ),
    "table1a": _table("1a", "4, 2"),
    "table1b": _table("1b", "4"),
    "table1c": _table("1c", "768"),
    "table1d": _table("1d", "tube 75%"),
    "table1e": _table("1e", "VQGAN-16384"),
    "table1f": _table("1f", "RGB-diff"),
    "table2": _table("2", "MAM²"),
    "flops": Study(
        title="Top-1 against operations of pre-training",
        cells=(
            Cell("VideoMAE", "videomae_b_k400"),
            Cell("MAM²", "mam2_b_k400"),
            Cell("MAM² lite", "mam2_lite_b_k400"),
            Cell("ST-MAE", "stmae_b_k400"),
            Cell("V-JEPA", "vjepa_b_k400"),
            Cell("MaskFeat", "maskfeat_b_k400"),
            Cell("from scratch", "videomae_b_k400", scratch=True),
        ),
        finetune="finetune_b_k400",
        shares=(0.5, 1.0),
        budget="10 TFLOP",
    ),
    "rates": Study(
        title="Learning rates: the same search for every method, at equal operations",
        cells=_at_rates(
            (
                Cell("VideoMAE", "videomae_b_k400"),
                Cell("ST-MAE", "stmae_b_k400"),
                Cell("V-JEPA", "vjepa_b_k400"),
                Cell("MaskFeat", "maskfeat_b_k400"),
                Cell("MAM² flash", "mam2_flash_b_k400", changes=_QUARTER),
                Cell("MAM²", "mam2_b_k400"),
            )
        ),
        finetune="finetune_b_k400",
        budget="10 TFLOP",
    ),
    "flash": Study(
        title="Motion first, at equal operations",
        cells=(
            Cell("MAM² flash", "mam2_flash_b_k400", changes=_QUARTER),
            Cell("VideoMAE, flash's encoder", "videomae_b_k400", changes=(*_QUARTER, *_FLASH_ENCODER)),
            Cell("VideoMAE", "videomae_b_k400", changes=_QUARTER),
            Cell("ST-MAE", "stmae_b_k400"),
            Cell("from scratch, flash's encoder", "mam2_flash_b_k400", scratch=True),
            Cell("from scratch, VideoMAE's encoder", "videomae_b_k400", scratch=True),
        ),
        budget="16 TFLOP",
    ),
    "takes_two": Study(
        title="Motion beside pixels, on the encoders and under the masks of ST-MAE and VideoMAE",
        cells=(
            Cell("ST-MAE with motion", "mam2_flash_b_k400", changes=_AS_ST_MAE),
            Cell(
                "the same, pixels alone",
                "mam2_flash_b_k400",
                changes=(*_AS_ST_MAE, ("objective.decoders", "appearance")),
            ),
            Cell("ST-MAE", "stmae_b_k400"),
            Cell("VideoMAE with motion", "mam2_flash_b_k400", changes=_AS_VIDEOMAE),
            Cell("VideoMAE", "videomae_b_k400", changes=_QUARTER),
            Cell("from scratch, ST-MAE's encoder", "stmae_b_k400", scratch=True),
        ),
        finetune="finetune_b_k400",
        budget="4 TFLOP",
    ),
    "motion": Study(
        title="Eq. 3 averaged, as it is written, and for motion of one size in every clip",
        cells=(
            Cell("mean", "mam2_b_k400_rp", changes=_eq3("mean", "raw")),
            Cell("sum (Eq. 3)", "mam2_b_k400_rp", changes=_eq3("sum", "raw")),
            Cell("mean, motion_scale clip", "mam2_b_k400_rp", changes=_eq3("mean", "clip")),
            Cell("sum, motion_scale clip", "mam2_b_k400_rp", changes=_eq3("sum", "clip")),
            Cell("no motion", "mam2_b_k400_rp", changes=(("objective.decoders", "appearance"),)),
            Cell("from scratch", "mam2_b_k400_rp", scratch=True),
        ),
    ),
    "alignment": Study(
        title="What regressed representations are aligned with, and how fast α rises",
        cells=(
            Cell("ramp", "mam2_b_k400_rp"),
            Cell("constant α (the paper)", "mam2_b_k400_rp", changes=(("objective.alignment_ramp", Steps(0)),)),
            Cell("none", "mam2_b_k400_rp", changes=(("objective.alignment_weight", 0.0),)),
            Cell("ramp, target by batch", "mam2_b_k400_rp", changes=(("objective.alignment_target", "batch"),)),
            Cell("ramp, target by token", "mam2_b_k400_rp", changes=(("objective.alignment_target", "layer_norm"),)),
            Cell("ramp, teacher", "mam2_b_k400_rp", changes=(("objective.teacher_momentum", 0.99),)),
        ),
    ),
    "lite": Study(
        title="Cheaper steps of MAM²",
        cells=(
            Cell("paper's step", "mam2_b_k400_rp"),
            Cell("tubelets", "mam2_b_k400_rp", changes=(("encoder.tubelet", 2),)),
            Cell("lite: tubelets, quarter aligned", "mam2_lite_b_k400"),
            Cell("half predicted", "mam2_b_k400_rp", changes=(("mask.predicted", 0.5),)),
            Cell("from scratch", "mam2_b_k400_rp", scratch=True),
            Cell("from scratch, tubelets", "mam2_lite_b_k400", scratch=True),
        ),
        shares=(0.5, 1.0),
    ),
    "adapt": Study(
        title="A given encoder, adapted to one's own videos",
        cells=(
            Cell("as it is", "mam2_adapt_b", scratch=True, starts=True),
            Cell("adapted", "mam2_adapt_b", starts=True),
            Cell("adapted by VideoMAE", "videomae_adapt_b", starts=True),
            Cell("pre-trained from random weights", "mam2_b_k400_rp"),
            Cell("from scratch", "mam2_b_k400_rp", scratch=True),
        ),
        finetune="finetune_b_k400",
    ),
    "quickstart": Study(
        title="Quickstart: pre-training on unlabelled videos, then fine-tuning",
        # One decoder for pixels and motion, neither regressor nor alignment: the whole step takes four times as long.
        cells=(
            Cell("MAM²", "mam2_flash_b_k400", changes=(*_AS_VIDEOMAE, ("objective.motion_reduction", "mean"))),
            Cell("VideoMAE", "videomae_b_k400", changes=_QUARTER),
            Cell("from scratch", "videomae_b_k400", scratch=True),
        ),
        finetune_changes=(
            ("optim.min_lr", 0.0),
            ("optim.warmup", Epochs(1)),
            ("optim.layer_decay", 0.75),
            ("loop.duration", Epochs(15)),
            ("loop.save_every", Epochs(5)),
            ("clips", 1),
        ),
        budget="4000 steps",
        pretrain_once=True,
    ),
}


def get_study(name: str) -> Study:
    """A built-in study; UserError for another name."""
    if name not in STUDIES:
        raise UserError(f"There is no study {name!r}. {did_you_mean(name, STUDIES)}")
    return STUDIES[name]
