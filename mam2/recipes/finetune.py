"""Fine-tuning recipes: Table 8, column by column."""

from __future__ import annotations

from dataclasses import replace

from mam2.config import Epochs
from mam2.data.clips import Data
from mam2.model.encoder import vit_l
from mam2.recipes.pretrain import mam2_tiny
from mam2.train.engine import Loop
from mam2.train.finetune import Finetune


def finetune_b_k400() -> Finetune:
    """Tables 3 and 8: ViT-B on Kinetics-400, 100 epochs, tested with 7 × 3 views."""
    return Finetune()


def finetune_l_k400() -> Finetune:
    """Tables 3 and 8: ViT-L on Kinetics-400, 35 epochs, tested with 7 × 3 views."""
    base = Finetune()
    return replace(
        base,
        encoder=replace(vit_l(), drop_path=0.1),
        optim=replace(base.optim, base_lr=1e-3),
        loop=replace(base.loop, batch_size=64, duration=Epochs(35)),
    )


def finetune_b_ssv2() -> Finetune:
    """Tables 4 and 8: ViT-B on Something-Something V2, 35 epochs, uniform clips, no flip, tested with 2 × 3 views.

    Paper: "uniform sampling with stride 2 following TSN"; here: TSN's 16 segments of the whole video, no stride.
    """
    base = Finetune()
    return replace(
        base,
        data=replace(base.data, flip=False, sampling="uniform", short="repeat"),
        loop=replace(base.loop, duration=Epochs(35)),
        clips=2,
    )


def finetune_b_ucf101() -> Finetune:
    """Tables 5 and 8: ViT-B on UCF101, 100 epochs.

    Paper: test views not given; here: VideoMAE's 5 × 3.
    """
    base = Finetune()
    return replace(base, optim=replace(base.optim, base_lr=1e-4), loop=replace(base.loop, batch_size=24), clips=5)


def finetune_b_hmdb51() -> Finetune:
    """Tables 5 and 8: ViT-B on HMDB51, 60 epochs; the rest as `finetune_b_ucf101`."""
    base = finetune_b_ucf101()
    return replace(base, loop=replace(base.loop, duration=Epochs(60)))


def finetune_lite_b_k400() -> Finetune:
    """Not the paper's: `finetune_b_k400` for the encoder of `mam2_lite_b_k400`, in tubelets of 2 frames."""
    base = finetune_b_k400()
    return replace(base, encoder=replace(base.encoder, tubelet=2))


def finetune_lite_l_k400() -> Finetune:
    """Not the paper's: `finetune_l_k400` for the encoder of `mam2_lite_l_k400`, in tubelets of 2 frames."""
    base = finetune_l_k400()
    return replace(base, encoder=replace(base.encoder, tubelet=2))


def finetune_tiny() -> Finetune:
    """Not the paper's: for the encoder of `mam2_tiny`, on a laptop."""
    return Finetune(
        data=Data(stride_frames=4, augment="multi_scale_crop"),
        encoder=mam2_tiny().encoder,
        optim=replace(Finetune().optim, base_lr=1.6e-2, min_lr=1e-5, layer_decay=0.9, max_grad_norm=3.0),
        loop=Loop(batch_size=16, duration=Epochs(40), save_every=Epochs(10)),
        mixup=0.0,
        cutmix=0.0,
        clips=5,
        crops=1,
        pooling="space",
    )
