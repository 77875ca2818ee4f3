"""What joins the parts: gradients, draws, mixing, optimisers, views, by known answers on small models."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import write_video
from torch import Tensor, nn

import mam2.train.finetune as finetuning
import mam2.train.pretrain as pretraining
from mam2.config import Steps
from mam2.data.bad_videos import BadVideos
from mam2.data.clips import Data
from mam2.data.views import Views
from mam2.evaluate import evaluate
from mam2.losses import Losses
from mam2.masks import Mask, MaskConfig
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import save_encoder
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.targets.maker import Targets
from mam2.targets.table import TargetsConfig, TargetSizes
from mam2.train.engine import Loop, fit, train_step
from mam2.train.finetune import Finetune, finetune
from mam2.train.optim import Optim, make_optimizer
from mam2.train.pretrain import Pretrain, pretrain

ENCODER = EncoderConfig(width=16, depth=2, num_heads=2, frames=4, size=16, patch_size=4)
OBJECTIVE = MAM2Config(regressor_depth=1, appearance_depth=1, motion_depth=1)
NUM_CODES = 8
DATA = Data(stride_frames=1, num_workers=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos in two classes."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(8):
        path = root / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, num_frames=8 + number, size=(24, 32))
    return root


@dataclass
class Caught:
    """What a run hands to the loop."""

    model: nn.Module
    loss_of: Any
    loader: Any
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]

    def batches(self) -> list[Any]:
        return list(self.loader)


def caught(monkeypatch: pytest.MonkeyPatch, module: Any, run: Any, config: Any, out: Path) -> Caught:
    """Starts a run, and stops it at the door of the loop."""
    found = list[Caught]()

    def loop(model: nn.Module, loss_of: Any, loader: Any, optimizer: Any, **settings: Any) -> bool:
        found.append(Caught(model, loss_of, loader, optimizer, settings))
        return True

    monkeypatch.setattr(module, "fit", loop)
    run(config, out)
    return found[0]


# Gradients


def reached(model: MAM2, loss: Tensor) -> set[str]:
    """The modules that a loss reaches with a gradient that is not zero."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    names = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return {".".join(name.split(".")[: 2 if name.startswith("decoders") else 1]) for name in names}


@pytest.mark.parametrize("width", [16, 8])
def test_each_part_of_the_loss_reaches_the_modules_it_should_and_no_other(width: int) -> None:
    torch.manual_seed(0)
    config = replace(OBJECTIVE, width=width, num_heads=2)
    model = MAM2(config, ENCODER, TargetSizes(NUM_CODES, 48))
    mask = MaskConfig()(4, ENCODER.grid, sample_B=torch.tensor([1, 2]), seed=0)
    targets = Targets(torch.randint(NUM_CODES, (2, 4, 16)), torch.rand(2, 3, 16, 48))
    target = targets.at(mask)
    parts = model.losses(model.predict(torch.rand(2, 4, 3, 16, 16), mask), mask, target)
    base = {"encoder", "regressor"} | ({"project", "project_position"} if width != 16 else set())
    assert reached(model, parts["appearance"]) == base | {"decoders.appearance"}
    assert reached(model, parts["motion"]) == base | {"decoders.motion"}
    assert reached(model, parts["alignment"]) == base


def test_the_gradient_of_a_step_is_that_of_equation_4() -> None:
    torch.manual_seed(0)
    model = MAM2(replace(OBJECTIVE, alignment_weight=3.0), ENCODER, TargetSizes(NUM_CODES, 48))
    mask = MaskConfig()(4, ENCODER.grid, sample_B=torch.tensor([1, 2]), seed=0)
    targets = Targets(torch.randint(NUM_CODES, (2, 4, 16)), torch.rand(2, 3, 16, 48))
    clip = torch.rand(2, 4, 3, 16, 16)
    parts = model.losses(model.predict(clip, mask), mask, targets.at(mask))
    weighted = parts["appearance"] + parts["motion"] + 3.0 * parts["alignment"]
    expected = torch.autograd.grad(weighted, list(model.parameters()), allow_unused=True)
    model(clip, mask, targets, 0).total.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


