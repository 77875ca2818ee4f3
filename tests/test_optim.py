"""Who gets weight decay, how fast each layer learns, and the learning rate's course."""

import math

import pytest
import torch
from torch import nn

from mam2.config import Epochs, Steps, UserError
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.targets.table import TargetSizes
from mam2.train.optim import (
    Optim,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    set_weight_decay,
    weight_decay,
)

ENCODER = EncoderConfig(width=8, depth=3, num_heads=2, frames=2, size=16, patch_size=8)


def pretraining_model() -> MAM2:
    objective = MAM2Config(width=12, num_heads=2, regressor_depth=1, appearance_depth=1, motion_depth=1)
    return MAM2(objective, ENCODER, TargetSizes(5, 192))


def settings(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Weight decay and learning rate scale of each parameter by name; a parameter in two groups fails."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found, name
            found[name] = (group["weight_decay"], group["lr_scale"])
    return found


def test_every_trainable_parameter_is_optimised_once() -> None:
    model = pretraining_model()
    assert settings(model, make_optimizer(model, Optim())).keys() == dict(model.named_parameters()).keys()


def test_frozen_parameters_are_left_out() -> None:
    classifier = Classifier(VideoEncoder(ENCODER), 4)
    optimizer = make_optimizer(classifier, Optim(layer_decay=0.5), depth=3, by_layer=True)
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    assert settings(classifier, optimizer).keys() == trained
    assert "encoder.norm.weight" not in trained


def test_matrices_decay_and_nothing_else() -> None:
    model = pretraining_model()
    found = settings(model, make_optimizer(model, Optim(weight_decay=0.05)))
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and name not in (
            "encoder.positions.time_TD",
            "encoder.positions.space_ND",
        )
        assert found[name][0] == (0.05 if is_matrix else 0.0), name
    assert found["encoder.patch_embed.weight"][0] == 0.05
    assert found["project_position.weight"][0] == 0.05  # a matrix, for all that it is about positions
    assert found["regressor.mask_query.value_D"][0] == 0.0
    assert found["encoder.blocks.0.norm_time.weight"][0] == 0.0
    assert found["decoders.appearance.heads.appearance.project.bias"][0] == 0.0


def test_without_layers_all_learn_alike() -> None:
    model = pretraining_model()
    assert {scale for _, scale in settings(model, make_optimizer(model, Optim(layer_decay=0.5))).values()} == {1.0}


def test_each_block_learns_slower_than_the_one_above() -> None:
    classifier = Classifier(VideoEncoder(ENCODER), 4)
    optimizer = make_optimizer(classifier, Optim(layer_decay=0.5), depth=3, by_layer=True)
    scales = {name: scale for name, (_, scale) in settings(classifier, optimizer).items()}
    assert scales["head.weight"] == scales["head.bias"] == scales["norm.weight"] == 1.0
    assert scales["encoder.blocks.2.mlp.0.weight"] == scales["encoder.blocks.2.norm_mlp.bias"] == 0.5
    assert scales["encoder.blocks.1.time.qkv.weight"] == 0.25
    assert scales["encoder.blocks.0.space.out.bias"] == 0.125
    assert scales["encoder.patch_embed.weight"] == scales["encoder.positions.time_TD"] == 0.0625
    assert scales["encoder.positions.space_ND"] == 0.0625

    set_learning_rate(optimizer, 0.8)
    rates = sorted({round(group["lr"], 9) for group in optimizer.param_groups}, reverse=True)
    assert rates == [0.8, 0.4, 0.2, 0.1, 0.05]


def test_weight_decay_rises_on_matrices_only() -> None:
    """V-JEPA's course, 0.04 to 0.4: 0.22 half way."""
    optim = Optim(weight_decay=0.04, weight_decay_end=0.4)
    assert [round(weight_decay(optim, step, num_steps=8), 3) for step in (0, 4, 8)] == [0.04, 0.22, 0.4]
    assert weight_decay(Optim(weight_decay=0.04), 5, num_steps=8) == 0.04
    model = pretraining_model()
    optimizer = make_optimizer(model, optim)
    set_weight_decay(optimizer, 0.22)
    decays = {name: decay for name, (decay, _) in settings(model, optimizer).items()}
    assert decays["encoder.blocks.0.mlp.0.weight"] == 0.22
    assert decays["encoder.blocks.0.norm_time.weight"] == decays["encoder.blocks.0.mlp.0.bias"] == 0.0


def test_adamw_has_the_papers_momenta() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), Optim())
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (1.5e-4, (0.9, 0.95), 1e-8, True)


