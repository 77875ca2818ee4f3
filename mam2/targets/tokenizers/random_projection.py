"""Random projection: codes of patches without any training (BEST-RQ).

F frames, C channels, H W pixels, N patches per frame (row by row), D width, K codes, P patch side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import RandomProjectionQuantizer

from mam2.patches import patchify
from mam2.targets.tokenizers.codes import check_frames


class RandomProjection(nn.Module):
    """The quantiser of BEST-RQ: a patch, projected at random, takes the nearest direction's code. Untrained.

    Everything is drawn from `seed` alone, so it needs no file and is the same in every process.

    Args:
        patch_size: P.
        num_codes: K.
        codebook_dim: how many numbers a patch is projected to.
        seed: of the projection and the codebook.
        chunk: how many frames are encoded at a time, to bound memory.
    """

    # Measured on dark 112² and ordinary 224² video, 16² patches. The raw patch: nearly all share a
    # direction, so 3 (12) codes do all the work. Per-patch normalisation, as in BEST-RQ: 988 (623), but
    # brightness is lost, and faint noise changes 47 % (23 %) of the codes. Shrunk to 8² first, and with a
    # tenth of the brightness: 294 (351), and 18 % (9 %).
    SIDE = 8
    BRIGHTNESS = 0.1

    def __init__(
        self, *, patch_size: int, num_codes: int = 8192, codebook_dim: int = 16, seed: int = 0, chunk: int = 8
    ) -> None:
        super().__init__()
        self.patch_size, self.num_codes, self.chunk = patch_size, num_codes, chunk
        self.side = min(self.SIDE, patch_size)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self.quantizer = RandomProjectionQuantizer(
                dim=3 * self.side**2,
                codebook_size=num_codes,
                codebook_dim=codebook_dim,
                norm=False,
                sync_codebook=False,
            )
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, frames_FCHW: Tensor) -> Tensor:
        """Frames in [0, 1], of any size in whole patches -> codes (F, N), int64, row by row.

        Raises:
            UserError: frames of another shape or type.
        """
        check_frames(frames_FCHW, patch_size=self.patch_size)
        with torch.autocast(frames_FCHW.device.type, enabled=False):
            return torch.cat([self._encode(part_FCHW) for part_FCHW in frames_FCHW.split(self.chunk)])

    def _encode(self, frames_FCHW: Tensor) -> Tensor:
        # The quantizer's own forward asks the device a question each time, and makes one-hot codes that nobody needs.
        directions_KD = self.quantizer.vq.codebook.view(self.num_codes, -1)
        z_FND = F.normalize(self._features(frames_FCHW) @ self.quantizer.rand_projs[0], dim=-1)
        return (z_FND @ directions_KD.T).argmax(dim=-1)

    def _features(self, frames_FCHW: Tensor) -> Tensor:
        size = [self.side * pixels // self.patch_size for pixels in frames_FCHW.shape[-2:]]
        patches_FND = patchify(F.interpolate(frames_FCHW.float(), size, mode="area"), self.side)
        mean_FN1 = patches_FND.mean(-1, keepdim=True)
        return patches_FND - mean_FN1 + self.BRIGHTNESS * (mean_FN1 - 0.5)
