"""A frozen encoder as the appearance target: its features, its distance, its cost, and that it stays frozen."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mam2.config import Steps, UserError
from mam2.cost import estimate
from mam2.data.clips import Data
from mam2.losses import distance_of
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import save_encoder
from mam2.objectives.mae import MAEConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.recipes import get_recipe
from mam2.recipes.scales import scaled
from mam2.targets.table import TargetsConfig
from mam2.targets.teacher import Teacher
from mam2.train.engine import Loop
from mam2.train.pretrain import Pretrain, build, load_run, load_teacher, make_targets, pretrain

CPU = torch.device("cpu")
TEACHER = EncoderConfig(width=32, depth=2, num_heads=2, frames=4, size=16, patch_size=4)
LEARNER = EncoderConfig(width=24, depth=1, num_heads=2, frames=4, size=16, patch_size=8)


def teacher_of(config: EncoderConfig) -> tuple[VideoEncoder, Teacher]:
    torch.manual_seed(5)
    encoder = VideoEncoder(config).eval().requires_grad_(False)
    sizes = {"width": config.width, "patch_size": config.patch_size, "tubelet": config.tubelet}
    return encoder, Teacher(encoder, **sizes)


def clip_of(frames: int, size: int = 16) -> Tensor:
    return torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def normed(features: Tensor) -> Tensor:
    return (features - features.mean(-1, keepdim=True)) / (features.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()


def test_targets_are_normed_features_of_the_same_patches() -> None:
    encoder, teacher = teacher_of(TEACHER)
    clip = clip_of(4)
    torch.testing.assert_close(teacher(clip[:, :, None], 4), normed(encoder(clip)))


def test_a_teacher_of_another_grid_sees_the_picture_at_another_size() -> None:
    """A patch of 8² for the learner is one of 4² for the teacher in a picture half as large."""
    encoder, teacher = teacher_of(TEACHER)
    clip = clip_of(4, size=32)
    small = F.interpolate(clip.flatten(0, 1), (16, 16), mode="bilinear", antialias=True).unflatten(0, (2, 4))
    made = teacher(clip[:, :, None], 8)
    torch.testing.assert_close(made, normed(encoder(small)))
    assert made.shape == (2, 4, 16, 32)


@pytest.mark.parametrize(("teachers", "learners"), [(1, 2), (2, 1), (2, 4), (2, 2)])
def test_tubelets_of_teacher_and_learner(teachers: int, learners: int) -> None:
    encoder, teacher = teacher_of(replace(TEACHER, tubelet=teachers, frames=8))
    clip = clip_of(8)
    made = teacher(clip.unflatten(1, (-1, learners)), 4)
    firsts = clip.unflatten(1, (-1, learners))[:, :, : min(teachers, learners)].flatten(1, 2)
    expected = normed(encoder(firsts))
    if teachers > learners:
        expected = expected.repeat_interleave(2, dim=1)
    torch.testing.assert_close(made, expected)
    assert made.shape[1] == 8 // learners


def test_tubelets_that_do_not_fit_are_refused() -> None:
    _, teacher = teacher_of(replace(TEACHER, tubelet=2, frames=6))
    with pytest.raises(UserError, match="teacher's tubelets have 2 frames, the encoder's 3"):
        teacher(clip_of(6).unflatten(1, (-1, 3)), 4)


def test_distances() -> None:
    predicted, target = torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    assert distance_of(predicted, target, "squared").item() == pytest.approx((9 + 16 + 0.25) / 4)
    assert distance_of(predicted, target, "l1").item() == pytest.approx((3 + 4 + 0.5) / 4)
    assert distance_of(predicted, target, "smooth_l1").item() == pytest.approx((2.5 + 3.5 + 0.125) / 4)
    assert distance_of(predicted, target, "cosine").item() == pytest.approx((1 - 0 + 1 - 1) / 2)


@pytest.mark.parametrize("objective", [MAM2Config(width=24, num_heads=2, regressor_depth=1), MAEConfig(width=24)])
@pytest.mark.parametrize("distance", ["smooth_l1", "l1", "cosine"])
def test_the_loss_is_the_distance_at_masked_patches(tmp_path: Path, objective: Any, distance: Any) -> None:
    encoder, _ = teacher_of(TEACHER)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    targets = TargetsConfig(appearance="teacher", file=str(tmp_path), teacher_loss=distance)
    config = Pretrain(encoder=LEARNER, objective=objective, targets=targets)
    maker = make_targets(config, tmp_path, CPU)
    model = cast(Any, build(config))
    assert maker.sizes.appearance == 32
    clip = clip_of(4)
    sample_B = torch.arange(2)
    mask = config.mask(4, LEARNER.grid, sample_B=sample_B, seed=0)
    target = maker(clip, sample_B=sample_B, seed=0)
    losses = model(clip, mask, target, 0)
    predicted = model.reconstruct(clip, mask, target).appearance_BTMK
    expected = distance_of(predicted, target.at(mask).appearance, distance)
    torch.testing.assert_close(losses.parts["appearance"], expected.detach())


def tiny(videos: Path, file: str, **fields: Any) -> Pretrain:
    return Pretrain(
        data=Data(root=str(videos), stride_frames=1, num_workers=0),
        encoder=LEARNER,
        objective=MAEConfig(width=24, depth=1, num_heads=2),
        targets=TargetsConfig(appearance="teacher", file=file),
        loop=Loop(batch_size=2, duration=Steps(2), save_every=Steps(2)),
        **fields,
    )


def test_a_run_leaves_its_teacher_alone_and_out_of_its_files(tmp_path: Path, videos: Path) -> None:
    encoder, _ = teacher_of(TEACHER)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    config = tiny(videos, str(tmp_path / "encoder.safetensors"))
    assert pretrain(config, tmp_path / "run")
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("appearance" in line for line in losses)
    kept = [name for file in (tmp_path / "run").rglob("*.safetensors") for name in load_file(file)]
    assert kept
    assert not any("teacher" in name for name in kept)
    model, targets, _ = load_run(tmp_path / "run")
    assert targets.teacher is not None
    assert all(
        torch.equal(a, b) for a, b in zip(targets.teacher.encoder.parameters(), encoder.parameters(), strict=True)
    )
    before = copy.deepcopy(model.state_dict())
    targets(clip_of(4), sample_B=torch.arange(2), seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_teacher_must_be_named_and_fit(tmp_path: Path, videos: Path) -> None:
    with pytest.raises(UserError, match=r"'teacher' needs an encoder: --targets\.file"):
        load_teacher(tiny(videos, ""), CPU)
    encoder, _ = teacher_of(replace(TEACHER, tubelet=2))
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    config = tiny(videos, str(tmp_path))
    with pytest.raises(UserError, match="one must be a multiple of the other"):
        load_teacher(replace(config, encoder=replace(LEARNER, tubelet=3, frames=6)), CPU)


def test_the_teachers_forward_pass_is_counted(tmp_path: Path, videos: Path) -> None:
    encoder, teacher = teacher_of(TEACHER)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    with FlopCounterMode(display=False) as counter:
        teacher(clip_of(4)[:1].unflatten(1, (-1, 1)), 8)
    cost = estimate(tiny(videos, str(tmp_path)))
    assert cost.targets_tflop == pytest.approx(counter.get_total_flops() / 1e12)


def test_recipes_of_teachers() -> None:
    """SALT's second step is its predictor under V-JEPA's masks; both steps see the same clips."""
    first = cast(Pretrain, get_recipe("salt_teacher_b_k400", Pretrain))
    second = cast(Pretrain, get_recipe("salt_b_k400", Pretrain))
    vjepa = cast(Pretrain, get_recipe("vjepa_b_k400", Pretrain))
    assert first.mask == second.mask == vjepa.mask
    assert first.targets.appearance == "pixels_of_tubelets"
    assert (second.targets.appearance, second.targets.teacher_loss) == ("teacher", "l1")
    assert second.objective == MAEConfig(width=384, depth=12, num_heads=12)
    ours = cast(Pretrain, get_recipe("mam2_teacher_b", Pretrain))
    assert isinstance(ours.objective, MAM2Config)
    assert ours.targets.appearance == "teacher"
    assert scaled(ours, "tiny").targets.appearance == "teacher"
    # An image ViT of the learner's size sees each frame once: less than the VQGAN, 1.72.
    assert estimate(ours).targets_tflop == pytest.approx(0.73, abs=0.01)
