"""Optical flow: direction and units by networks whose answer is known, torchvision's own values, files, precision."""

import os
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights
from torchvision.models.optical_flow import raft_large, raft_small

from mam2.config import UserError
from mam2.targets import raft as targets_raft
from mam2.targets.raft import MODELS, OpticalFlow, load_raft, network_size
from mam2.targets.table import MOTION_TARGETS

CPU = torch.device("cpu")
SMALL = "raft_small_C_T_V2-01064c6d.pth"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights under the official key names, of a flow of some pixels."""
    folder = tmp_path_factory.mktemp("raft")
    torch.manual_seed(0)
    for make in (raft_large, raft_small):
        state = make(weights=None).state_dict()
        state["update_block.flow_head.conv2.weight"] *= 4
        torch.save(state, folder / f"{make.__name__}.pth")
    return {name: str(folder / f"{name}.pth") for name in MODELS}


@pytest.fixture(scope="module")
def small(files: dict[str, str]) -> OpticalFlow:
    return OpticalFlow(model="raft_small", file=files["raft_small"], device=CPU)


def textured(*shape: int, seed: int = 0) -> Tensor:
    """Smooth random images (*lead, 3, H, W) in [0, 1]."""
    *lead, height, width = shape
    grain = torch.rand(*lead, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed)).flatten(0, -4)
    return F.interpolate(grain, size=(height, width), mode="bilinear").view(*lead, 3, height, width)


class Stub:
    """A flow network; every update adds a known step, in pixels of the network's images."""

    def __init__(self, step: tuple[float, float]) -> None:
        self.step = torch.tensor(step)[:, None, None]

    def __call__(self, first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
        flow = self.step.expand(len(first), 2, *first.shape[2:])
        return [(i + 1) * flow for i in range(num_flow_updates)]


class Matcher:
    """A flow network by hand, right for shifts by whole cells of 8 pixels: the best match within 3 cells."""

    def __call__(self, first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
        moves = [(right, down) for right in range(-3, 4) for down in range(-3, 4)]
        errors = [
            F.avg_pool2d((first - second.roll((-8 * down, -8 * right), dims=(2, 3))).abs().mean(1, True), 8)
            for right, down in moves
        ]
        best_Q1hw = torch.cat(errors, dim=1).argmin(1)
        flow = 8 * torch.tensor(moves).float()[best_Q1hw].permute(0, 3, 1, 2)
        return [F.interpolate(flow, scale_factor=8.0, mode="nearest")]


def with_network(network: Any) -> OpticalFlow:
    """An OpticalFlow of this network, that needed no file."""
    made = object.__new__(OpticalFlow)
    made.network = network
    return made


@pytest.fixture(autouse=True)
def _few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets_raft, "NUM_UPDATES", 2)


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((224, 224), (224, 224)),
        ((64, 64), (128, 128)),
        ((128, 131), (128, 128)),
        ((112, 112), (128, 128)),
        ((64, 96), (128, 192)),
        ((90, 60), (192, 128)),
        ((130, 173), (136, 184)),  # 136 / 130 × 173 = 181
        ((20, 51), (128, 328)),  # 326.4
    ],
)
def test_the_networks_size(sides: tuple[int, int], expected: tuple[int, int]) -> None:
    assert network_size(*sides) == expected
    assert network_size(*sides[::-1]) == expected[::-1]


