"""The tokenizers without a download: same seed, same codes; a small VQ model learns the patches it sees."""

import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import RandomProjectionQuantizer

from mam2.config import UserError
from mam2.patches import patchify
from mam2.targets.tokenizers.random_projection import RandomProjection
from mam2.targets.tokenizers.vq import VQ, VQConfig, code_usage, train_vq

CONFIG = VQConfig(patch_size=4, num_codes=32, code_dim=8, width=48)


def textures(num_frames: int, *, seed: int) -> torch.Tensor:
    """Frames of 4² patches, each one of 12 fixed random patches with faint noise."""
    kinds = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(12, (num_frames, 4, 5), generator=generator)
    frames_FCHW = kinds[kind].permute(0, 3, 1, 4, 2, 5).reshape(num_frames, 3, 16, 20)
    return (frames_FCHW + 0.01 * torch.randn(frames_FCHW.shape, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def trained() -> tuple[VQ, dict[str, float]]:
    return train_vq([textures(8, seed=s) for s in range(8)], CONFIG, num_steps=600, seed=0)


def test_code_usage() -> None:
    assert code_usage(torch.arange(6).view(2, 3), num_codes=12) == pytest.approx({"usage": 0.5, "perplexity": 6})
    assert code_usage(torch.full((9,), 3), num_codes=4) == pytest.approx({"usage": 0.25, "perplexity": 1})


def test_random_projection_depends_on_its_seed_only() -> None:
    frames_FCHW = textures(4, seed=0)
    state = torch.random.get_rng_state()
    first = RandomProjection(patch_size=4, num_codes=64, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1234)
    second = RandomProjection(patch_size=4, num_codes=64, seed=3)
    codes_FN = first(frames_FCHW)
    assert (codes_FN.shape, codes_FN.dtype) == ((4, 20), torch.int64)
    assert torch.equal(second(frames_FCHW), codes_FN)
    assert not torch.equal(RandomProjection(patch_size=4, num_codes=64, seed=4)(frames_FCHW), codes_FN)
    assert not list(first.parameters())
    assert not first.training


def test_random_projection_sees_its_own_patch_only() -> None:
    """Codes run row by row, and a change in one patch changes no other code."""
    tokenizer = RandomProjection(patch_size=16, num_codes=512)
    frames_FCHW = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    codes_FN = tokenizer(frames_FCHW)
    changed = frames_FCHW.clone()
    changed[1, :, 16:32, 32:48] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert (tokenizer(changed) != codes_FN).nonzero().tolist() == [[1, 5]]


def test_random_projection_is_the_nearest_direction() -> None:
    """By hand, from the drawn projection and codebook. 4² patches are not shrunk."""
    tokenizer = RandomProjection(patch_size=4, num_codes=64)
    frames_FCHW = textures(2, seed=5)
    patches_FND = patchify(frames_FCHW, 4)
    mean_FN1 = patches_FND.mean(2, keepdim=True)
    features_FND = (patches_FND - mean_FN1) + 0.1 * (mean_FN1 - 0.5)
    projected_FND = features_FND @ tokenizer.projection_FD
    assert torch.equal(tokenizer(frames_FCHW), (projected_FND @ tokenizer.directions_KD.T).argmax(-1))


def test_random_projection_draws_what_the_library_draws() -> None:
    tokenizer = RandomProjection(patch_size=16, num_codes=512, seed=5)
    torch.manual_seed(5)
    sizes = {"dim": 192, "codebook_size": 512, "codebook_dim": 16, "norm": False, "sync_codebook": False}
    theirs = RandomProjectionQuantizer(**sizes)
    assert torch.equal(tokenizer.projection_FD, theirs.rand_projs[0])
    assert torch.equal(tokenizer.directions_KD, theirs.vq.codebook.view(512, 16))


def test_random_projection_is_exact_under_autocast() -> None:
    tokenizer, frames_FCHW = RandomProjection(patch_size=4), textures(2, seed=0)
    expected = tokenizer(frames_FCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer(frames_FCHW), expected)


def test_random_projection_tells_patches_apart_and_bears_noise() -> None:
    """Smooth frames: raw patches of all-positive numbers would share a handful of codes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(100, 3, 4, 4, generator=generator)
    frames_FCHW = F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=True)
    tokenizer = RandomProjection(patch_size=16)
    codes_FN = tokenizer(frames_FCHW)
    assert code_usage(codes_FN, num_codes=8192)["perplexity"] > 80
    noisy = (frames_FCHW + 2 / 255 * torch.randn(frames_FCHW.shape, generator=generator)).clamp(0, 1)
    assert (tokenizer(noisy) == codes_FN).double().mean() > 0.8


def test_random_projection_on_real_video(real_data) -> None:
    import av

    frames = []
    for file in sorted((real_data / "arid6" / "val").rglob("*.mp4"))[::12]:
        with av.open(str(file)) as video:
            frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
        frames.append(torch.from_numpy(frame[:112, :112]).permute(2, 0, 1) / 255)
    usage = code_usage(RandomProjection(patch_size=16)(torch.stack(frames)), num_codes=8192)
    assert usage["perplexity"] > 50  # of 392 patches; raw patches give 3


def test_vq_reconstructs_held_out_patches(trained: tuple[VQ, dict[str, float]]) -> None:
    vq, report = trained
    assert report["mse"] < 0.1 * report["mse_of_mean"]
    assert report["perplexity"] > 8
    frames_FCHW = textures(4, seed=77)
    codes_FN = vq(frames_FCHW)
    assert (codes_FN.shape, codes_FN.dtype) == ((4, 20), torch.int64)
    shown_FCHW = vq.decode(codes_FN, grid=(4, 5))
    assert shown_FCHW.shape == frames_FCHW.shape
    assert F.mse_loss(shown_FCHW, frames_FCHW) < 0.1 * frames_FCHW.var()


def test_vq_codes_are_deterministic_and_change_nothing(trained: tuple[VQ, dict[str, float]]) -> None:
    vq, _ = trained
    before = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    frames_FCHW = textures(4, seed=78)
    codes_FN = vq(frames_FCHW)
    vq.train()  # even so: the codebook learns in train_vq only
    assert torch.equal(vq(frames_FCHW), codes_FN)
    vq.eval()
    assert torch.equal(torch.cat([vq(frame[None]) for frame in frames_FCHW]), codes_FN)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vq.state_dict().items())
    assert not any(p.requires_grad for p in vq.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq(frames_FCHW), codes_FN)


def test_vq_training_is_deterministic_and_leaves_the_rng_alone() -> None:
    batches = [textures(8, seed=s) for s in range(3)]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, report = train_vq(batches, CONFIG, num_steps=5, seed=7)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    second, same_report = train_vq(batches, CONFIG, num_steps=5, seed=7)
    assert report == same_report
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    other, _ = train_vq(batches, CONFIG, num_steps=5, seed=8)
    assert not torch.equal(other.codebook_KD, first.codebook_KD)


def test_uint8_and_float_frames_train_alike() -> None:
    frames = (textures(8, seed=0) * 255).round().to(torch.uint8)
    first, _ = train_vq([frames], CONFIG, num_steps=2)
    second, _ = train_vq([frames.float() / 255], CONFIG, num_steps=2)
    assert torch.equal(first.codebook_KD, second.codebook_KD)


def test_batches_that_end_are_refused() -> None:
    with pytest.raises(UserError, match="ended too early"):
        train_vq(iter([textures(8, seed=0)]), CONFIG, num_steps=50)
    for batches in ([], [torch.zeros(0, 3, 8, 8)]):
        with pytest.raises(UserError, match="there are none"):
            train_vq(batches, CONFIG, num_steps=1)
    with pytest.raises(UserError, match="num_steps is 0"):
        train_vq([textures(8, seed=0)], CONFIG, num_steps=0)