# Pre-training


class Spy(nn.Module):
    """An objective that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[tuple[Tensor, Mask, Targets, int]]()

    def forward(self, clip: Tensor, mask: Mask, targets: Targets, step: int) -> Losses:
        self.seen.append((clip, mask, targets, step))
        return Losses(torch.zeros(()), {}, features_BTD=None)


@pytest.mark.parametrize("motion", ["rgb_difference", "clip_order"])
def test_masks_and_targets_are_drawn_anew_for_each_sample_of_the_run(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, motion: Any
) -> None:
    config = Pretrain(
        data=replace(DATA, root=str(videos)),
        encoder=ENCODER,
        objective=OBJECTIVE,
        mask=MaskConfig(kind="tube", ratio=0.5),
        targets=TargetsConfig(appearance="random_projection", num_codes=NUM_CODES, motion=motion),
        loop=Loop(batch_size=4, duration=Steps(3), seed=5),
    )
    run = caught(monkeypatch, pretraining, pretrain, config, tmp_path / "run")
    spy = Spy()
    batches = run.batches()
    for step, batch in enumerate(batches):
        run.loss_of(spy, batch, step)
    assert [step for *_, step in spy.seen] == [0, 1, 2]
    for step, (clip, mask, _, _) in enumerate(spy.seen):
        assert torch.equal(clip, batches[step].clip_BTCHW)
        samples = torch.arange(4 * step, 4 * step + 4)
        expected = config.mask(4, ENCODER.grid, sample_B=samples, seed=5)
        assert torch.equal(mask.masked_BTM, expected.masked_BTM)
    masked = torch.cat([mask.masked_BTM[:, 0] for _, mask, _, _ in spy.seen])
    assert len({tuple(row) for row in masked.sort(dim=1).values.tolist()}) > 8
    if motion == "clip_order":
        order = torch.cat([targets.swapped_BM for _, _, targets, _ in spy.seen])  # of all tubes
        assert len({tuple(row) for row in order.tolist()}) > 8
        again = Spy()
        run.loss_of(again, batches[0], 0)
        assert torch.equal(again.seen[0][2].swapped_BM, order[:4])
    clips = torch.cat([clip for clip, *_ in spy.seen])
    assert len({clip.numpy().tobytes() for clip in clips}) == 12


# Fine-tuning


def tuned(videos: Path, **changes: Any) -> Finetune:
    base = Finetune(
        init="scratch",
        data=replace(DATA, root=str(videos), augment="random_resized_crop"),
        encoder=ENCODER,
        optim=Optim(layer_decay=0.5, weight_decay=0.1, warmup=Steps(0)),
        loop=Loop(batch_size=4, duration=Steps(4), seed=3),
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
    )
    return replace(base, **changes)


class Head(nn.Module):
    """Keeps the clips, and answers with fixed logits."""

    def __init__(self, logits_BK: Tensor) -> None:
        super().__init__()
        self.logits_BK = logits_BK
        self.clips = list[Tensor]()

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        self.clips.append(clip_BTCHW)
        return self.logits_BK


LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.0], [1.0, 1.5]])


def test_the_loss_of_fine_tuning_is_cross_entropy_with_smoothed_labels(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for smoothing in (0.0, 0.2):
        config = tuned(videos, label_smoothing=smoothing)
        run = caught(monkeypatch, finetuning, finetune, config, tmp_path / str(smoothing))
        for batch in run.batches():
            head = Head(LOGITS)
            losses = run.loss_of(head, batch, 0)
            expected = F.cross_entropy(LOGITS, batch.label_B, label_smoothing=smoothing)
            torch.testing.assert_close(losses.total, expected)
            torch.testing.assert_close(head.clips[0], batch.clip_BTCHW / 255)


def test_mixup_mixes_clips_and_labels_alike_and_anew_in_every_step(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = caught(monkeypatch, finetuning, finetune, tuned(videos, mixup=1.0, label_smoothing=0.1), tmp_path / "run")
    shares = []
    for step, batch in enumerate(run.batches()):
        head = Head(LOGITS)
        total = run.loss_of(head, batch, step).total
        clip, partner = batch.clip_BTCHW.float() / 255, batch.clip_BTCHW.flip(0).float() / 255
        apart = clip - partner
        mixed = head.clips[0]
        share = ((mixed - partner) * apart).sum() / apart.square().sum()  # least squares
        torch.testing.assert_close(mixed, share * clip + (1 - share) * partner, atol=4e-3, rtol=0)
        one_hot = F.one_hot(batch.label_B, 2).float()
        target = (share * one_hot + (1 - share) * one_hot.flip(0)) * 0.9 + 0.05
        torch.testing.assert_close(total, -(target * LOGITS.log_softmax(1)).sum(1).mean(), atol=4e-3, rtol=0)
        shares.append(share.item())
    assert len({round(share, 3) for share in shares}) == 4
    assert all(0 < share < 1 for share in shares)


def test_cutmix_puts_a_box_of_the_partner_in(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = caught(monkeypatch, finetuning, finetune, tuned(videos, cutmix=1.0), tmp_path / "run")
    boxes = []
    for step, batch in enumerate(run.batches()):
        head = Head(LOGITS)
        total = run.loss_of(head, batch, step).total
        clip, partner = batch.clip_BTCHW / 255, batch.clip_BTCHW.flip(0) / 255
        assert ((head.clips[0] == clip) | (head.clips[0] == partner)).all()
        differs = (clip != partner).any(dim=(0, 1, 2))
        taken = (head.clips[0] != clip).any(dim=(0, 1, 2))
        share = 1 - taken.float().sum() / differs.float().sum()
        one_hot = F.one_hot(batch.label_B, 2).float()
        target = share * one_hot + (1 - share) * one_hot.flip(0)
        torch.testing.assert_close(total, -(target * LOGITS.log_softmax(1)).sum(1).mean(), atol=0.1, rtol=0)
        boxes.append(taken)
    assert len({box.numpy().tobytes() for box in boxes}) > 2


def test_fine_tuning_steps_with_layer_decay_from_the_weights_of_init(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    trained = VideoEncoder(ENCODER)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_encoder(tmp_path / "encoder.safetensors", trained)
    config = tuned(videos, init=str(tmp_path / "encoder.safetensors"))
    run = caught(monkeypatch, finetuning, finetune, config, tmp_path / "run")
    found = run.model.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in trained.state_dict().items())
    scale_of = {id(p): g["lr_scale"] for g in run.optimizer.param_groups for p in g["params"]}
    decay_of = {id(p): g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"]}
    expected = {"patch_embed": 0.5**3, "positions": 0.5**3, "blocks.0": 0.5**2, "blocks.1": 0.5, "head": 1.0}
    for name, parameter in run.model.named_parameters():
        if name.startswith("encoder.norm"):
            assert not parameter.requires_grad
            continue
        part = next((p for p in expected if name.removeprefix("encoder.").startswith(p)), "head")
        assert scale_of[id(parameter)] == expected[part], name
        decays = parameter.ndim > 1 and "positions" not in name
        assert decay_of[id(parameter)] == (0.1 if decays else 0.0), name


# The loop


class Numbers:
    """A batch of numbers."""

    def __init__(self, x_B: Tensor) -> None:
        self.x_B = x_B

    def to(self, device: torch.device) -> "Numbers":
        return self

    def part(self, index: int, *, of: int) -> "Numbers":
        return Numbers(self.x_B.chunk(of)[index])

    def __len__(self) -> int:
        return len(self.x_B)


class NumberLoader:
    """Batches of four numbers: one of two processes' share of eight."""

    steps_per_epoch, num_steps = 3, 3

    def __iter__(self) -> Iterator[Numbers]:
        yield from (Numbers(torch.arange(4.0) + step) for step in range(3))

    def count_bad(self) -> int:
        return 0


