"""The paper's tables: sizes (Table 3), shapes of every stage (Table 9), and every recipe against its row."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mam2.config import Epochs, Steps, to_json
from mam2.masks import Mask, MaskConfig, take
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, VideoEncoder, vit_b, vit_l
from mam2.model.regressor import MaskTokens, Regressor
from mam2.objectives.mae import MAE
from mam2.objectives.mam2 import MAM2, Alignment, MAM2Config, NoAlignment
from mam2.recipes import RECIPES, get_recipe
from mam2.recipes.tables import TABLES, TableRow, get_table
from mam2.targets.table import TargetSizes
from mam2.train.finetune import Finetune
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain, build

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
        model = MAM2(MAM2Config(), vit_b(), TargetSizes(16384, 768))
        clip_BTCHW = torch.empty(1, 16, 3, 224, 224, dtype=torch.uint8)
    mask = MaskConfig()(16, (14, 14), sample_B=torch.tensor([0]), seed=0).to(META)
    for name, blocks in (
        ("encoder", model.encoder.blocks),
        ("regressor", model.regressor.blocks),
        ("decoders.appearance", model.decoders["appearance"].blocks),
        ("decoders.motion", model.decoders["motion"].blocks),
    ):
        for i in range(len(blocks)):
            note(f"{name}.blocks.{i}")
    note("decoders.motion.heads.motion.project")
    note("decoders.appearance.heads.appearance.project")

    assert model.encoder.embed(clip_BTCHW).x_BTVD.shape == (1, 16, 196, 768)
    predicted = model.predict(clip_BTCHW, mask)
    assert predicted.visible_BTVD.shape == (1, 16, 49, 768)  # 196 × (1 - 0.75)
    assert predicted.target_BTAD.shape == (1, 16, 147, 768)
    # Table 9 prints 0.25 for the regressor's output; its queries are the masked 0.75.
    assert predicted.latent.x_BTSD.shape == (1, 16, 147, 768)
    expected = {f"encoder.blocks.{i}": (1, 16, 147, 768) for i in range(12)}  # the last pass is the target's
    expected |= {f"regressor.blocks.{i}": (1, 16 * 147, 768) for i in range(4)}
    expected |= {f"decoders.appearance.blocks.{i}": (1, 16, 147, 768) for i in range(4)}
    expected |= {f"decoders.motion.blocks.{i}": (1, 16, 147, 768) for i in range(2)}
    for _, kind, head in model.heads():
        head(predicted.hidden[kind])
    expected |= {"decoders.motion.heads.motion.project": (1, 16, 147, 768)}
    expected |= {"decoders.appearance.heads.appearance.project": (1, 16, 147, 16384)}
    assert seen == expected


def test_table_9_widths() -> None:
    with META:
        model = MAM2(MAM2Config(), vit_b(), TargetSizes(16384, 768))
    assert model.encoder.patch_embed.weight.shape == (768, 3, 16, 16)
    hidden = {
        block.mlp[0].out_features
        for blocks in (
            model.encoder.blocks,
            model.regressor.blocks,
            model.decoders["appearance"].blocks,
            model.decoders["motion"].blocks,
        )
        for block in blocks
    }
    assert hidden == {3072}
    assert model.encoder.positions.time_TD.shape == (16, 768)
    assert model.encoder.positions.space_ND.shape == (196, 768)


def test_masking_ratio_of_the_paper() -> None:
    mask: Mask = MaskConfig()(16, (14, 14), sample_B=torch.arange(2), seed=0)
    assert (mask.visible_BTV.shape[2], mask.masked_BTM.shape[2]) == (49, 147)
    assert take(torch.zeros(2, 16, 196, 1), mask.visible_BTV).shape == (2, 16, 49, 1)


def fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as dotted names and values."""
    found: dict[str, Any] = {}
    for name, value in to_json(config).items() if not isinstance(config, dict) else config.items():
        found |= fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def changes(recipe: str, base: str) -> dict[str, Any]:
    """The fields in which a recipe differs from another."""
    before, after = fields(get_recipe(base)), fields(get_recipe(recipe))
    assert before.keys() == after.keys()
    return {name: after[name] for name in after if after[name] != before[name]}


