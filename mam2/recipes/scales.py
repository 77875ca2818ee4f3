"""Any recipe at another size: "nano" and "tiny" run on a laptop, "small" on one GPU, "base" is as printed.

A scale replaces sizes, lengths, and what depends on them: batch and learning rate. What makes a recipe a row of a
table stays: parts, masks, targets, strides, and widths and depths as shares of the base's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mam2.config import Duration, Steps
from mam2.model.encoder import EncoderConfig, vit_b
from mam2.objectives.contract import Proportion
from mam2.recipes.finetune import finetune_tiny
from mam2.recipes.pretrain import mam2_tiny
from mam2.targets.table import TargetsConfig
from mam2.train.finetune import Finetune
from mam2.train.pretrain import Pretrain

ScaleName = Literal["nano", "tiny", "small", "base"]
LAPTOP: tuple[ScaleName, ...] = ("nano", "tiny")
"""Scales at which one thread, and no decoding process, is fastest."""
BASE = vit_b()


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes that replace those of ViT-B.

    Attributes:
        encoder: encoder in place of ViT-B; ViT-L keeps its ratio to that.
        pretrain: run that gives pre-trainings their optimiser, batch and length.
        finetune: run that gives fine-tunings their optimiser, batch, length, augmentation, pooling and views.
        tokens: tokenizers in place of the paper's: a name of APPEARANCE_TARGETS and a number of codes.
    """

    encoder: EncoderConfig
    pretrain: Pretrain
    finetune: Finetune
    tokens: dict[str, tuple[str, int]]

    @property
    def proportion(self) -> Proportion:
        """The scale's sizes in proportion to ViT-B's."""
        return Proportion(base=BASE, to=self.encoder)


def _nano() -> Scale:
    """The quickstart's sizes: two fifths of the operations of tiny, and easier to learn from (docs/log/learning.md)."""
    tiny = _tiny()
    encoder = replace(tiny.encoder, width=96, depth=3, num_heads=3, size=24, patch_size=4)
    loop = replace(tiny.pretrain.loop, duration=Steps(4000))
    return replace(tiny, encoder=encoder, pretrain=replace(tiny.pretrain, loop=loop))


def _tiny() -> Scale:
    return Scale(encoder=mam2_tiny().encoder, pretrain=mam2_tiny(), finetune=finetune_tiny(), tokens=_tokens(128))


def _small() -> Scale:
    tiny = _tiny()
    encoder = EncoderConfig(width=384, depth=12, num_heads=6, frames=16, size=112, patch_size=8)
    optim = replace(tiny.pretrain.optim, base_lr=1.2e-3, warmup=Steps(500))
    loop = replace(tiny.pretrain.loop, batch_size=128, duration=Steps(20_000), save_every=Steps(1000))
    tuning = replace(tiny.finetune.optim, base_lr=1e-3)
    return Scale(
        encoder=encoder,
        pretrain=replace(tiny.pretrain, optim=optim, loop=loop),
        finetune=replace(tiny.finetune, optim=tuning, loop=replace(tiny.finetune.loop, batch_size=64)),
        tokens=_tokens(1024),
    )


def _tokens(num_codes: int) -> dict[str, tuple[str, int]]:
    """For either VQGAN a VQ model of one's own videos, the smaller with half the codes."""
    return {
        "vqgan_16384": ("vq", num_codes),
        "vqgan_8192": ("vq", num_codes // 2),
        "dalle": ("random_projection", num_codes),
        "random_projection": ("random_projection", num_codes),
    }


SCALES = {"nano": _nano, "tiny": _tiny, "small": _small}


def scaled(config: Pretrain, scale: ScaleName) -> Pretrain:
    """A pre-training recipe for ViT-B or ViT-L at a scale."""
    if scale == "base":
        return config
    to = SCALES[scale]()
    loop = replace(to.pretrain.loop, seed=config.loop.seed)
    optim = replace(
        to.pretrain.optim,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
        weight_decay_end=config.optim.weight_decay_end,
        # Over fewer blocks, so that the lowest one's rate is as small a share of the top's.
        layer_decay=config.optim.layer_decay ** (BASE.depth / to.encoder.depth),
        freeze_encoder_for=loop.duration.times(0.05) if config.optim.freeze_encoder_for.value else Steps(0),
    )
    return replace(
        config,
        data=replace(config.data, repeats=1),
        encoder=scaled_encoder(config.encoder, to),
        objective=config.objective.scaled(to.proportion, loop.duration),
        targets=_targets(config.targets, to),
        optim=optim,
        loop=loop,
    )


def scaled_finetune(config: Finetune, scale: ScaleName) -> Finetune:
    """A fine-tuning recipe at a scale; flip and sampling of the data set stay."""
    if scale == "base":
        return config
    to = SCALES[scale]()
    kept = {name: getattr(config.data, name) for name in ("root", "flip", "sampling", "short")}
    encoder = replace(scaled_encoder(config.encoder, to), drop_path=to.finetune.encoder.drop_path)
    return replace(to.finetune, data=replace(to.finetune.data, **kept), encoder=encoder, init=config.init)


def scaled_encoder(encoder: EncoderConfig, to: Scale) -> EncoderConfig:
    """The encoder's kind of attention, tubelets and positions, with sizes in proportion to ViT-B's."""
    width, num_heads = to.proportion.width(encoder.width, encoder.num_heads)
    return replace(
        encoder,
        width=width,
        num_heads=num_heads,
        depth=to.proportion.depth(encoder.depth),
        frames=to.encoder.frames,
        size=to.encoder.size,
        patch_size=to.encoder.patch_size,
    )


def with_duration(config: Pretrain, duration: Duration) -> Pretrain:
    """The recipe for another duration; what depends on it, as α's ramp does, stays in proportion."""
    before = config.loop.duration
    objective = config.objective
    if duration.unit == before.unit:
        objective = objective.stretched(duration.value / before.value)
    return replace(config, objective=objective, loop=replace(config.loop, duration=duration))


def _targets(targets: TargetsConfig, to: Scale) -> TargetsConfig:
    appearance, num_codes = to.tokens.get(targets.appearance, (targets.appearance, targets.num_codes))
    return replace(targets, appearance=appearance, num_codes=num_codes, vq_steps=200, file="")
