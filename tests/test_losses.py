"""Equations 1 to 3 against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mam2 import cross_entropy
from mam2.cross_entropy import linear_cross_entropy
from mam2.losses import alignment_loss, appearance_loss, motion_loss, zero_motion_loss


def as_it_is(width: int) -> nn.Linear:
    """A head that changes nothing."""
    head = nn.Linear(width, width)
    with torch.no_grad():
        head.weight.copy_(torch.eye(width))
        head.bias.zero_()
    return head


def test_alignment_is_the_mean_squared_difference() -> None:
    regressed = torch.tensor([[[[1.0, 2.0], [0.0, 4.0]]]])
    target = torch.tensor([[[[0.0, 2.0], [3.0, 2.0]]]])
    assert alignment_loss(regressed, target).item() == (1 + 0 + 9 + 4) / 4  # Eq. 1


def test_appearance_is_cross_entropy_in_nats() -> None:
    logits = torch.tensor([[[[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]]]])  # (1, 1, 2, 3)
    codes = torch.tensor([[[1, 0]]])
    expected = (math.log(3) + math.log(4 / 2)) / 2  # Eq. 2
    assert appearance_loss(logits, as_it_is(3), codes).item() == pytest.approx(expected)


def test_appearance_pairs_each_token_with_its_code() -> None:
    codes = torch.randint(7, (2, 3, 5))
    logits = 50 * torch.nn.functional.one_hot(codes, 7).float()
    assert appearance_loss(logits, as_it_is(7), codes).item() < 1e-6
    assert appearance_loss(logits.flip(1), as_it_is(7), codes).item() > 1


def test_motion_leaves_out_the_last_frame() -> None:
    predicted = torch.zeros(1, 3, 2, 2)
    predicted[:, 2] = 1000.0
    target = torch.tensor([[[[1.0, 1.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]]])  # (1, 2, 2, 2)
    assert motion_loss(predicted, target).item() == (1 + 1 + 4 + 16) / 8  # Eq. 3


def test_motion_target_of_frame_t_meets_the_prediction_of_frame_t() -> None:
    predicted = torch.randn(2, 4, 3, 5)
    assert motion_loss(predicted, predicted[:, :3]).item() == 0
    assert motion_loss(predicted, predicted[:, 1:]).item() > 0.5


def test_losses_are_computed_in_float32() -> None:
    # 1 + 1/512 is 1 in bfloat16: a target in float32 must not be rounded to the prediction's type.
    ones = torch.ones(1, 2, 2, 2, dtype=torch.bfloat16)
    target = torch.full((1, 2, 2, 2), 1 + 1 / 512)
    for loss in (alignment_loss(ones, target), motion_loss(ones, target[:, :1])):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(512**-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert appearance_loss(ones, as_it_is(2), torch.zeros(1, 2, 2, dtype=torch.int64)).dtype == torch.float32


def test_the_sum_over_channels_is_the_mean_times_their_number() -> None:
    predicted, target = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    expected = (predicted - target).square().sum(dim=-1).mean()  # Eq. 1 as it is printed
    torch.testing.assert_close(alignment_loss(predicted, target, "sum"), expected)
    torch.testing.assert_close(motion_loss(predicted, target[:, :3], "sum"), 5 * motion_loss(predicted, target[:, :3]))


def test_appearance_in_pixels_is_the_squared_error() -> None:
    predicted, target = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert appearance_loss(predicted, as_it_is(2), target).item() == (1 + 4) / 2
    assert appearance_loss(predicted, as_it_is(2), target, "l1").item() == (1 + 2) / 2


def test_clip_order_is_a_cross_entropy_of_two() -> None:
    logits, swapped = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]]), torch.tensor([[1, 0]])
    assert motion_loss(logits, swapped).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    assert zero_motion_loss(swapped).item() == pytest.approx(math.log(2))
    assert zero_motion_loss(swapped.to("meta")).is_meta  # the loss lies where its target does


def test_the_loss_of_no_motion_is_that_of_predicting_zero() -> None:
    target = torch.randn(2, 3, 4, 5)
    for reduction in ("mean", "sum"):
        assert zero_motion_loss(target, reduction) == motion_loss(torch.zeros(2, 4, 4, 5), target, reduction)


@pytest.mark.parametrize("logits_at_once", [1, 33, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_in_chunks_are_all_logits_at_once(
    logits_at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", logits_at_once)
    torch.manual_seed(0)
    bf16 = dtype is torch.bfloat16  # as autocast has it, on float32 weights
    head, x, codes = nn.Linear(8, 11), torch.randn(13, 8, requires_grad=True), torch.randint(11, (13,))
    if dtype is torch.float64:
        head, x = head.double(), x.detach().double().requires_grad_()
    wanted = {}
    for name in ("plain", "chunks"):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if name == "plain":
                logits = head(x)
                loss = F.cross_entropy(logits.float() if bf16 else logits, codes)
            else:
                loss = linear_cross_entropy(x, head.weight, head.bias, codes)
            (3 * loss).backward()
        wanted[name] = (loss.detach(), x.grad, head.weight.grad, head.bias.grad)
        x.grad = head.weight.grad = head.bias.grad = None
    tolerance = {"rtol": 0.02, "atol": 1e-3} if bf16 else {"rtol": 1e-5, "atol": 1e-6}
    for plain, chunks in zip(*wanted.values(), strict=True):
        torch.testing.assert_close(chunks, plain, check_dtype=False, **tolerance)


def test_no_gradient_is_made_where_none_is_asked_for() -> None:
    head, x, codes = nn.Linear(8, 11), torch.randn(13, 8), torch.randint(11, (13,))
    with torch.no_grad():
        assert not linear_cross_entropy(x, head.weight, head.bias, codes).requires_grad
    head.requires_grad_(False)
    x.requires_grad_()
    linear_cross_entropy(x, head.weight, head.bias, codes).backward()
    assert x.grad is not None
    assert head.weight.grad is None


def test_a_second_backward_is_refused() -> None:
    head, x = nn.Linear(8, 11), torch.randn(13, 8, requires_grad=True)
    loss = linear_cross_entropy(x, head.weight, head.bias, torch.zeros(13, dtype=torch.int64))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="has gone backward already"):
        loss.backward()