def test_defaults_are_the_papers() -> None:
    run = Pretrain()
    assert fields(get_recipe("mam2_b_k400")) == fields(run)
    assert (run.encoder, run.mask, run.data.stride_frames) == (vit_b(), MaskConfig(kind="tube", ratio=0.75), 4)
    assert (run.targets.appearance, run.targets.motion) == ("vqgan_16384", "rgb_difference")
    objective = run.objective
    assert (objective.regressor_depth, objective.appearance_depth, objective.motion_depth) == (4, 4, 2)
    assert (objective.decoders, objective.alignment_weight) == ("disentangled", 2.0)
    sized = objective.sized_for(run.encoder)
    assert (sized.width, sized.num_heads) == (768, 12)
    assert objective.alignment_ramp == Steps(0)
    assert (run.encoder.drop_path, run.encoder.layer_scale, run.optim.max_grad_norm) == (0.0, 0.0, 0.0)
    assert (objective.context, objective.teacher_momentum, objective.alignment_target) == ("visible", 0.0, "plain")
    tuning = Optim(base_lr=5e-4, min_lr=1e-6, betas=(0.9, 0.999), warmup=Epochs(5), layer_decay=0.75)
    assert Finetune().optim == tuning  # Table 8


# name: batch size, pre-training epochs, warm-up epochs, flip
TABLE_7 = {
    "Kinetics-400": (128, 800, 20, True),
    "Sth-Sth V2": (128, 1200, 30, False),
    "UCF101": (32, 1200, 30, True),
    "HMDB51": (32, 1600, 40, True),
}


@pytest.mark.parametrize("row", get_table("7").rows, ids=lambda row: row.name)
def test_table_7(row: TableRow) -> None:
    run = get_recipe(row.recipe, Pretrain)
    batch_size, epochs, warmup, flip = TABLE_7[row.name]
    assert (run.optim.base_lr, run.optim.weight_decay, run.optim.betas) == (1.5e-4, 0.05, (0.9, 0.95))
    assert (run.loop.batch_size, run.loop.duration, run.optim.warmup) == (batch_size, Epochs(epochs), Epochs(warmup))
    assert (run.data.flip, run.data.augment, run.optim.layer_decay) == (flip, "multi_scale_crop", 1.0)
    changed = {"loop.batch_size", "loop.duration", "optim.warmup", "data.flip"}
    assert changes(row.recipe, "mam2_b_k400").keys() <= changed


# name: base learning rate, batch size, epochs, flip, test clips
TABLE_8 = {
    "Kinetics-400 (B)": (5e-4, 256, 100, True, 7),
    "Kinetics-400 (L)": (1e-3, 64, 35, True, 7),
    "Sth-Sth V2": (5e-4, 256, 35, False, 2),
    "UCF101": (1e-4, 24, 100, True, 5),
    "HMDB51": (1e-4, 24, 60, True, 5),
}


@pytest.mark.parametrize("row", get_table("8").rows, ids=lambda row: row.name)
def test_table_8(row: TableRow) -> None:
    run = get_recipe(row.recipe, Finetune)
    base_lr, batch_size, epochs, flip, clips = TABLE_8[row.name]
    assert (run.optim.base_lr, run.optim.weight_decay, run.optim.betas) == (base_lr, 0.05, (0.9, 0.999))
    assert (run.loop.batch_size, run.loop.duration, run.optim.warmup) == (batch_size, Epochs(epochs), Epochs(5))
    assert (run.optim.layer_decay, run.label_smoothing, run.encoder.drop_path) == (0.75, 0.1, 0.1)
    assert (run.data.flip, run.clips, run.crops) == (flip, clips, 3)
    assert (run.data.rand_augment_ops, run.data.rand_augment_magnitude) == (2, 9.0)
    assert (run.mixup, run.cutmix, run.data.repeats, run.data.erasing) == (0.8, 1.0, 2, 0.0)
    # App. B: dense clips with stride 4, but for Something-Something V2.
    assert (run.data.sampling, run.data.stride_frames) == ("uniform" if "V2" in row.name else "dense", 4)
    assert run.encoder == replace(vit_l() if "(L)" in row.name else vit_b(), drop_path=0.1)


