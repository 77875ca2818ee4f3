"""What only a GPU can show; `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mam2.data.clips import Data
from mam2.data.loader import Batch
from mam2.masks import MaskConfig
from mam2.model.blocks import can_compile, compile_blocks, recompute_blocks
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.weights import save_encoder
from mam2.objectives.mam2 import MAM2Config
from mam2.share.export import export
from mam2.targets.maker import TargetMaker
from mam2.targets.table import TargetsConfig
from mam2.train.logs import StepMetrics
from mam2.train.optim import make_optimizer
from mam2.train.pretrain import Pretrain, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),  # torch's own, while it compiles
]
CONFIG = Pretrain(
    data=Data(),
    encoder=EncoderConfig(width=64, depth=9, num_heads=2, frames=4, size=32, patch_size=8, drop_path=0.1),
    objective=MAM2Config(width=64, num_heads=2, regressor_depth=1, appearance_depth=1, motion_depth=1),
    mask=MaskConfig(aligned=0.5),
    targets=TargetsConfig(appearance="random_projection", num_codes=64),
)


@pytest.mark.parametrize(("compiled", "recomputed"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_step_never_waits_for_the_gpu(compiled: bool, recomputed: bool) -> None:
    device = torch.device("cuda")
    targets = TargetMaker(CONFIG.targets, patch_size=8, device=device)
    model = build(CONFIG, targets.sizes).to(device).train()
    optimizer = make_optimizer(model, CONFIG.optim)
    if recomputed:
        recompute_blocks(model)
    if compiled:
        if not can_compile(device):
            pytest.skip("torch.compile needs Triton and a C compiler")
        compile_blocks(model)

    def step(number: int) -> StepMetrics:
        sample_B = torch.arange(2) + 2 * number
        clip = torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8)
        batch = Batch(clip_BTCHW=clip, label_B=torch.tensor([0, 1]), sample_B=sample_B).to(device)
        mask = CONFIG.mask(4, CONFIG.encoder.grid, sample_B=sample_B, seed=0).to(device)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            losses = model(batch.clip_BTCHW, mask, targets(batch.clip_BTCHW, sample_B=sample_B, seed=0), number)
            losses.total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return StepMetrics(number + 1, [losses], norm, logged=True, numbers={}, num_clips=2)

    for number in range(2):
        step(number).values()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics = step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metrics.wait()
    assert 0 < metrics.values()["loss"] < 100


def test_a_package_compiled_for_the_gpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_encoder(tmp_path / "encoder.safetensors", VideoEncoder(CONFIG.encoder))
    done = export(tmp_path / "encoder.safetensors", tmp_path / "x.pt2", format="aoti", device="cuda")
    assert 0 <= done.difference < 1e-3 < done.largest
