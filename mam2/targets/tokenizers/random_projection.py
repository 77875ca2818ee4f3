"""Random projection: codes of patches without any training, as the quantiser of BEST-RQ.

F frames, C channels, H W pixels, N patches per frame (row by row), D width, K codes, P patch side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mam2.patches import patchify
from mam2.targets.tokenizers.codes import FrameTokenizer

# Measured on dark 112² and ordinary 224² video, 16² patches. The raw patch: nearly all share a direction, so 3 (12)
# codes do all the work. Per-patch normalisation, as in BEST-RQ: 988 (623), but brightness is lost, and faint noise
# changes 47 % (23 %) of the codes. Shrunk to 8² first, and with a tenth of the brightness: 294 (351), and 18 % (9 %).
SIDE = 8
BRIGHTNESS = 0.1
CODE_WIDTH = 16


class RandomProjection(FrameTokenizer):
    """Gives a patch, projected at random, the code of the nearest of K random directions.

    Everything is drawn from `seed` alone: no training, no file, the same in every process.
    """

    def __init__(self, *, patch_size: int, num_codes: int = 8192, seed: int = 0) -> None:
        super().__init__(patch_size=patch_size, num_codes=num_codes)
        self.side = min(SIDE, patch_size)
        self.projection_FD: Tensor
        self.directions_KD: Tensor
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            projection_1FD = nn.init.xavier_normal_(torch.empty(1, 3 * self.side**2, CODE_WIDTH))
            directions_1KD = nn.init.kaiming_uniform_(torch.empty(1, num_codes, CODE_WIDTH))
        self.register_buffer("projection_FD", projection_1FD[0])
        self.register_buffer("directions_KD", F.normalize(directions_1KD[0], dim=-1))
        self.eval()

    def encode(self, frames_FCHW: Tensor) -> Tensor:
        size = [self.side * pixels // self.patch_size for pixels in frames_FCHW.shape[-2:]]
        patches_FND = patchify(F.interpolate(frames_FCHW.float(), size, mode="area"), self.side)
        mean_FN1 = patches_FND.mean(-1, keepdim=True)
        features_FND = patches_FND - mean_FN1 + BRIGHTNESS * (mean_FN1 - 0.5)
        with torch.autocast(frames_FCHW.device.type, enabled=False):
            z_FND = F.normalize(features_FND @ self.projection_FD, dim=-1)
            return (z_FND @ self.directions_KD.T).argmax(dim=-1)
