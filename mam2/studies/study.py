"""What a study is: cells (a recipe, one part changed), and the settings that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mam2.config import UserError, did_you_mean
from mam2.model.classifier import Pooling
from mam2.recipes import get_recipe
from mam2.recipes.scales import ScaleName, scaled
from mam2.train.pretrain import Pretrain

Test = Literal["finetune", "linear", "ridge", "knn"]
"""How an encoder is judged: fine-tuned, or probed while it is frozen."""
PROBES: tuple[Literal["linear", "ridge", "knn"], ...] = ("linear", "ridge", "knn")


@dataclass(frozen=True)
class Cell:
    """A line of a study's table.

    Attributes:
        name: of the line.
        recipe: of pre-training.
        paper: the paper's top-1 in per cent; empty where it has none.
        changes: fields of the scaled recipe by dotted name, such as "objective.alignment_weight", and other values.
        rate: the learning rate, as a multiple of the scaled recipe's.
        scratch: nothing is pre-trained: the recipe's encoder starts from random weights.
        starts: from the encoder that the study is given; with `scratch`, that encoder as it is.
    """

    name: str
    recipe: str
    paper: str = ""
    changes: tuple[tuple[str, object], ...] = ()
    rate: float = 1.0
    scratch: bool = False
    starts: bool = False

    def config(self, scale: ScaleName) -> Pretrain:
        """The pre-training at a scale, with the changes and the rate."""
        recipe = get_recipe(self.recipe, Pretrain)
        assert isinstance(recipe, Pretrain)
        config = scaled(recipe, scale)
        for name, value in self.changes:
            part, _, field = name.partition(".")
            config = replace(config, **{part: replace(getattr(config, part), **{field: value})})
        return replace(config, optim=replace(config.optim, base_lr=config.optim.base_lr * self.rate))


@dataclass(frozen=True)
class Study:
    """A comparison. The first cell is the reference: differences are against it.

    Attributes:
        title: what is asked.
        cells: the lines.
        finetune: recipe of fine-tuning for all.
        shares: of the budget: each cell is pre-trained from the start for each.
        budget: by default, at the scales nano and tiny.
    """

    title: str
    cells: tuple[Cell, ...]
    finetune: str = "finetune_b_ucf101"
    shares: tuple[float, ...] = (1.0,)
    budget: str = "2000 steps"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user decides; the same for all cells.

    Attributes:
        unlabelled: videos for pre-training: a folder at any depth, or a CSV with path.
        train: labelled videos: class folders, or a CSV with path,label.
        test: labelled videos with the same classes; none of them may be in `train`.
        train_split, test_split, unlabelled_split: which rows of a CSV that has several splits.
        scale: sizes and lengths of all recipes: nano or tiny for a laptop, small for one GPU, base as printed.
        budget: of each pre-training: '20 epochs', '300 steps', '50 TFLOP', '10 minutes'; by default the study's own at
            the scales nano and tiny, else the recipe's length.
        seeds: each cell runs once for each; the same seed draws the same videos in all cells.
        tests: how encoders are judged.
        finetune_epochs: length of fine-tuning; 0 is the scale's.
        pooling: of features for the fine-tuned head: as the recipe says, at scale base the paper's mean over "all", at
            the others over "space"; or one of these for all.
        shots: labelled videos per class, drawn by the seed; 0 takes all.
        stride_frames: between frames of a clip in place of the recipes' 4; other strides keep their ratio. 0 is theirs.
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
    """One cell at one share of the budget with one seed."""

    cell: Cell
    share: float
    seed: int

    @property
    def folder(self) -> str:
        """Its place in the study's folder."""
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in self.cell.name).strip("_")
        return f"{name}/{self.share:g}/seed_{self.seed}"


def jobs_of(study: Study, settings: Settings) -> list[Job]:
    """All jobs, seed by seed, so that a study that is cut short has whole comparisons."""
    return [
        Job(cell, share, seed)
        for seed in settings.seeds
        for share in study.shares
        for cell in study.cells
        if not (cell.scratch and share != study.shares[-1])
    ]


def get_study(name: str, studies: dict[str, Study]) -> Study:
    """A built-in study.

    Raises:
        UserError: another name.
    """
    if name not in studies:
        raise UserError(f"There is no study {name!r}. {did_you_mean(name, studies)}")
    return studies[name]
