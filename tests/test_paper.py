"""The paper's tables: sizes (Table 3), shapes of every stage (Table 9), pre-training settings (Table 7)."""

import pytest
import torch
from torch import Tensor, nn

from mam2.config import Epochs
from mam2.masks import Mask, TubeMask, take
from mam2.model.encoder import Classifier, EncoderConfig, VideoEncoder, vit_b, vit_l
from mam2.objectives.mam2 import MAM2, MAM2Config

META = torch.device("meta")  # shapes and sizes without memory


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize(("encoder", "size"), [(vit_b(), (114,)), (vit_l(), (403, 404))])
def test_table_3_sizes(encoder: EncoderConfig, size: tuple[int, ...]) -> None:
    with META:
        assert int(millions(Classifier(VideoEncoder(encoder), 400))) in size


def test_table_9_shapes() -> None:
    """Every stage of the pre-training of a 16-frame ViT-B; the paper's D × T × N is (B, T, N, D) here."""
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> None:
        def hook(part: nn.Module, inputs: object, output: Tensor) -> None:
            seen[name] = tuple(output.shape)

        model.get_submodule(name).register_forward_hook(hook)

    with META:
        model = MAM2(MAM2Config(), vit_b(), num_codes=16384)
        clip_BTCHW = torch.empty(1, 16, 3, 224, 224, dtype=torch.uint8)
    mask = TubeMask()(196, sample_B=torch.tensor([0]), seed=0).to(META)
    for name, blocks in (
        ("encoder", model.encoder.blocks),
        ("regressor", model.regressor.blocks),
        ("appearance", model.appearance.blocks),
        ("motion", model.motion.blocks),
    ):
        for i in range(len(blocks)):
            note(f"{name}.blocks.{i}")
    note("appearance.project")
    note("motion.project")

    assert model.encoder.embed(clip_BTCHW).shape == (1, 16, 196, 768)
    predicted = model.predict(clip_BTCHW, mask)
    assert predicted.visible_BTVD.shape == (1, 16, 49, 768)  # 196 × (1 - 0.75)
    assert predicted.target_BTMD.shape == (1, 16, 147, 768)
    # Table 9 prints 0.25 for the regressor's output; its queries are the masked 0.75.
    assert predicted.regressed_BTMD.shape == (1, 16, 147, 768)
    expected = {f"encoder.blocks.{i}": (1, 16, 147, 768) for i in range(12)}  # the last pass is the target's
    expected |= {f"regressor.blocks.{i}": (1, 16 * 147, 768) for i in range(4)}
    expected |= {f"appearance.blocks.{i}": (1, 16, 147, 768) for i in range(4)}
    expected |= {f"motion.blocks.{i}": (1, 16, 147, 768) for i in range(2)}
    expected |= {"appearance.project": (1, 16, 147, 16384), "motion.project": (1, 16, 147, 768)}
    assert seen == expected


def test_table_9_widths() -> None:
    with META:
        model = MAM2(MAM2Config(), vit_b(), num_codes=16384)
    assert model.encoder.patch_embed.weight.shape == (768, 3, 16, 16)
    hidden = {
        block.mlp[0].out_features
        for blocks in (
            model.encoder.blocks,
            model.regressor.blocks,
            model.appearance.blocks,
            model.motion.blocks,
        )
        for block in blocks
    }
    assert hidden == {3072}
    assert model.encoder.positions.time_TD.shape == (16, 768)
    assert model.encoder.positions.space_ND.shape == (196, 768)


def test_masking_ratio_of_the_paper() -> None:
    mask: Mask = TubeMask()(196, sample_B=torch.arange(2), seed=0)
    assert (mask.visible_BV.shape[1], mask.masked_BM.shape[1]) == (49, 147)
    assert take(torch.zeros(2, 16, 196, 1), mask.visible_BV).shape == (2, 16, 49, 1)


def test_defaults_are_table_7_for_kinetics_400() -> None:
    from mam2.train.pretrain import Pretrain

    run = Pretrain()
    assert (run.optim.base_lr, run.optim.weight_decay, run.optim.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert (run.loop.batch_size, run.loop.duration, run.optim.warmup) == (128, Epochs(800), Epochs(20))
    assert (run.data.flip, run.data.augment, run.data.stride_frames) == (True, "multi_scale_crop", 4)
    assert (run.encoder, run.mask.ratio, run.targets.appearance) == (vit_b(), 0.75, "vqgan")
    assert (run.objective.alignment_weight, run.optim.layer_decay) == (2.0, 1.0)
    assert (run.encoder.drop_path, run.optim.max_grad_norm) == (0.0, 0.0)