def test_learning_rate_of_the_papers_run() -> None:
    """Table 7: base 1.5e-4 for a batch of 256, so 7.5e-5 for one of 128; 20 of 800 epochs of warm-up."""

    def rate(step: int) -> float:
        return learning_rate(Optim(), step, batch_size=128, warmup_steps=200, num_steps=8000)

    peak, low = 7.5e-5, 0.5e-5
    assert rate(0) == pytest.approx(peak / 200)
    assert rate(99) == pytest.approx(peak / 2)
    assert rate(199) == pytest.approx(peak)  # the end of the warm-up
    assert rate(200) == pytest.approx(peak)
    assert rate(200 + 7800 // 2) == pytest.approx((peak + low) / 2)  # half-way down
    assert rate(200 + 7800 // 4) == pytest.approx(low + (peak - low) * (1 + math.sqrt(0.5)) / 2)
    assert rate(8000) == pytest.approx(low)
    course = [rate(step) for step in range(8000)]
    assert course[:200] == sorted(course[:200])
    assert course[200:] == sorted(course[200:], reverse=True)
    assert min(course[200:]) >= low


@pytest.mark.parametrize(("batch_size", "expected"), [(256, 1e-3), (64, 2.5e-4), (1024, 4e-3)])
def test_learning_rate_is_in_proportion_to_the_batch(batch_size: int, expected: float) -> None:
    optim = Optim(base_lr=1e-3, min_lr=0.0)
    assert learning_rate(optim, 0, batch_size=batch_size, warmup_steps=0, num_steps=10) == pytest.approx(expected)


def test_learning_rate_never_rises_to_its_minimum() -> None:
    optim = Optim(base_lr=1e-6, min_lr=1e-5)
    rates = [learning_rate(optim, step, batch_size=256, warmup_steps=2, num_steps=10) for step in range(10)]
    assert rates == pytest.approx([5e-7] + [1e-6] * 9)


def test_a_run_that_is_all_warm_up() -> None:
    rates = [learning_rate(Optim(), step, batch_size=256, warmup_steps=4, num_steps=4) for step in range(4)]
    assert rates == pytest.approx([1.5e-4 * part for part in (0.25, 0.5, 0.75, 1)])


def test_one_step_after_the_warm_up_ends_at_the_minimum() -> None:
    assert learning_rate(Optim(), 5, batch_size=256, warmup_steps=4, num_steps=5) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "wrong", [{"base_lr": 0.0}, {"layer_decay": 0.0}, {"layer_decay": 1.5}, {"max_grad_norm": -1.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"^optim\.{next(iter(wrong))} "):
        Optim(**wrong)


def test_warm_up_is_a_duration() -> None:
    assert Optim().warmup == Epochs(20)


def test_the_encoder_waits_while_new_parts_learn() -> None:
    """Its weights stay as they are at first, then move by their layer's share; the parts around it move at once."""
    model = pretraining_model()
    optim = Optim(layer_decay=0.5, freeze_encoder_for=Steps(1))
    optimizer = make_optimizer(model, optim, depth=3, by_layer=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for waits in (True, False):
        set_learning_rate(optimizer, 0.1, encoder_frozen=waits)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for name, parameter in model.named_parameters():
            inside = name.startswith("encoder.") and not name.startswith("encoder.norm.")
            assert torch.equal(parameter, before[name]) == (waits and inside), name
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {0.1 * 0.5**n for n in range(5)}