@pytest.mark.parametrize("sides", [(128, 160), (64, 64), (36, 132), (130, 173)])
def test_a_known_flow_comes_back_in_the_clips_own_pixels(sides: tuple[int, int]) -> None:
    stub = with_network(Stub(step=(4.0, -2.0)))  # two updates: 8 right, 4 up
    flow = stub.flow(torch.rand(2, 3, 3, *sides))
    height, width = network_size(*sides)
    expected = torch.tensor([8 * sides[1] / width, -4 * sides[0] / height])[:, None, None].expand(2, 2, 2, *sides)
    torch.testing.assert_close(flow, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("move", [(16, 0), (0, 8), (-8, 24)])
@pytest.mark.parametrize("scale", [1, 2])
def test_flow_points_where_the_picture_goes(move: tuple[int, int], scale: int) -> None:
    still = torch.rand(1, 3, 128, 144, generator=torch.Generator().manual_seed(0))
    frames = torch.cat([torch.roll(still, (move[1] * t, move[0] * t), dims=(2, 3)) for t in range(3)])
    clip = F.interpolate(frames, scale_factor=1 / scale, mode="area") if scale > 1 else frames
    flow = with_network(Matcher()).flow(clip[None])[0] * scale
    inner = flow[..., 48 // scale : -48 // scale, 48 // scale : -48 // scale]  # away from what rolled round
    torch.testing.assert_close(inner, torch.tensor(move).float()[:, None, None].expand_as(inner))


@pytest.mark.parametrize("model", list(MODELS))
def test_flow_is_that_of_torchvisions_own_forward(files: dict[str, str], model: Any) -> None:
    made = OpticalFlow(model=model, file=files[model], device=CPU)
    clip = textured(1, 3, 128, 136)
    flow = made.flow(clip)
    theirs = get_model(model, weights=None).eval()
    theirs.load_state_dict(torch.load(files[model], weights_only=True))
    with torch.no_grad():
        first, second = get_model_weights(model).DEFAULT.transforms()(clip[0, :-1], clip[0, 1:])
        expected = theirs(first, second, num_flow_updates=2)[-1]
    assert flow.shape == (1, 2, 2, 128, 136)
    assert flow.dtype == torch.float32
    assert expected.square().mean().sqrt() > 1  # pixels
    torch.testing.assert_close(flow[0], expected, rtol=1e-3, atol=1e-3)


def test_a_small_clip_is_resized_and_its_flow_back(small: OpticalFlow) -> None:
    clip = textured(1, 2, 64, 64)
    flow = small.flow(clip)
    assert flow.shape == (1, 1, 2, 64, 64)
    assert flow.isfinite().all()
    large = F.interpolate(clip[0], size=(128, 128), mode="bilinear")
    expected = F.interpolate(small.flow(large[None])[0], size=(64, 64), mode="bilinear", antialias=True) / 2
    torch.testing.assert_close(flow[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pairs_at_once", [1, 4])
def test_portions_change_nothing(small: OpticalFlow, pairs_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = textured(2, 4, 40, 40)  # 6 pairs: portions of 4 hold pairs of two clips
    expected = torch.cat([small.flow(clip[:, t : t + 2]) for t in range(3)], dim=1)
    monkeypatch.setattr(targets_raft, "PAIRS_AT_ONCE", pairs_at_once)
    torch.testing.assert_close(small.flow(clip), expected, rtol=1e-3, atol=1e-3)


def test_fp32_holds_under_autocast(small: OpticalFlow) -> None:
    clip = textured(1, 2, 128, 128)
    expected = small.flow(clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = small.flow(clip)
    assert flow.dtype == torch.float32
    assert torch.equal(flow, expected)


def test_frozen(small: OpticalFlow) -> None:
    flow = small.flow(textured(1, 2, 128, 128).requires_grad_())
    assert not flow.requires_grad
    assert not small.network.training
    assert not any(parameter.requires_grad for parameter in small.network.parameters())


def test_loading_draws_no_random_numbers(files: dict[str, str]) -> None:
    before = torch.get_rng_state()
    network = load_raft("raft_small", files["raft_small"])
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in torch.load(files["raft_small"], weights_only=True).items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_half_precision_files_are_computed_in_fp32(files: dict[str, str], tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in torch.load(files["raft_small"], weights_only=True).items()}
    torch.save(state, tmp_path / "half.pth")
    assert {x.dtype for x in load_raft("raft_small", str(tmp_path / "half.pth")).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "clip",
    [
        torch.rand(2, 3, 3, 128),
        torch.rand(1, 1, 3, 128, 128),
        torch.rand(1, 2, 1, 128, 128),
        torch.ones(1, 2, 3, 128, 128, dtype=torch.uint8),
    ],
)
def test_clips_of_another_shape_or_type_are_refused(small: OpticalFlow, clip: Tensor) -> None:
    with pytest.raises(UserError, match=r"takes \(B, T, 3, H, W\)"):
        small.flow(clip)


def test_another_model_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(UserError, match="accepted: raft_large, raft_small"):
        load_raft("raft", files["raft_small"])  # type: ignore[arg-type]  # the wrong name is the test


class Bomb:
    """Its unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_wrong_files_are_users_errors(files: dict[str, str], tmp_path: Path) -> None:
    def refused(contents: object, match: str) -> None:
        torch.save(contents, tmp_path / "wrong.pth")
        with pytest.raises(UserError, match=match) as caught:
            load_raft("raft_small", str(tmp_path / "wrong.pth"))
        assert f"--targets.flow-file {SMALL}" in str(caught.value)

    state = torch.load(files["raft_small"], weights_only=True)
    last = list(state)[-1]
    refused({k: v for k, v in state.items() if k != last}, rf"1 missing: {last}")
    refused(state | {"more": torch.zeros(1)}, "1 unexpected: more")
    refused(state | {last: state[last][:1]}, rf"1 of another shape: {last}")
    refused({"model": state}, "does not hold the weights of raft_small")
    refused([1, 2], "does not hold the weights of raft_small")
    refused(torch.load(files["raft_large"], weights_only=True), "does not hold the weights of raft_small")
    refused({"weight": Bomb(tmp_path / "bomb")}, "cannot be read")
    assert not (tmp_path / "bomb").exists()
    for contents in (b"", b"not weights", Path(files["raft_small"]).read_bytes()[:5000]):
        (tmp_path / "wrong.pth").write_bytes(contents)
        with pytest.raises(UserError, match="cannot be read as weights of raft_small"):
            load_raft("raft_small", str(tmp_path / "wrong.pth"))
    with pytest.raises(UserError, match="There is no file"):
        load_raft("raft_small", str(tmp_path / "absent.pth"))


def test_torchvisions_own_copy(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **settings: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="no route to host") as caught:
        load_raft("raft_small", "")
    assert f"https://download.pytorch.org/models/{SMALL}" in str(caught.value)
    assert f"--targets.flow-file {SMALL}" in str(caught.value)

    cached = tmp_path / "hub" / "checkpoints" / SMALL
    cached.write_bytes(Path(files["raft_small"]).read_bytes())
    assert sum(parameter.numel() for parameter in load_raft("raft_small", "").parameters()) == 990162
    torch.save({"weight": Bomb(tmp_path / "bomb")}, cached)
    with pytest.raises(UserError, match="can neither be read"):
        load_raft("raft_small", "")
    assert not (tmp_path / "bomb").exists()


@pytest.mark.parametrize(
    ("model", "expected"), [("raft_large", MOTION_TARGETS["optical_flow"].gflop), ("raft_small", 264)]
)
def test_flops(model: str, expected: int) -> None:
    """The cost that the table states: 15 pairs of 224², 12 updates."""
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        images = torch.rand(15, 3, 224, 224)
        get_model(model, weights=None).eval()(images, images, num_flow_updates=12)
    assert round(counter.get_total_flops() / 1e9) == expected
