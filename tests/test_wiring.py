"""What joins the parts: gradients, draws, mixing, optimisers, views, by known answers on small models."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import log_rows, write_video
from torch import Tensor, nn

import mam2.train.finetune as finetuning
import mam2.train.pretrain as pretraining
import mam2.use.evaluate_run as testing
from mam2.config import Epochs, Steps, UserError, seed_of
from mam2.data.bad_videos import BadVideos
from mam2.data.catalog import few_shot, read_catalog
from mam2.data.clips import Data
from mam2.data.mixing import mix
from mam2.data.views import Views
from mam2.evaluate import Evaluation, evaluate
from mam2.losses import Losses
from mam2.masks import Mask, MaskConfig
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.load import load_encoder
from mam2.model.weights import load_classifier, save_encoder
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.targets.maker import Targets
from mam2.targets.motion import clip_order
from mam2.targets.table import TargetsConfig, TargetSizes
from mam2.targets.tokenizers.vq import VQConfig
from mam2.train import checkpoint
from mam2.train.engine import Events, Loop, Training, fit, train_step
from mam2.train.finetune import Finetune, as_pretrained, finetune, open_finetuning
from mam2.train.optim import Optim, make_optimizer
from mam2.train.pretrain import Pretrain, load_run, open_pretraining, pretrain

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


class Opened(NamedTuple):
    """A run at the door of the loop: the arguments of `fit`."""

    training: Training[Any]
    loss_of: Any
    events: Events

    @property
    def model(self) -> Any:
        return self.training.model

    def batches(self) -> list[Any]:
        return list(self.training.loader)


def opened(config: Pretrain | Finetune, out: Path) -> Opened:
    """A run as it is handed to the loop."""
    with open_pretraining(config, out) if isinstance(config, Pretrain) else open_finetuning(config, out) as arguments:
        return Opened(*arguments)


def settings(run: Opened) -> tuple[Any, ...]:
    training = run.training
    return training.loop, training.optim, training.start_step, training.folder, training.title, training.dtype


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
def test_masks_and_targets_are_drawn_anew_for_each_sample_of_the_run(videos: Path, tmp_path: Path, motion: Any) -> None:
    config = Pretrain(
        data=replace(DATA, root=str(videos)),
        encoder=ENCODER,
        objective=OBJECTIVE,
        mask=MaskConfig(kind="tube", ratio=0.5),
        targets=TargetsConfig(appearance="random_projection", num_codes=NUM_CODES, motion=motion),
        loop=Loop(batch_size=4, duration=Steps(3), seed=5),
    )
    run = opened(config, tmp_path / "run")
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
        assert torch.equal(order[:4], clip_order(16, sample_B=torch.arange(4), seed=5))
        again = Spy()
        run.loss_of(again, batches[0], 0)
        assert torch.equal(again.seen[0][2].swapped_BM, order[:4])
    clips = torch.cat([clip for clip, *_ in spy.seen])
    assert len({clip.numpy().tobytes() for clip in clips}) == 12


def pretrained(videos: Path, **changes: Any) -> Pretrain:
    base = Pretrain(
        data=replace(DATA, root=str(videos)),
        encoder=ENCODER,
        objective=OBJECTIVE,
        targets=TargetsConfig(appearance="random_projection", num_codes=NUM_CODES),
        loop=Loop(batch_size=4, duration=Steps(3), seed=5, precision="bf16"),
    )
    return replace(base, **changes)


def noisy(encoder: VideoEncoder) -> VideoEncoder:
    """The encoder with every weight moved, so that none is what a fresh one has."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def same(model: nn.Module, other: nn.Module) -> bool:
    found, wanted = model.state_dict(), other.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_pre_training_hands_its_parts_to_the_loop_and_goes_on_from_its_checkpoint(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained, out = noisy(VideoEncoder(ENCODER)), tmp_path / "run"
    save_encoder(tmp_path / "encoder.safetensors", trained)
    objective = replace(OBJECTIVE, teacher_momentum=0.5, alignment_ramp=Epochs(2))
    config = pretrained(videos, init=str(tmp_path / "encoder.safetensors"), objective=objective)
    run = opened(config, out)
    assert same(run.model.encoder, trained)
    assert same(run.model.alignment.teacher, trained)
    assert [run.model.config.alpha(step, run.model.steps_per_epoch) for step in (0, 3)] == [0.5, 2.0]  # 2 steps each
    assert settings(run) == (config.loop, config.optim, 0, out, "pre-training", torch.bfloat16)
    assert (run.events.on_eval, run.events.eval_every) == (None, config.watch.every)
    with pytest.raises(UserError, match=rf"^{config.init} is an encoder of another architecture"):
        pretrain(replace(config, encoder=replace(ENCODER, depth=3)), tmp_path / "other")
    noisy(run.model.encoder)
    run.events.on_step()
    assert not same(run.model.alignment.teacher, trained)
    run.events.on_save()
    assert same(load_encoder(out), run.model.encoder)
    with pytest.raises(UserError, match=r"holds no pre-trained model \(kind pretrain, 0"):
        load_run(out)
    checkpoint.save(out, run.model, run.training.optimizer, 2, keep=1)
    again = opened(config, out)
    assert again.training.start_step == 2
    assert len(again.batches()) == 1
    assert same(again.model, run.model)
    model, targets, found = load_run(out)
    assert same(model, run.model)
    assert not model.training
    assert (targets.sizes, found) == (TargetSizes(NUM_CODES, 48), config)
    with pytest.raises(UserError, match="leave out --no-resume"):
        pretrain(config, out, resume=False)
    with pytest.raises(UserError, match="another run, which differs in num_videos, videos"):
        pretrain(replace(config, data=replace(config.data, root=str(videos / "a"))), out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.safetensors", "other", "run"]  # no cache


def test_what_pre_training_asks_of_a_configuration(videos: Path) -> None:
    for wrong, message in (
        ({"encoder": replace(ENCODER, tubelet=4)}, "at least 2 tubelets"),
        ({"data": Data(short="repeat")}, "no motion to predict"),
        ({"mask": MaskConfig(kind="random")}, "factorised attention follows a patch"),
        (
            {"mask": MaskConfig(kind="random"), "encoder": replace(ENCODER, attention="joint", differences=True)},
            "would show what it hides in the next frame",
        ),
        ({"targets": TargetsConfig(appearance="random_projection", cache="x")}, "fixed clips"),
        ({"objective": replace(OBJECTIVE, num_heads=3)}, "multiple of objective.num_heads"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained(videos, **wrong)
    appearance = replace(OBJECTIVE, decoders="appearance")
    pretrained(videos, encoder=replace(ENCODER, tubelet=2))
    pretrained(videos, objective=appearance, data=Data(short="repeat"))
    pretrained(videos, encoder=replace(ENCODER, attention="joint"), mask=MaskConfig(kind="random"))
    assert pretraining.build(pretrained(videos)).steps_per_epoch == 1
    assert pretrained(videos).idle_options() == []
    assert pretrained(videos, objective=replace(OBJECTIVE, alignment_weight=0.0)).idle_options() == []
    motion = replace(OBJECTIVE, decoders="motion", alignment_weight=0.0, teacher_momentum=0.5)
    idle = TargetsConfig(appearance="vqgan_16384", file="x", flow_file="y", cache="z")
    assert pretrained(
        videos, objective=motion, mask=MaskConfig(aligned=0.5), targets=idle, data=Data(fixed_clips=1)
    ).idle_options() == [
        *("mask.aligned", "objective.teacher_momentum", "targets.cache", "targets.file", "targets.flow_file")
    ]
    flow = TargetsConfig(appearance="vqgan_16384", file="x", flow_file="y", motion="optical_flow")
    assert pretrained(videos, targets=flow).idle_options() == []
    cached = replace(flow, cache="z")
    assert pretrained(videos, targets=cached, data=Data(fixed_clips=1)).idle_options() == []
    assert pretrained(videos, targets=flow, objective=appearance).idle_options() == ["targets.flow_file"]
    assert pretrained(videos, targets=TargetsConfig(appearance="pixels", file="x")).idle_options() == ["targets.file"]


def test_a_run_trains_its_vq_tokenizer_once_and_where_it_is_used(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretrained(videos, targets=TargetsConfig(appearance="vq", num_codes=NUM_CODES, vq_steps=6))
    for other in (
        pretrained(videos),
        replace(config, targets=replace(config.targets, file="x")),
        replace(config, objective=replace(OBJECTIVE, decoders="motion")),
    ):
        assert not pretraining.trains_tokenizer(other)
    assert pretraining.trains_tokenizer(config)
    asked = []
    monkeypatch.setattr(pretraining, "train_tokenizer", lambda *args, **settings: asked.append((args, settings)))
    catalog, file = read_catalog(config.data.listing, labelled=False), tmp_path / "tokenizer.safetensors"
    pretraining.make_tokenizer(config, catalog, file)
    (args, settings), vq = asked[0], VQConfig(patch_size=4, num_codes=NUM_CODES)
    assert args == (catalog, config.data, vq, file)
    assert settings == {"size": 16, "num_steps": 6, "seed": 5}
    file.touch()
    pretraining.make_tokenizer(config, catalog, file)
    assert len(asked) == 1
    made = []
    monkeypatch.setattr(pretraining, "TargetMaker", lambda targets, **settings: made.append((targets, settings)))
    pretraining.make_targets(config, tmp_path, torch.device("cpu"))
    motion = pretrained(
        videos,
        objective=replace(OBJECTIVE, decoders="motion"),
        encoder=replace(ENCODER, tubelet=2),
        mask=MaskConfig(kind="motion"),
    )
    pretraining.make_targets(motion, tmp_path, torch.device("meta"))
    plain = {"patch_size": 4, "tubelet": 1, "teacher": None}
    tubelets = {**plain, "tubelet": 2}
    assert made == [
        (
            replace(config.targets, file=str(file)),
            {"device": torch.device("cpu"), "appearance": True, "motion": True, "guide": False, **plain},
        ),
        (
            motion.targets,
            {"device": torch.device("meta"), "appearance": False, "motion": True, "guide": True, **tubelets},
        ),
    ]


def test_a_run_keeps_the_codes_of_its_own_tokenizer(videos: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "run"
    targets = TargetsConfig(appearance="vq", num_codes=NUM_CODES, vq_steps=1, cache=str(cache))
    config = pretrained(videos, targets=targets, data=replace(DATA, root=str(videos), fixed_clips=2))
    run, spy = opened(config, out), Spy()
    assert (out / "tokenizer.safetensors").is_file()
    (tokens,) = cache.glob("*.tokens")
    assert not tokens.stat().st_size
    batch = run.batches()[0]
    run.loss_of(spy, batch, 0)
    assert tokens.stat().st_size
    maker = pretraining.make_targets(config, out, torch.device("cpu"))
    assert torch.equal(spy.seen[0][2].appearance, maker(batch.clip_BTCHW, sample_B=batch.sample_B, seed=5).appearance)
    # A file states its own number of codes, in training and in loading.
    checkpoint.save(out, run.model, run.training.optimizer, 1, keep=1)
    targets = TargetsConfig(appearance="vq", num_codes=99, file=str(out / "tokenizer.safetensors"))
    other = opened(replace(config, targets=targets), tmp_path / "other")
    checkpoint.save(tmp_path / "other", other.model, other.training.optimizer, 1, keep=1)
    for folder in (out, tmp_path / "other"):
        model, maker, _ = load_run(folder)
        assert model.decoders["appearance"].heads["appearance"].project.out_features == NUM_CODES
        assert maker.tokenizer.num_codes == NUM_CODES


def test_targets_are_those_of_each_tubelets_first_frame(videos: Path, tmp_path: Path) -> None:
    unlabelled = replace(DATA, root=str(videos / "a"))
    config = pretrained(videos, encoder=replace(ENCODER, tubelet=2), data=unlabelled)
    run, spy = opened(config, tmp_path / "run"), Spy()
    batch = run.batches()[0]
    run.loss_of(spy, batch, 0)
    _, mask, targets, _ = spy.seen[0]
    maker = pretraining.make_targets(pretrained(videos), tmp_path, torch.device("cpu"))  # knows no tubelets
    expected = maker(batch.clip_BTCHW[:, [0, 2]], sample_B=batch.sample_B, seed=5)
    assert torch.equal(targets.appearance, expected.appearance)
    assert torch.equal(targets.motion, expected.motion)
    assert mask.masked_BTM.shape == (4, 2, 12)


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


def test_the_loss_of_fine_tuning_is_cross_entropy_with_smoothed_labels(videos: Path, tmp_path: Path) -> None:
    for smoothing in (0.0, 0.2):
        config = tuned(videos, label_smoothing=smoothing)
        run = opened(config, tmp_path / str(smoothing))
        for batch in run.batches():
            head = Head(LOGITS)
            losses = run.loss_of(head, batch, 0)
            expected = F.cross_entropy(LOGITS, batch.label_B, label_smoothing=smoothing)
            torch.testing.assert_close(losses.total, expected)
            torch.testing.assert_close(head.clips[0], batch.clip_BTCHW / 255)


def test_mixup_mixes_clips_and_labels_alike_and_anew_in_every_step(videos: Path, tmp_path: Path) -> None:
    run = opened(tuned(videos, mixup=1.0, label_smoothing=0.1), tmp_path / "run")
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
        rng = random.Random(seed_of(3, 0x313, int(batch.sample_B[0])))  # the same when the run is resumed or repeated
        again, _ = mix(batch.clip_BTCHW, batch.label_B, num_classes=2, rng=rng, mixup=1.0, cutmix=0.0)
        assert torch.equal(mixed, again)
    assert len({round(share, 3) for share in shares}) == 4
    assert all(0 < share < 1 for share in shares)


def test_cutmix_puts_a_box_of_the_partner_in(videos: Path, tmp_path: Path) -> None:
    run = opened(tuned(videos, cutmix=1.0), tmp_path / "run")
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


def test_fine_tuning_steps_with_layer_decay_from_the_weights_of_init(videos: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    trained = noisy(VideoEncoder(ENCODER))
    save_encoder(tmp_path / "encoder.safetensors", trained)
    config = tuned(videos, init=str(tmp_path / "encoder.safetensors"))
    run = opened(config, tmp_path / "run")
    found = run.model.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in trained.state_dict().items())
    scale_of = {id(p): g["lr_scale"] for g in run.training.optimizer.param_groups for p in g["params"]}
    decay_of = {id(p): g["weight_decay"] for g in run.training.optimizer.param_groups for p in g["params"]}
    expected = {"patch_embed": 0.5**3, "positions": 0.5**3, "blocks.0": 0.5**2, "blocks.1": 0.5, "head": 1.0}
    for name, parameter in run.model.named_parameters():
        if name.startswith("encoder.norm"):
            assert not parameter.requires_grad
            continue
        part = next((p for p in expected if name.removeprefix("encoder.").startswith(p)), "head")
        assert scale_of[id(parameter)] == expected[part], name
        decays = parameter.ndim > 1 and "positions" not in name
        assert decay_of[id(parameter)] == (0.1 if decays else 0.0), name


def test_a_fine_tuning_hands_its_parts_to_the_loop_and_goes_on_without_its_init(videos: Path, tmp_path: Path) -> None:
    init, out = tmp_path / "encoder.safetensors", tmp_path / "run"
    save_encoder(init, noisy(VideoEncoder(ENCODER)))
    config = tuned(videos, init=str(init), loop=Loop(batch_size=4, duration=Steps(4), seed=3, precision="bf16"))
    run = opened(config, out)
    run.events.on_save()
    assert settings(run) == (config.loop, config.optim, 0, out, "fine-tuning", torch.bfloat16)
    saved, classes = load_classifier(out)
    assert classes == ("a", "b")
    assert same(saved, run.model)
    losses = run.loss_of(Head(LOGITS), run.batches()[0], 0)
    labels = run.batches()[0].label_B
    assert losses.parts["accuracy"] == (LOGITS.argmax(dim=1) == labels).float().mean()
    assert losses.parts["cross_entropy"] == losses.total
    assert losses.features_BTD is None
    checkpoint.save(out, noisy(run.model), run.training.optimizer, 3, keep=1)
    init.unlink()
    again = opened(config, out)
    assert again.training.start_step == 3
    assert len(again.batches()) == 1
    assert same(again.model, run.model)
    with pytest.raises(UserError, match="leave out --no-resume"):
        finetune(config, out, resume=False)
    with pytest.raises(UserError, match="kind finetune, 1"):
        load_run(out)
    save_encoder(init, VideoEncoder(replace(ENCODER, depth=3)))
    with pytest.raises(UserError, match=rf"^{init} is an encoder of another architecture"):
        finetune(config, tmp_path / "other")
    with pytest.raises(UserError, match=r"^shots is -1"):
        tuned(videos, shots=-1)
    with pytest.raises(UserError, match="Nothing to fine-tune"):
        finetune(tuned(videos, init=""), tmp_path / "other")


def test_few_shot_fine_tuning_sees_as_many_videos_of_each_class_and_follows_its_seed(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, claims, honest = [], [], finetuning.open_run
    monkeypatch.setattr(finetuning, "open_run", lambda *a, **named: claims.append(named) or honest(*a, **named))
    for seed in (3, 3, 4):
        config = tuned(videos, shots=2, loop=Loop(batch_size=4, duration=Steps(3), seed=seed))
        run = opened(config, tmp_path / f"{seed}")
        assert all(batch.label_B.sort().values.tolist() == [0, 0, 1, 1] for batch in run.batches())
        heads.append(run.model.encoder.patch_embed.weight)
        few = few_shot(read_catalog(config.data.listing, labelled=True), shots=2, seed=seed)
        assert claims[-1] == {"resume": True, "videos": [item.path for item in few.items], "classes": ("a", "b")}
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_configuration_takes_sizes_and_stride_from_what_it_starts_from(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = replace(DATA, root=str(videos), stride_frames=2, target_fps=15.0)
    run = opened(pretrained(videos, data=data), tmp_path / "run")
    run.events.on_save()
    config = tuned(videos, encoder=EncoderConfig(drop_path=0.3))
    found = as_pretrained(config, tmp_path / "run")
    assert found == replace(
        config,
        encoder=replace(ENCODER, drop_path=0.3),
        data=replace(config.data, stride_frames=2, target_fps=15.0),
    )
    alone = (tmp_path / "run" / "encoder.safetensors").rename(tmp_path / "encoder.safetensors")
    assert as_pretrained(config, alone) == replace(found, data=config.data)
    alone.rename(tmp_path / "run" / "encoder.safetensors")
    for stride, sampling, warns in ((1, "dense", True), (2, "dense", False), (1, "uniform", False)):
        caplog.clear()
        data = replace(found.data, stride_frames=stride, sampling=sampling)
        changed = replace(found, init=str(tmp_path / "run"), data=data)
        opened(changed, tmp_path / f"{stride}{sampling}")
        assert ("stride_frames is 1; the pre-training's is 2" in caplog.text) is warns


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


def numbers_of(
    model: Line, optimizer: torch.optim.Optimizer, *, loop: Loop, folder: Path, optim: Optim | None = None
) -> Training[Numbers]:
    """A training of w x on batches of numbers."""
    return Training(
        model=model,
        loader=NumberLoader(),
        optimizer=optimizer,
        loop=loop,
        optim=optim or Optim(max_grad_norm=0.0),
        start_step=0,
        folder=folder,
        title="",
        dtype=None,
    )


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_a_step_is_the_gradient_of_the_whole_batch_alone(accumulate: int, tmp_path: Path) -> None:
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = numbers_of(model, optimizer, loop=Loop(batch_size=4, accumulate=accumulate), folder=tmp_path)
    w = 0.5
    for step in range(3):
        x_B = torch.arange(4.0) + step
        gradient = (2 * (w * x_B - 1) * x_B).mean().item()
        results, norm = train_step(training, squares, model, Numbers(x_B), step)
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
    loop = Loop(batch_size=8, duration=Steps(3), log_every=1)
    training = numbers_of(model, optimizer, loop=loop, optim=optim, folder=tmp_path)
    done = fit(training, squares, Events(on_save=lambda: None))
    assert done
    assert rates == pytest.approx([0.256 * 8 / 256] * 3)


def test_events_come_at_their_steps(tmp_path: Path) -> None:
    model = Line()
    optim = Optim(warmup=Steps(0))
    optimizer = make_optimizer(model, optim)
    loop = Loop(batch_size=4, duration=Steps(3), save_every=Steps(2))
    calls = list[str]()

    def evaluation(step: int) -> dict[str, float]:
        calls.append(f"eval {step}")
        return {"score": float(step)}

    events = Events(
        on_save=lambda: calls.append("save"),
        on_step=lambda: calls.append("step"),
        on_eval=evaluation,
        eval_every=Steps(2),
    )
    assert fit(numbers_of(model, optimizer, loop=loop, optim=optim, folder=tmp_path), squares, events)
    assert calls == ["step", "step", "eval 2", "save", "step", "eval 3", "save"]
    assert [(row["step"], row["score"]) for row in log_rows(tmp_path) if "score" in row] == [(2, 2.0), (3, 3.0)]
    assert [place.name for place in checkpoint.checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


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
        for index, label in ((1, 0), (2, 2), (0, 2)):
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
    assert result.index_B.tolist() == [0, 1, 2]  # in the catalog's order, whatever the loader's
    assert result.bad == {}
    assert result.top(1) == pytest.approx((expected.argmax(dim=1) == torch.tensor([2, 0, 2])).float().mean().item())
    assert result.single_view == pytest.approx((4 / 6, 1.0))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_test_is_computed_in_the_type_it_is_given(dtype: torch.dtype | None) -> None:
    ranks = torch.tensor([1.0, 0, 2, 3, 4, 5, 6])  # class 2 is the fifth best, class 0 the sixth
    seen, judge = set(), Judge(ranks.expand(6, 7)).eval()
    judge.register_forward_pre_hook(
        lambda *_: seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
    )
    result = evaluate(judge, ThreeVideos(), num_videos=3, dtype=dtype)  # type: ignore[arg-type]
    assert seen == {dtype}
    assert result.single_view == pytest.approx((0, 2 / 3))  # labels 2, 0, 2


def test_confusion_and_top_k_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    result = Evaluation(probabilities, torch.tensor([0, 1, 1, 1]), torch.arange(4), {})
    assert result.confusion().tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]  # true class by predicted one
    assert result.per_class(["a", "b", "c"]) == {"a": 1.0, "b": pytest.approx(1 / 3), "c": None}
    assert [result.top(k) for k in (1, 2, 5)] == [0.5, 1.0, 1.0]


def test_a_run_is_tested_in_eval_mode_with_all_views(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(batch_size=4, duration=Steps(4), seed=3, precision="bf16")
    config = tuned(videos, encoder=replace(ENCODER, drop_path=0.9), clips=3, crops=3, loop=loop)
    monkeypatch.undo()
    assert finetune(config, tmp_path / "run")
    seen = list[tuple[bool, int]]()
    honest, num_videos = testing.evaluate, 8

    def watched(classifier: Any, loader: Any, **settings: Any) -> Any:
        assert settings == {"num_videos": num_videos, "dtype": torch.bfloat16, "kind": "classes"}
        classifier.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, len(inputs[0]))))
        return honest(classifier, loader, **settings)

    monkeypatch.setattr(testing, "evaluate", watched)
    first, classes = testing.evaluate_run(tmp_path / "run", str(videos), out=tmp_path / "new" / "e")
    assert {training for training, _ in seen} == {False}
    assert sorted(num_views for _, num_views in seen) == [1] * 8 + [8] * 8  # nine each, at most eight at once
    again, _ = testing.evaluate_run(tmp_path / "run", str(videos), out=tmp_path / "new" / "e")
    assert torch.equal(first.probabilities_BK, again.probabilities_BK)
    assert json.loads((tmp_path / "new" / "e" / "evaluate.json").read_text()) == {
        "top1": first.top(1),
        "top5": 1.0,
        "num_videos": 8,
        "clips": 3,
        "crops": 3,
        "bad_videos": {},
        "single_view": list(first.single_view),
        "per_class": first.per_class(["a", "b"]),
        "confusion": first.confusion().tolist(),
    }
    with np.load(tmp_path / "new" / "e" / "predictions.npz") as saved:
        assert [Path(path).stem for path in saved["path"]] == list("02461357")
        assert saved["label"].tolist() == first.label_B.tolist() == [0] * 4 + [1] * 4
        assert np.array_equal(saved["probability"], first.probabilities_BK.numpy())
        assert tuple(saved["classes"]) == classes == ("a", "b")
    seen.clear()
    num_videos = 1
    monkeypatch.setattr(Evaluation, "top", lambda self, k: k)
    for columns in ({}, {"path_column": "clip", "label_column": "name"}):
        names = ",".join([*(columns.values() or ("path", "label")), "split"])
        rows = [f"{videos}/b/{number}.mp4,b,{split}" for number, split in ((1, "train"), (3, "val"))]
        (tmp_path / "list.csv").write_text("\n".join([names, *rows]))
        few, _ = testing.evaluate_run(
            tmp_path / "run", str(tmp_path / "list.csv"), split="val", clips=1, crops=1, **columns
        )
        assert few.label_B.tolist() == [1]  # of the run's classes, not of the list's
        report = json.loads((tmp_path / "run" / "evaluate.json").read_text())
        assert (report["clips"], report["crops"], report["top1"], report["top5"]) == (1, 1, 1, 5)
    assert [num_views for _, num_views in seen] == [1, 1]