class Line(nn.Module):
    """w x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_B: Tensor) -> Tensor:
        return self.w * x_B


def squares(model: nn.Module, batch: Numbers, step: int) -> Losses:
    return Losses((model(batch.x_B) - 1).square().mean(), {}, features_BTD=None)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_is_the_gradient_of_the_whole_batch_alone(accumulate: int) -> None:
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    w = 0.5
    for step in range(3):
        x_B = torch.arange(4.0) + step
        gradient = (2 * (w * x_B - 1) * x_B).mean().item()
        loop, optim = Loop(batch_size=4, accumulate=accumulate), Optim(max_grad_norm=0.0)
        results, norm = train_step(model, squares, Numbers(x_B), step, optimizer, loop=loop, optim=optim, dtype=None)
        w -= 0.1 * gradient
        assert len(results) == accumulate
        assert norm.item() == pytest.approx(abs(gradient), rel=1e-5)
        assert model.w.item() == pytest.approx(w, rel=1e-5)


def test_the_learning_rate_is_that_of_the_batch_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Line()
    optim = Optim(base_lr=0.256, min_lr=0.256, warmup=Steps(0), weight_decay=0.0)
    optimizer = make_optimizer(model, optim)
    rates = []
    honest = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (rates.append(optimizer.param_groups[0]["lr"]), honest()))
    done = fit(
        model,
        squares,
        NumberLoader(),
        optimizer,
        loop=Loop(batch_size=8, duration=Steps(3), log_every=1),
        optim=optim,
        start_step=0,
        folder=tmp_path,
        title="",
        dtype=None,
        on_save=lambda: None,
    )
    assert done
    assert rates == pytest.approx([0.256 * 8 / 256] * 3)


# Evaluation


class Judge(nn.Module):
    """Logits that the brightness of a view chooses; it notices when it is in training mode."""

    def __init__(self, table_VK: Tensor) -> None:
        super().__init__()
        self.table_VK = table_VK
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, views_VTCHW: Tensor) -> Tensor:
        assert not self.training
        return self.table_VK[views_VTCHW.float().amax(dim=(1, 2, 3, 4)).long()]


class ThreeVideos:
    """Videos of two views each, whose brightness is their number."""

    bad = BadVideos(num_videos=3, max_share=0.0)

    def __iter__(self) -> Iterator[Views]:
        for index, label in enumerate((2, 0, 2)):
            views = torch.stack([torch.full((2, 3, 4, 4), 2 * index + view, dtype=torch.uint8) for view in range(2)])
            yield Views(views_VTCHW=views, label=label, index=index)


def test_probabilities_of_all_views_are_averaged() -> None:
    # Of the first video, the mean of the logits is highest for class 1, the mean of the probabilities for class 2.
    table = torch.tensor(
        [[4.0, 3.9, 0.0], [0.0, 0.3, 2.0], [0.0, 1.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 2.0]]
    )
    assert table[:2].mean(dim=0).argmax() == 1
    result = evaluate(Judge(table).eval(), ThreeVideos(), num_videos=3)  # type: ignore[arg-type]
    expected = table.softmax(dim=1).view(3, 2, 3).mean(dim=1)
    torch.testing.assert_close(result.probabilities_BK, expected)
    assert result.label_B.tolist() == [2, 0, 2]
    assert result.top(1) == pytest.approx((expected.argmax(dim=1) == torch.tensor([2, 0, 2])).float().mean().item())
    assert result.single_view == pytest.approx((4 / 6, 1.0))


def test_a_run_is_tested_in_eval_mode_with_all_views(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuned(videos, encoder=replace(ENCODER, drop_path=0.9), clips=2, crops=3)
    monkeypatch.undo()
    assert finetune(config, tmp_path / "run")
    seen = list[tuple[bool, int]]()
    honest = finetuning.evaluate

    def watched(classifier: Any, loader: Any, **settings: Any) -> Any:
        classifier.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
        return honest(classifier, loader, **settings)

    monkeypatch.setattr(finetuning, "evaluate", watched)
    first, _ = finetuning.evaluate_run(tmp_path / "run", str(videos), out=tmp_path / "e")
    assert {training for training, _ in seen} == {False}
    assert sum(num_views for _, num_views in seen) == 8 * 2 * 3
    again, _ = finetuning.evaluate_run(tmp_path / "run", str(videos), out=tmp_path / "e")
    assert torch.equal(first.probabilities_BK, again.probabilities_BK)