# Tables 1 and 2: the row, the paper's number, and all that is other than in the row marked in grey.
ABLATIONS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "1a": [
        ("2, 2", "90.54", {"objective.appearance_depth": 2}),
        ("4, 4", "90.97", {"objective.motion_depth": 4}),
        ("4, 2", "91.09", {}),
    ],
    "1b": [("2", "90.86", {"data.stride_frames": 2}), ("4", "91.09", {}), ("8", "90.27", {"data.stride_frames": 8})],
    "1c": [
        ("384", "90.08", {"objective.width": 384, "objective.num_heads": 6}),
        ("512", "90.35", {"objective.width": 512, "objective.num_heads": 8}),
        ("768", "91.09", {}),
    ],
    "1d": [
        ("cube 40%", "89.87", {"mask.kind": "cube", "mask.ratio": 0.4}),
        ("tube 60%", "90.26", {"mask.ratio": 0.6}),
        ("tube 75%", "91.09", {}),
        ("tube 90%", "87.76", {"mask.ratio": 0.9}),
    ],
    "1e": [
        ("VQGAN-8192", "90.88", {"targets.appearance": "vqgan_8192"}),
        ("VQGAN-16384", "91.09", {}),
        ("DALL-E", "90.61", {"targets.appearance": "dalle"}),
    ],
    "1f": [
        ("optical flow", "91.05", {"targets.motion": "optical_flow"}),
        ("RGB-diff", "91.09", {}),
        ("clip-order", "90.12", {"targets.motion": "clip_order"}),
    ],
    "2": [
        ("MAM²-c", "89.82", {"objective.decoders": "coupled"}),
        ("w/o appearance", "87.56", {"objective.decoders": "motion"}),
        ("w/o motion", "90.03", {"objective.decoders": "appearance"}),
        ("w/o regressor", "90.84", {"objective.regressor_depth": 0}),
        ("w/o alignment", "90.63", {"objective.alignment_weight": 0.0}),
        ("MAM²", "91.09", {}),
    ],
}


@pytest.mark.parametrize("number", ABLATIONS)
def test_each_row_of_tables_1_and_2_changes_one_thing(number: str) -> None:
    rows = get_table(number).rows
    found = [(row.name, row.paper, changes(row.recipe, "ablation")) for row in rows]
    assert found == ABLATIONS[number]
    assert {row.finetune for row in rows} == {"finetune_b_ucf101"}
    # "We uniformly pretrain 800 epochs" (caption of Table 1); Table 5's run has 1200.
    assert changes("ablation", "mam2_b_ucf101") == {"loop.duration": "800 epochs", "optim.warmup": "20 epochs"}


