"""Recipes by name: functions that return a complete configuration (`RECIPES`, `get_recipe`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

from mam2.config import UserError, did_you_mean, is_plug_in, load_plug_in
from mam2.model.encoder import vit_b, vit_l
from mam2.recipes import ablations, finetune, pretrain, rivals
from mam2.recipes.tables import DATA_SETS
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain


@dataclass(frozen=True)
class Recipe:
    """A named run; `make` returns its configuration, and has its name."""

    make: Callable[[], Pretrain | Finetune]

    @property
    def data(self) -> str:
        """The data set that the recipe is meant for."""
        words = self.make.__name__.split("_")
        anything = "any class folders" if isinstance(self.make(), Finetune) else "any folder"
        return next((name for word, name in DATA_SETS.items() if word in words), anything)

    @property
    def model(self) -> str:
        """The encoder's size."""
        return {vit_b().width: "ViT-B", vit_l().width: "ViT-L"}.get(self.make().encoder.width, "tiny")


RECIPES: dict[str, Recipe] = {
    make.__name__: Recipe(make)
    for make in (
        pretrain.mam2_b_k400, pretrain.mam2_l_k400, pretrain.mam2_l_k400_600,
        pretrain.mam2_b_ssv2, pretrain.mam2_b_ucf101, pretrain.mam2_b_hmdb51,
        *(make for name, make in vars(ablations).items() if name.startswith("ablation")),
        pretrain.mam2_b_k400_rp, pretrain.mam2_lite_b_k400, pretrain.mam2_lite_l_k400,
        pretrain.mam2_flash_b_k400, pretrain.mam2_flash_l_k400,
        rivals.videomae_b_k400, rivals.videomae_l_k400,
        rivals.videomae_b_ssv2, rivals.videomae_b_ucf101, rivals.videomae_b_hmdb51,
        rivals.omnimae_b_k400, rivals.omnimae_b_ssv2, rivals.stmae_b_k400, rivals.stmae_l_k400,
        rivals.maskfeat_b_k400, rivals.tokens_b_k400, rivals.vjepa_b_k400,
        rivals.salt_teacher_b_k400, rivals.salt_b_k400,
        pretrain.mam2_teacher_b, pretrain.mam2_adapt_b, pretrain.mam2_adapt_video_b, rivals.videomae_adapt_b,
        pretrain.mam2_tiny,
        finetune.finetune_b_k400, finetune.finetune_l_k400,
        finetune.finetune_b_ssv2, finetune.finetune_b_ucf101, finetune.finetune_b_hmdb51,
        finetune.finetune_lite_b_k400, finetune.finetune_lite_l_k400,
        finetune.finetune_tiny,
    )
}  # fmt: skip


def get_recipe(name: str, kind: type[Pretrain] | type[Finetune] | None = None) -> Pretrain | Finetune:
    """The configuration of a recipe; one of somebody's own package is `package.module:function`.

    Raises:
        UserError: an unknown name, or a recipe of the other kind.
    """
    if is_plug_in(name):
        config = load_plug_in(name, FunctionType)()
        if not isinstance(config, Pretrain | Finetune):
            raise UserError(f"{name} returns {type(config).__name__}; accepted: Pretrain, Finetune.")
    elif name not in RECIPES:
        raise UserError(f"There is no recipe {name!r}. {did_you_mean(name, RECIPES)} `mam2 recipes` lists them all.")
    else:
        config = RECIPES[name].make()
    if kind is not None and not isinstance(config, kind):
        raise UserError(f"{name} is a recipe of `mam2 {type(config).__name__.lower()}`. `mam2 recipes` lists them all.")
    return config
