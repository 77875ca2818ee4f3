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
from torchvision.models.optical_flow import raft_large, raft_small
from torchvision.models.optical_flow.raft import CorrBlock

from mam2.config import UserError
from mam2.targets.raft import MODELS, OpticalFlow, load_raft, network_size, raft

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
    return OpticalFlow(model="raft_small", file=files["raft_small"], device=CPU, num_updates=3)


def textured(*shape: int, seed: int = 0) -> Tensor:
    """Smooth random images (*lead, 3, H, W) in [0, 1]."""
    *lead, height, width = shape
    grain = torch.rand(*lead, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed)).flatten(0, -4)
    return F.interpolate(grain, size=(height, width), mode="bilinear").view(*lead, 3, height, width)


class Stub:
    """The parts of a RAFT; every update adds a known step, in cells of 8 pixels of the network's images."""

    hidden_state_size = 1
    mask_predictor = None

    def __init__(self, step: tuple[float, float] = (0.0, 0.0)) -> None:
        self.step = torch.tensor(step)[:, None, None]
        self.corr_block = CorrBlock(num_levels=1, radius=4)
        self.update_block = self

    def feature_encoder(self, frames_FCHW: Tensor) -> Tensor:
        """Each cell's own pixels, of length 1."""
        return F.normalize(F.pixel_unshuffle(frames_FCHW - frames_FCHW.mean((2, 3), keepdim=True), 8), dim=1)

    def context_encoder(self, frames_FCHW: Tensor) -> Tensor:
        return F.avg_pool2d(frames_FCHW, 8)

    def __call__(self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, self.step.expand_as(flow)


class Matcher(Stub):
    """Its step is to the best match within 4 cells: a flow network by hand, right for shifts by whole cells."""

    def __call__(self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        best = correlation.argmax(1)
        return hidden, torch.stack([best // 9 - 4, best % 9 - 4], 1).float()  # torchvision's order: right, then down


def with_network(network: Any, **settings: Any) -> OpticalFlow:
    """An OpticalFlow of this network, that needed no file: 2 updates, 4 pairs at a time."""
    made = object.__new__(OpticalFlow)
    made.network, made.num_updates, made.chunk, made.dtype = network, 2, 4, None
    for name, value in settings.items():
        setattr(made, name, value)
    return made


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
    stub = with_network(Stub(step=(0.5, -0.25)))  # two updates of 8-pixel cells: 8 right, 4 up
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
    made = OpticalFlow(model=model, file=files[model], device=CPU, num_updates=2)
    clip = textured(1, 3, 128, 136)
    flow = made.flow(clip)
    theirs = MODELS[model][0](weights=None).eval()
    theirs.load_state_dict(torch.load(files[model], weights_only=True))
    with torch.no_grad():
        first, second = MODELS[model][1].transforms()(clip[0, :-1], clip[0, 1:])
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


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_chunks_change_nothing(small: OpticalFlow, chunk: int) -> None:
    clip = textured(2, 4, 40, 40)  # 6 pairs: chunks of 4 hold pairs of two clips
    expected = torch.cat([small.flow(clip[:, t : t + 2]) for t in range(3)], dim=1)
    flow = with_network(small.network, num_updates=3, chunk=chunk).flow(clip)
    torch.testing.assert_close(flow, expected, rtol=1e-3, atol=1e-3)


def test_fp32_holds_under_autocast(small: OpticalFlow) -> None:
    clip = textured(1, 2, 128, 128)
    expected = small.flow(clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = small.flow(clip)
    assert flow.dtype == torch.float32
    assert torch.equal(flow, expected)


@pytest.mark.parametrize("model", list(MODELS))
def test_updates_in_bf16_are_near_fp32(files: dict[str, str], model: Any) -> None:
    clip = textured(1, 2, 128, 128)
    exact, fast = (
        OpticalFlow(model=model, file=files[model], device=CPU, num_updates=3, dtype=dtype).flow(clip)
        for dtype in (None, torch.bfloat16)
    )
    assert fast.dtype == torch.float32
    assert 0 < (fast - exact).norm() < 0.03 * exact.norm()


def test_frozen(small: OpticalFlow) -> None:
    flow = small.flow(textured(1, 2, 128, 128).requires_grad_())
    assert not flow.requires_grad
    assert not small.network.training
    assert not any(parameter.requires_grad for parameter in small.network.parameters())
    assert small.network.corr_block.corr_pyramid == []


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


def test_wrong_settings_are_refused(files: dict[str, str]) -> None:
    for settings in ({"num_updates": 0}, {"chunk": 0}):
        with pytest.raises(UserError, match="at least 1"):
            OpticalFlow(model="raft_small", file=files["raft_small"], device=CPU, **settings)
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
    refused({k: v for k, v in state.items() if k != last}, rf"1 tensors are missing.*{last}")
    refused(state | {"more": torch.zeros(1)}, r"1 tensors .*\(more\)")
    refused(state | {"epoch": 3}, r"1 tensors .*\(epoch\)")
    refused(state | {last: state[last][:1]}, rf"1 tensors .*\({last}\)")
    refused(state | {last: state[last].long()}, rf"1 tensors .*\({last}\)")
    refused(state | {"epoch": torch.zeros(2, dtype=torch.long)}, r"1 tensors .*\(epoch\)")
    refused({"model": state}, "does not hold the weights of raft_small")
    refused([1, 2], "does not hold the weights of raft_small")
    refused(torch.load(files["raft_large"], weights_only=True), "They are those of raft_large")
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


def test_flops() -> None:
    """What the docstrings say it costs: 15 pairs of 224², 12 updates."""
    for model, expected in (("raft_large", 982), ("raft_small", 259)):
        with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network = MODELS[model][0](weights=None).eval()
            raft(network, torch.rand(16, 3, 224, 224), torch.arange(15), num_updates=12, dtype=None)
        assert round(counter.get_total_flops() / 1e9) == expected