def test_numbers_of_tables_3_to_5() -> None:
    found = {(n, row.name): (row.recipe, row.paper, row.top5) for n in "345" for row in get_table(n).rows}
    assert found == {
        ("3", "MaskFeat, MViT-L (here ViT-B)"): ("maskfeat_b_k400", "84.3", "96.3"),
        ("3", "BEVT, Swin-B (here ViT-B)"): ("tokens_b_k400", "80.6", ""),
        ("3", "VideoMAE, ViT-B"): ("videomae_b_k400", "80.9", "94.7"),
        ("3", "VideoMAE, ViT-L"): ("videomae_l_k400", "84.7", "96.5"),
        ("3", "OmniMAE, ViT-B"): ("omnimae_b_k400", "80.6", ""),
        ("3", "ST-MAE, ViT-B"): ("stmae_b_k400", "81.3", "94.9"),
        ("3", "ST-MAE, ViT-L"): ("stmae_l_k400", "84.8", "96.2"),
        ("3", "MAM², ViT-B, 800 epochs"): ("mam2_b_k400", "82.3", "95.3"),
        ("3", "MAM², ViT-L, 600 epochs"): ("mam2_l_k400_600", "84.8", "96.4"),
        ("3", "MAM², ViT-L, 800 epochs"): ("mam2_l_k400", "85.3", "96.7"),
        ("4", "OmniMAE, ViT-B"): ("omnimae_b_ssv2", "69.5", ""),
        ("4", "VideoMAE, ViT-B"): ("videomae_b_ssv2", "70.6", "92.7"),
        ("4", "MAM², ViT-B, 1200 epochs"): ("mam2_b_ssv2", "71.3", "93.1"),
        ("5", "VideoMAE, UCF101"): ("videomae_b_ucf101", "90.8", ""),
        ("5", "VideoMAE, HMDB51"): ("videomae_b_hmdb51", "61.1", ""),
        ("5", "MAM², UCF101, 1200 epochs"): ("mam2_b_ucf101", "91.5", ""),
        ("5", "MAM², HMDB51, 1600 epochs"): ("mam2_b_hmdb51", "62.5", ""),
    }
    large = changes("mam2_l_k400", "mam2_b_k400")
    assert large == {
        "encoder.width": 1024,
        "encoder.depth": 24,
        "encoder.num_heads": 16,
    }
    assert changes("mam2_l_k400_600", "mam2_l_k400") == {"loop.duration": "600 epochs"}


RIVALS = ("videomae", "omnimae", "stmae", "maskfeat", "tokens", "vjepa")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(RIVALS)])
def test_every_rival_builds_its_model(name: str) -> None:
    run = get_recipe(name, Pretrain)
    with META:
        model = build(run)
    if name.startswith("videomae"):
        assert isinstance(model, MAE)
        decoder = 39.5 if "_l_" in name else 8  # 94.2 and 343 M in all, as VideoMAE's
        assert millions(model.decoder) == pytest.approx(decoder, abs=0.5)
    if "joint" in run.encoder.attention:  # Table 3's sizes: 87 M, 304 or 305 M
        assert millions(Classifier(model.encoder, 400)) == pytest.approx(304.2 if "_l_" in name else 86.7, abs=1)


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith(("finetune", "salt", *RIVALS))])
def test_every_pre_training_recipe_builds_its_model(name: str) -> None:
    run = get_recipe(name, Pretrain)
    with META:
        model = build(run)
    assert {decoder: list(model.decoders[decoder].heads) for decoder in model.decoders} == {
        "ablation_coupled": {"shared": ["appearance", "motion"]},
        "ablation_no_appearance": {"motion": ["motion"]},
        "ablation_no_motion": {"appearance": ["appearance"]},
        "mam2_flash_b_k400": {"shared": ["appearance", "motion"]},
        "mam2_flash_l_k400": {"shared": ["appearance", "motion"]},
    }.get(name, {"appearance": ["appearance"], "motion": ["motion"]})
    mask_tokens = name.startswith(("ablation_no_regressor", "mam2_flash"))
    assert isinstance(model.regressor, MaskTokens if mask_tokens else Regressor)
    without = name.startswith(("ablation_no_regressor", "ablation_no_alignment", "mam2_flash"))
    assert isinstance(model.alignment, NoAlignment if without else Alignment)
    if "ablation" in name:
        assert millions(Classifier(model.encoder, 400)) == pytest.approx(114.5, abs=0.1)


def test_every_recipe_says_what_it_is() -> None:
    for name, recipe in RECIPES.items():
        text = recipe.make.__doc__ or ""
        assert text.startswith(("Table", "Not the paper's", "The default of Tables 1 and 2")), name
        for number, table in TABLES.items():
            if name != "ablation" and any(row.recipe == name for row in table.rows):
                assert number in text.split(":")[0], (name, number)
