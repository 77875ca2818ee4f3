"""Recipes by name: functions that return a complete configuration (`RECIPES`, `get_recipe`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

from mam2.config import UserError, did_you_mean, is_import_path, plug_in
from mam2.recipes import ablations, finetune, pretrain, rivals
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


RECIPES: dict[str, Recipe] = {
    "mam2_b_k400": Recipe(pretrain.mam2_b_k400, "Kinetics-400", "ViT-B"),
    "mam2_l_k400": Recipe(pretrain.mam2_l_k400, "Kinetics-400", "ViT-L"),
    "mam2_l_k400_600": Recipe(pretrain.mam2_l_k400_600, "Kinetics-400", "ViT-L"),
    "mam2_b_ssv2": Recipe(pretrain.mam2_b_ssv2, "SSv2", "ViT-B"),
    "mam2_b_ucf101": Recipe(pretrain.mam2_b_ucf101, "UCF101", "ViT-B"),
    "mam2_b_hmdb51": Recipe(pretrain.mam2_b_hmdb51, "HMDB51", "ViT-B"),
    **{name: Recipe(make, "UCF101", "ViT-B") for name, make in vars(ablations).items() if name.startswith("ablation")},
    "mam2_b_k400_rp": Recipe(pretrain.mam2_b_k400_rp, "Kinetics-400", "ViT-B"),
    "mam2_lite_b_k400": Recipe(pretrain.mam2_lite_b_k400, "Kinetics-400", "ViT-B"),
    "mam2_lite_l_k400": Recipe(pretrain.mam2_lite_l_k400, "Kinetics-400", "ViT-L"),
    "mam2_flash_b_k400": Recipe(pretrain.mam2_flash_b_k400, "Kinetics-400", "ViT-B"),
    "mam2_flash_l_k400": Recipe(pretrain.mam2_flash_l_k400, "Kinetics-400", "ViT-L"),
    "videomae_b_k400": Recipe(rivals.videomae_b_k400, "Kinetics-400", "ViT-B"),
    "videomae_l_k400": Recipe(rivals.videomae_l_k400, "Kinetics-400", "ViT-L"),
    "videomae_b_ssv2": Recipe(rivals.videomae_b_ssv2, "SSv2", "ViT-B"),
    "videomae_b_ucf101": Recipe(rivals.videomae_b_ucf101, "UCF101", "ViT-B"),
    "videomae_b_hmdb51": Recipe(rivals.videomae_b_hmdb51, "HMDB51", "ViT-B"),
    "omnimae_b_k400": Recipe(rivals.omnimae_b_k400, "Kinetics-400", "ViT-B"),
    "omnimae_b_ssv2": Recipe(rivals.omnimae_b_ssv2, "SSv2", "ViT-B"),
    "stmae_b_k400": Recipe(rivals.stmae_b_k400, "Kinetics-400", "ViT-B"),
    "stmae_l_k400": Recipe(rivals.stmae_l_k400, "Kinetics-400", "ViT-L"),
    "maskfeat_b_k400": Recipe(rivals.maskfeat_b_k400, "Kinetics-400", "ViT-B"),
    "tokens_b_k400": Recipe(rivals.tokens_b_k400, "Kinetics-400", "ViT-B"),
    "vjepa_b_k400": Recipe(rivals.vjepa_b_k400, "Kinetics-400", "ViT-B"),
    "salt_teacher_b_k400": Recipe(rivals.salt_teacher_b_k400, "Kinetics-400", "ViT-B"),
    "salt_b_k400": Recipe(rivals.salt_b_k400, "Kinetics-400", "ViT-B"),
    "mam2_teacher_b": Recipe(pretrain.mam2_teacher_b, "any folder", "ViT-B"),
    "mam2_adapt_b": Recipe(pretrain.mam2_adapt_b, "any folder", "ViT-B"),
    "mam2_adapt_video_b": Recipe(pretrain.mam2_adapt_video_b, "any folder", "ViT-B"),
    "videomae_adapt_b": Recipe(rivals.videomae_adapt_b, "any folder", "ViT-B"),
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


def get_recipe(name: str, kind: type[Pretrain] | type[Finetune] | None = None) -> Pretrain | Finetune:
    """The configuration of a recipe; one of somebody's own package is `package.module:function`.

    Raises:
        UserError: an unknown name, or a recipe of the other kind.
    """
    if is_import_path(name):
        config = plug_in(name, FunctionType)()
        if not isinstance(config, Pretrain | Finetune):
            raise UserError(f"{name} returns {type(config).__name__}; accepted: Pretrain, Finetune.")
    elif name not in RECIPES:
        raise UserError(f"There is no recipe {name!r}. {did_you_mean(name, RECIPES)} `mam2 recipes` lists them all.")
    else:
        config = RECIPES[name].make()
    if kind is not None and not isinstance(config, kind):
        raise UserError(f"{name} is a recipe of `mam2 {type(config).__name__.lower()}`. `mam2 recipes` lists them all.")
    return config
