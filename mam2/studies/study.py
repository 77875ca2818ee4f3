"""A study: cells (a recipe, one part changed), the settings that all of them share, and its jobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

from mam2.model.classifier import Pooling
from mam2.recipes import get_recipe
from mam2.recipes.scales import ScaleName, scaled
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain

Config = TypeVar("Config", Pretrain, Finetune)
Changes = tuple[tuple[str, object], ...]
"""Fields of a recipe by dotted name, such as "objective.alignment_weight", and their other values."""
Test = Literal["finetune", "linear", "ridge", "knn"]
"""Test of an encoder: it is fine-tuned, or probed while it is frozen."""
ProbeKind = Literal["linear", "ridge", "knn"]


@dataclass(frozen=True)
class Cell:
    """A line of a study's table.

    Attributes:
        name: name of the line.
        recipe: name of the pre-training recipe.
        paper: the paper's top-1 in per cent; empty where it has none.
        changes: changes to the scaled recipe.
        rate: the learning rate, as a multiple of the scaled recipe's.
        scratch: nothing is pre-trained: the recipe's encoder starts from random weights.
        starts: the cell starts from the encoder that the study is given; with `scratch`, it is that encoder as it is.
    """

    name: str
    recipe: str
    paper: str = ""
    changes: Changes = ()
    rate: float = 1.0
    scratch: bool = False
    starts: bool = False

    def config(self, scale: ScaleName) -> Pretrain:
        """The pre-training at a scale, with the changes and the rate."""
        config = changed(scaled(cast(Pretrain, get_recipe(self.recipe, Pretrain)), scale), self.changes)
        return replace(config, optim=replace(config.optim, base_lr=config.optim.base_lr * self.rate))


def changed(config: Config, changes: Changes) -> Config:
    """A recipe with other values in some fields."""
    for name, value in changes:
        part, _, field = name.partition(".")
        new: Any = replace(getattr(config, part), **{field: value}) if field else value
        config = replace(config, **{part: new})
    return config


@dataclass(frozen=True)
class Study:
    """A comparison. The first cell is the reference: differences are against it.

    Attributes:
        title: the question.
        cells: the lines.
        finetune: recipe of fine-tuning for all.
        finetune_changes: changes to that recipe at the study's scale.
        shares: shares of the budget: each cell is pre-trained from the start for each.
        budget: budget at the scales nano and tiny, unless the settings have one.
        pretrain_once: one pre-training of each cell, with the first seed: seeds vary the fine-tuning alone.
    """

    title: str
    cells: tuple[Cell, ...]
    finetune: str = "finetune_b_ucf101"
    finetune_changes: Changes = ()
    shares: tuple[float, ...] = (1.0,)
    budget: str = "2000 steps"
    pretrain_once: bool = False


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """The user's choices, the same for all cells.

    Attributes:
        unlabelled: videos for pre-training: a folder at any depth, or a CSV with path.
        train: labelled videos: class folders, or a CSV with path,label.
        test: labelled videos with the same classes; none of them may be in `train`.
        train_split, test_split, unlabelled_split: name of the split, for a CSV that has several.
        scale: sizes and lengths of all recipes: nano or tiny for a laptop, small for one GPU, base as printed.
        budget: length of each pre-training: '20 epochs', '300 steps', '50 TFLOP', '10 minutes'; by default the study's
            own at the scales nano and tiny, else the recipe's length.
        seeds: each cell runs once for each; the same seed draws the same videos in all cells.
        tests: tests of the encoders.
        finetune_epochs: length of fine-tuning; 0 is the scale's.
        pooling: pooling of features for the fine-tuned head: as the recipe says, at scale base the paper's mean over
            "all", at the others over "space"; or one of these for all.
        shots: labelled videos per class, drawn by the seed; 0 takes all.
        stride_frames: stride of a clip's frames in place of the recipes' 4; other strides keep their ratio. 0 is
            theirs.
        flip: mirror clips: as the recipe says, for all, or for none, where left and right matter.
        init: an encoder file, for studies that start from one.
    """

    unlabelled: str = ""
    train: str = ""
    test: str = ""
    unlabelled_split: str = ""
    train_split: str = ""
    test_split: str = ""
    scale: ScaleName = "tiny"
    budget: str = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    tests: tuple[Test, ...] = ("finetune", "linear")
    finetune_epochs: float = 0.0
    pooling: Literal["recipe"] | Pooling = "recipe"
    shots: int = 0
    stride_frames: int = 0
    flip: Literal["recipe", "on", "off"] = "recipe"
    init: str = ""


@dataclass(frozen=True)
class Job:
    """One cell at one share of the budget with one seed.

    Attributes:
        cell: the cell.
        share: share of the budget.
        seed: seed of the fine-tuning and the probes, and of the pre-training unless that is shared.
        shared_seed: seed of the pre-training that all jobs of the cell share; None if each has its own.
    """

    cell: Cell
    share: float
    seed: int
    shared_seed: int | None = None

    def __str__(self) -> str:
        return f"{self.cell.name}, {self.share:g} of the budget, seed {self.seed}"

    @property
    def encoder_seed(self) -> int:
        """Seed of the pre-training."""
        return self.seed if self.shared_seed is None else self.shared_seed

    @property
    def folder(self) -> str:
        """The job's place in the study's folder."""
        return self._folder(self.seed)

    @property
    def encoder_folder(self) -> str:
        """Place of the pre-training: the job's own, or that of the first seed."""
        return self._folder(self.encoder_seed)

    def _folder(self, seed: int) -> str:
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in self.cell.name).strip("_")
        return f"{name}/{self.share:g}/seed_{seed}"


def jobs_of(study: Study, settings: StudySettings) -> list[Job]:
    """All jobs, seed by seed, so that a study that is cut short has whole comparisons."""
    return [
        Job(cell, share, seed, settings.seeds[0] if study.pretrain_once and not cell.scratch else None)
        for seed in settings.seeds
        for share in study.shares
        for cell in study.cells
        if not (cell.scratch and share != study.shares[-1])
    ]
