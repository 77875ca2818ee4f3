"""Optical flow, a motion target of Table 1f, computed by torchvision's RAFT with its official weights.

B clips, T frames, F frames in a row, Q pairs of neighbouring frames, C channels, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.config import UserError
from mam2.files import check_tensors, shapes_of

MODELS = {"raft_large": "C_T_SKHT_V2", "raft_small": "C_T_V2"}  # and their official weights
CELL = 8  # pixels: RAFT takes sides in whole cells ...
SHORTEST = 128  # ... and correlates 16 of them at least
NUM_UPDATES = 12  # training practice; 20 to 32 give the best flow
PAIRS_AT_ONCE = 15  # a clip of 16 frames; 0.33 GiB for raft_large at 224²


class OpticalFlow:
    """A frozen RAFT network that makes the flow of clips: `flow(clip_BTCHW)`.

    Args:
        model: Paper: "optical flow", of no named method; here: RAFT. raft_small costs a quarter (264 instead of
            1192 GFLOP per clip of 16 × 224²) and is less exact.
        file: torchvision's official .pth of that model. Empty: torchvision's own copy, downloaded once.
        device: device of the network and of the clips.

    Raises:
        UserError: a missing or wrong file, or no weights and no network to fetch them.
    """

    def __init__(self, *, model: Literal["raft_large", "raft_small"], file: str, device: torch.device) -> None:
        self.network = load_raft(model, file).to(device)

    @torch.no_grad()
    def flow(self, clip_BTCHW: Tensor) -> Tensor:
        """Motion of each frame's pixels to the next frame: (B, T-1, 2, H, W), fp32, (right, down) in the clip's pixels.

        Clips are floating point RGB in [0, 1] of at least 2 frames; UserError for others. Sides that are not multiples
        of 8, or below 128 pixels, are resized for the network, and the flow back. Autocast changes nothing.
        """
        shape = tuple(clip_BTCHW.shape)
        if len(shape) != 5 or shape[1] < 2 or shape[2] != 3 or not clip_BTCHW.is_floating_point():
            raise UserError(
                f"Optical flow was given clips of shape {shape}, {clip_BTCHW.dtype}; it takes (B, T, 3, H, W) with at "
                "least 2 frames, floating point in [0, 1]. Divide uint8 clips by 255."
            )
        height, width = shape[3:]
        size = network_size(height, width)
        with torch.autocast(clip_BTCHW.device.type, enabled=False):
            resized_BTCHW = resize(clip_BTCHW.flatten(0, 1).float() * 2 - 1, size).unflatten(0, shape[:2])
            first_QCHW = resized_BTCHW[:, :-1].flatten(0, 1)
            next_QCHW = resized_BTCHW[:, 1:].flatten(0, 1)
            pairs = zip(first_QCHW.split(PAIRS_AT_ONCE), next_QCHW.split(PAIRS_AT_ONCE), strict=True)
            flow_Q2HW = torch.cat([self.network(*pair, num_flow_updates=NUM_UPDATES)[-1] for pair in pairs])
            x_QHW, y_QHW = resize(flow_Q2HW, (height, width)).unbind(1)
            flow_Q2HW = torch.stack([x_QHW * (width / size[1]), y_QHW * (height / size[0])], dim=1)
        return flow_Q2HW.unflatten(0, (shape[0], shape[1] - 1))


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


def load_raft(model: Literal["raft_large", "raft_small"], file: str) -> nn.Module:
    """A frozen network in eval mode, with the weights of an official .pth, or of torchvision's copy if `file` is "".

    Errors are those of `OpticalFlow`.
    """
    if model not in MODELS:
        raise UserError(f"{model!r} is no flow model; accepted: {', '.join(MODELS)}.")
    from torchvision import models  # which takes seconds

    weights = getattr(models.get_model_weights(model), MODELS[model])
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

    with torch.device("meta"):  # every tensor comes from the file
        network = models.get_model(model, weights=None)
    tensors = (
        {str(name): part for name, part in state.items() if isinstance(part, Tensor)} if isinstance(state, dict) else {}
    )
    check_tensors(tensors, shapes_of(network), where=f"{file or name} does not hold the weights of {model}. {advice}")
    network.load_state_dict(tensors, assign=True)
    frozen: nn.Module = network.float().eval().requires_grad_(False)
    return frozen
