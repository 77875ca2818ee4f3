"""The motion target of Table 1f: optical flow, by torchvision's RAFT with its official weights.

Shape letters: B clips, T frames, F frames in a row, Q pairs of neighbouring frames, C channels, H W pixels,
h w cells of the network (8 × 8 pixels).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights, raft_large, raft_small

from mam2.config import UserError
from mam2.device import send

MODELS = {
    "raft_large": (raft_large, Raft_Large_Weights.C_T_SKHT_V2),
    "raft_small": (raft_small, Raft_Small_Weights.C_T_V2),
}
CELL, SHORTEST = 8, 128  # pixels: RAFT takes sides in whole cells, and correlates 16 cells at least


class OpticalFlow:
    """A frozen RAFT network that makes the flow of clips.

    Args:
        model: Paper: "optical flow", of no named method; here: RAFT. raft_small costs a quarter (259 instead of
            982 GFLOP for a clip of 16 × 224² and 12 updates) and is less exact.
        file: torchvision's official .pth of that model. Empty: torchvision's own copy, downloaded once.
        device: where the network lies and clips are expected.
        num_updates: of the flow; 12 is training practice, 20 to 32 give the best flow.
        chunk: pairs of frames that are computed at a time, to bound memory.
        dtype: torch.bfloat16 for the updates where the hardware is fast at it; None is fp32. Encoders, correlation
            and the flow itself are always fp32.

    Raises:
        UserError: a missing or wrong file, no weights and no network to fetch them, or a number below 1.
    """

    # chunk: raft_large, a clip of 16 × 224², fp32 on one CPU core: 86 MiB at 1 pair, 0.16 GiB at 4, 0.26 at 8, 0.33 at
    # 15, all in 12 to 14 s. 15 is a clip: no frame is encoded twice, and a GPU has enough to do.
    # dtype: 12 updates in bf16 (AVX512-BF16 core) take 0.56 instead of 0.79 s a pair, and move the flow by 0.01 to 0.02
    # pixels (0.3 to 0.5 % of its rms). The encoders in bf16 too: 0.48 s, but 0.03 to 0.08 pixels (0.7 to 2.8 %),
    # because errors of the features become errors of where they match. Measured with a raft_small that was briefly
    # trained on shifted textures, on real clips; the times with raft_large.
    def __init__(
        self,
        *,
        model: Literal["raft_large", "raft_small"],
        file: str,
        device: torch.device,
        num_updates: int = 12,
        chunk: int = 15,
        dtype: torch.dtype | None = None,
    ) -> None:
        if min(num_updates, chunk) < 1:
            raise UserError(f"num_updates is {num_updates} and chunk {chunk}; both must be at least 1.")
        self.network = load_raft(model, file).to(device)
        self.num_updates, self.chunk, self.dtype = num_updates, chunk, dtype

    @torch.no_grad()
    def flow(self, clip_BTCHW: Tensor) -> Tensor:
        """Where the pixels of each frame go in the next.

        Clips whose sides are not multiples of 8 or below 128 pixels are resized for the network, and their flow
        back. Under a caller's autocast the result is the same.

        Args:
            clip_BTCHW: floating point RGB in [0, 1], at least 2 frames.

        Returns:
            (B, T-1, 2, H, W), fp32, (right, down) in pixels of the given clip.

        Raises:
            UserError: clips of another shape or type.
        """
        shape = tuple(clip_BTCHW.shape)
        if len(shape) != 5 or shape[1] < 2 or shape[2] != 3 or not clip_BTCHW.is_floating_point():
            raise UserError(
                f"Optical flow was given clips of shape {shape}, {clip_BTCHW.dtype}; it takes (B, T, 3, H, W) with at "
                "least 2 frames, floating point in [0, 1]. Divide uint8 clips by 255."
            )
        frames_FCHW = clip_BTCHW.flatten(0, 1)
        pair_Q = torch.arange(shape[0] * (shape[1] - 1))
        first_Q = pair_Q + pair_Q // (shape[1] - 1)  # the last frame of a clip is the first of no pair
        sent_Q = send(first_Q, clip_BTCHW.device)
        parts = []
        for part_Q, sent in zip(first_Q.split(self.chunk), sent_Q.split(self.chunk), strict=True):
            start, end = int(part_Q[0]), int(part_Q[-1]) + 2
            parts.append(self._flow_of(frames_FCHW[start:end], sent - start))
        return torch.cat(parts).unflatten(0, (shape[0], shape[1] - 1))

    def _flow_of(self, frames_FCHW: Tensor, first_Q: Tensor) -> Tensor:
        """(Q, 2, H, W), the flow from frame first_Q to the next one, in pixels of these frames."""
        height, width = frames_FCHW.shape[-2:]
        size = network_size(height, width)
        with torch.autocast(frames_FCHW.device.type, enabled=False):
            resized_FCHW = resize(frames_FCHW.float(), size)
            flow_Q2HW = raft(
                self.network, resized_FCHW * 2 - 1, first_Q, num_updates=self.num_updates, dtype=self.dtype
            )
            x_QHW, y_QHW = resize(flow_Q2HW, (height, width)).unbind(1)
            return torch.stack([x_QHW * (width / size[1]), y_QHW * (height / size[0])], dim=1)


def network_size(height: int, width: int) -> tuple[int, int]:
    """The next size that RAFT takes: the shorter side is rounded up, the longer as keeps the aspect best."""
    short = min(height, width)
    new = max(SHORTEST, -(-short // CELL) * CELL)
    return CELL * round(height * new / short / CELL), CELL * round(width * new / short / CELL)


def resize(images_FCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, averaging where it shrinks; nothing is done to images of that size already."""
    if tuple(images_FCHW.shape[-2:]) == size:
        return images_FCHW
    return F.interpolate(images_FCHW, size=size, mode="bilinear", antialias=True)


