"""DALL-E's dVAE: official names and sizes, independent re-computations of its codes and pictures."""

import pytest
import torch
import torch.nn.functional as F

from mam2.files import shapes_on_meta
from mam2.targets.tokenizers.dalle import DALLE, DALLEConfig

TINY = DALLEConfig(width=8, num_blocks=1, decoder_width=6, num_codes=29)


@pytest.fixture
def tiny() -> DALLE:
    generator = torch.Generator().manual_seed(0)
    model = DALLE(TINY)
    for name, tensor in model.state_dict().items():
        scale = 0.1 if name.endswith(".b") else 1.5 / tensor[0].numel() ** 0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
        if name.endswith(".w"):
            tensor -= tensor.mean((1, 2, 3), keepdim=True)  # or one code would win everywhere
    return model


@pytest.fixture
def frames_FCHW() -> torch.Tensor:
    return torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def official_names(side: str) -> dict[str, tuple[int, ...]]:
    """The tensors of one half of the official model, written out from its published source."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, width_in: int, width_out: int, kernel: int) -> None:
        shapes[f"{side}.blocks.{name}.w"] = (width_out, width_in, kernel, kernel)
        shapes[f"{side}.blocks.{name}.b"] = (width_out,)

    if side == "encoder":
        ends, width, widths, kernels = (3, 8192, 7), 256, [256, 512, 1024, 2048], [3, 3, 3, 1]
    else:
        ends, width, widths, kernels = (8192, 6, 1), 128, [2048, 1024, 512, 256], [1, 3, 3, 3]
    conv("input", ends[0], width, ends[2])
    for group, wider in enumerate(widths, start=1):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            if width != wider:
                conv(f"{name}.id_path", width, wider, 1)
            conv(f"{name}.res_path.conv_1", width, wider // 4, kernels[0])
            conv(f"{name}.res_path.conv_2", wider // 4, wider // 4, kernels[1])
            conv(f"{name}.res_path.conv_3", wider // 4, wider // 4, kernels[2])
            conv(f"{name}.res_path.conv_4", wider // 4, wider, kernels[3])
            width = wider
    conv("output.conv", width, ends[1], 1)
    return shapes


def test_official_names_load_strictly() -> None:
    encoder, decoder = official_names("encoder"), official_names("decoder")
    assert (len(encoder), len(decoder)) == (74, 76)
    assert sum(torch.Size(shape).numel() for shape in encoder.values()) == pytest.approx(53.8e6, abs=0.05e6)
    assert sum(torch.Size(shape).numel() for shape in decoder.values()) == pytest.approx(43.8e6, abs=0.05e6)
    assert shapes_on_meta(lambda: DALLE(DALLEConfig(), with_decoder=False)) == encoder
    with torch.device("meta"):
        model = DALLE(DALLEConfig())
        every = {name: torch.empty(shape) for name, shape in (encoder | decoder).items()}
        model.load_state_dict(every, strict=True, assign=True)
    assert (model.patch_size, model.num_codes) == (8, 8192)


def recompute_half(side: str, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """One half of TINY by plain functions and the state dict's names, without the module."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        w = weights[f"{side}.blocks.{name}.w"]
        return F.conv2d(x, w, weights[f"{side}.blocks.{name}.b"], padding="same" if w.shape[-1] > 1 else 0)

    h = conv("input", x)
    for group in range(1, 5):
        name, before = f"group_{group}.block_1", h
        for i in range(1, 5):
            h = conv(f"{name}.res_path.conv_{i}", h.clamp(min=0))
        if f"{side}.blocks.{name}.id_path.w" in weights:
            before = conv(f"{name}.id_path", before)
        h = before + h / 16  # 4 groups of 1 block: 1 / 4²
        if group < 4 and side == "encoder":
            h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        elif group < 4:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return conv("output.conv", h.clamp(min=0))


def test_codes_equal_a_plain_recomputation(tiny: DALLE, frames_FCHW: torch.Tensor) -> None:
    logits_FKHW = recompute_half("encoder", dict(tiny.state_dict()), 0.1 + 0.8 * frames_FCHW)
    expected = [
        [max(range(29), key=lambda k: float(logits_KN[k, n])) for n in range(6)] for logits_KN in logits_FKHW.flatten(2)
    ]
    codes_FN = tiny(frames_FCHW)
    assert codes_FN.dtype == torch.int64
    assert codes_FN.tolist() == expected
    assert len(codes_FN.unique()) > 5  # else the comparison says little


def test_pictures_equal_a_plain_recomputation(tiny: DALLE) -> None:
    codes_FN = torch.randint(29, (3, 6), generator=torch.Generator().manual_seed(2))
    onehot_FKHW = F.one_hot(codes_FN, 29).float().transpose(1, 2).reshape(3, 29, 2, 3)
    means_FCHW = recompute_half("decoder", dict(tiny.state_dict()), onehot_FKHW)[:, :3].sigmoid()
    shown_FCHW = tiny.decode(codes_FN, grid=(2, 3))
    torch.testing.assert_close(shown_FCHW, ((means_FCHW - 0.1) / 0.8).clamp(0, 1), atol=1e-5, rtol=0)
    assert shown_FCHW.shape == (3, 3, 16, 24)
    assert shown_FCHW.std() > 0.05


def test_the_gain_follows_the_number_of_blocks() -> None:
    with torch.device("meta"):
        model = DALLE(DALLEConfig())
    assert model.encoder.blocks.get_submodule("group_3.block_2").gain == 1 / 64