def raft(network: Any, frames_FCHW: Tensor, first_Q: Tensor, *, num_updates: int, dtype: torch.dtype | None) -> Tensor:
    """The flow from frames first_Q to their next ones, by the parts of torchvision's RAFT.

    The network's own forward takes pairs, so encodes inner frames twice, and draws the flow at full size after every
    update. This one encodes each frame once and draws the last flow only: the same values (to rounding) for 982
    instead of 1192 GFLOP a clip of 16 × 224², and in 3/4 of the time.

    Args:
        network: a `torchvision.models.optical_flow.RAFT`.
        frames_FCHW: RGB in [-1, 1], fp32, of a size that `network_size` gives.
        first_Q: int64 indices of the pairs' first frames.
        num_updates: of the flow.
        dtype: of the updates, None for fp32.

    Returns:
        (Q, 2, H, W), fp32, (right, down) in pixels.
    """
    features_FChw, state_QChw = network.feature_encoder(frames_FCHW), network.context_encoder(frames_FCHW[first_Q])
    network.corr_block.build_pyramid(features_FChw[first_Q], features_FChw[first_Q + 1])
    num_hidden = network.update_block.hidden_state_size
    hidden_QChw, context_QChw = state_QChw[:, :num_hidden].tanh(), state_QChw[:, num_hidden:].relu()

    h, w = features_FChw.shape[-2:]
    device = frames_FCHW.device
    rows_hw, columns_hw = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    cell_2hw = torch.stack([columns_hw, rows_hw]).float()
    flow_Q2hw = features_FChw.new_zeros(len(first_Q), 2, h, w)  # in cells
    for _ in range(num_updates):
        correlation_QChw = network.corr_block.index_pyramid(centroids_coords=cell_2hw + flow_Q2hw)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            hidden_QChw, step_Q2hw = network.update_block(hidden_QChw, context_QChw, correlation_QChw, flow_Q2hw)
        flow_Q2hw = flow_Q2hw + step_Q2hw.float()
    network.corr_block.corr_pyramid = []  # else the correlations, the largest tensors here, would live on

    if network.mask_predictor is None:  # raft_small
        return CELL * F.interpolate(flow_Q2hw, scale_factor=CELL, mode="bilinear", align_corners=True)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        logits_QChw = network.mask_predictor(hidden_QChw)
    return draw(CELL * flow_Q2hw, logits_QChw.float())


def draw(flow_Q2hw: Tensor, logits_QChw: Tensor) -> Tensor:
    """A flow a cell to a flow a pixel: each pixel is a weighted mean of the 3 × 3 cells around its own."""
    h, w = flow_Q2hw.shape[-2:]
    weights = logits_QChw.unflatten(1, (9, CELL, CELL)).softmax(1)
    neighbours = F.unfold(flow_Q2hw, 3, padding=1).unflatten(2, (h, w)).unflatten(1, (2, 9))
    return torch.einsum("qcnhw,qnijhw->qchiwj", neighbours, weights).flatten(2, 3).flatten(3, 4)


def load_raft(model: Literal["raft_large", "raft_small"], file: str) -> nn.Module:
    """A frozen network in eval mode, with the weights of an official .pth, or of torchvision's copy if `file` is "".

    Raises:
        UserError: as `OpticalFlow`.
    """
    if model not in MODELS:
        raise UserError(f"{model!r} is no flow model; accepted: {', '.join(MODELS)}.")
    _, weights = MODELS[model]
    name = weights.url.rsplit("/", 1)[-1]
    advice = f"Download {weights.url} and name it with `--targets.flow-file {name}`."
    if file and not Path(file).is_file():
        raise UserError(f"There is no file {file!r} with weights of {model}. {advice}")
    try:
        if file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        else:
            state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file, or a network, fails with
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
        if file:
            raise UserError(f"{file} cannot be read as weights of {model} ({reason}). {advice}") from error
        cached = Path(torch.hub.get_dir()) / "checkpoints" / name
        raise UserError(
            f"torchvision's weights of {model} can neither be read from {cached} nor downloaded ({reason}). Delete "
            f"that file if it is there. Without a network: {advice[0].lower()}{advice[1:]}"
        ) from error

    found = signature(state)
    network = empty(model)
    expected = signature(network.state_dict())
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        fits = [f" They are those of {other}." for other in MODELS if signature(empty(other).state_dict()) == found]
        raise UserError(
            f"{file or name} does not hold the weights of {model}: {len(wrong)} tensors are missing, unexpected or "
            f"of another shape ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}).{''.join(fits)} {advice}"
        )
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False)


def empty(model: str) -> nn.Module:
    """A network without numbers: every tensor is to come from a file."""
    with torch.device("meta"):
        return MODELS[model][0](weights=None)


def signature(state: object) -> dict[str, str]:
    """What a state dict holds under each name: shape and type, all floats being one type. Empty if it is none."""
    found = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Tensor):
            found[str(name)] = f"{tuple(value.shape)} {'float' if value.is_floating_point() else value.dtype}"
        else:
            found[str(name)] = type(value).__name__
    return found
