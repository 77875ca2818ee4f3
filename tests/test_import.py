"""Public encoders as ours, against timm and transformers with random weights in the official formats."""

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from mam2.config import UserError
from mam2.masks import MaskConfig
from mam2.model.classifier import Classifier
from mam2.model.encoder import EncoderConfig, Origin, VideoEncoder
from mam2.model.importers import import_encoder
from mam2.model.importers.facts import Inflation
from mam2.model.importers.names import renamed
from mam2.model.load import load_encoder, read_encoder_config
from mam2.model.weights import copy_encoder, load_classifier, read_origin, save_classifier, save_encoder
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD
from mam2.recipes import get_recipe
from mam2.recipes.scales import scaled
from mam2.targets.maker import TargetMaker
from mam2.train.optim import Optim, layer_id, make_optimizer
from mam2.train.pretrain import Pretrain
from mam2.train.pretrain import build as pretrain_build

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96, "image_size": 32}
TIMM_SMALL = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}
WITHOUT_CLASS = "vit_base_patch16_siglip_224.webli"
DINOV3 = "vit_base_patch16_dinov3_qkvb.lvd1689m"
TIMM = {
    "vit_base_patch16_224.augreg_in21k": 1,
    "vit_base_patch16_224.mae": 1,
    WITHOUT_CLASS: 0,
    "vit_base_patch14_reg4_dinov2.lvd142m": 5,
    "vit_base_patch16_clip_224.openai": 1,
    "vit_base_patch16_clip_quickgelu_224.openai": 1,
    "vit_small_patch16_dinov3.lvd1689m": 5,
    DINOV3: 5,
}
"""Names of timm's with the number of their prefix tokens."""


def scramble(model: nn.Module) -> nn.Module:
    """Random numbers in every parameter, of a size that keeps all parts of the model at work."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if re.search(r"norm[^.]*\.weight$", name):  # small ones would make attention the same everywhere
                parameter += 1
    return model.eval()


def clip_of(frames: int, size: int) -> Tensor:
    return torch.rand(2, frames, 3, size, size, generator=torch.Generator().manual_seed(3))


def normalised(clip_BTCHW: Tensor, mean: Any, std: Any) -> Tensor:
    return (clip_BTCHW - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def timm_model(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small model of timm with random weights, which `timm.create_model` gives from now on under that name."""
    create = timm.create_model
    model = scramble(create(name, pretrained=False, **TIMM_SMALL))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: copy.deepcopy(model))
    monkeypatch.setattr("mam2.model.importers.recognise.download", lambda *_: Path())
    return model


def hugging_face(folder: Path, model: Any, pixels: dict[str, Any] | None = None) -> str:
    """The folder that `save_pretrained` makes of a model with random weights."""
    scramble(model).save_pretrained(folder)
    if pixels:
        (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return f"hf:{folder}"


@pytest.mark.parametrize("name", TIMM)
def test_an_image_model_of_timm_is_the_same_frame_by_frame(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_model(name, monkeypatch)
    imported = import_encoder(f"timm:{name}", inflation=Inflation(frames=3))
    encoder = imported.encoder
    assert (encoder.config.frames, encoder.config.size, encoder.config.prefix_tokens) == (3, 32, TIMM[name])
    clip = clip_of(3, 32)
    frames = normalised(clip, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]).flatten(0, 1)
    with torch.no_grad():
        expected = model.forward_features(frames)[:, TIMM[name] :].unflatten(0, (2, 3))
        torch.testing.assert_close(encoder(clip), expected, **CLOSE)
    assert encoder.origin == Origin(source=f"timm:{name}", licence=model.pretrained_cfg["license"])


def test_a_tubelet_of_equal_frames_is_that_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    timm_model(WITHOUT_CLASS, monkeypatch)
    frame = clip_of(2, 32)
    single = import_encoder(f"timm:{WITHOUT_CLASS}", inflation=Inflation(frames=2)).encoder
    for kernel in ("mean", "center"):
        inflation = Inflation(frames=4, tubelet=2, kernel=kernel)  # type: ignore[arg-type]
        encoder = import_encoder(f"timm:{WITHOUT_CLASS}", inflation=inflation).encoder
        with torch.no_grad():
            torch.testing.assert_close(encoder(frame.repeat_interleave(2, dim=1)), single(frame), **CLOSE)
            other = torch.stack([torch.rand_like(frame), frame], dim=2).flatten(1, 2)  # the center frame comes second
            assert torch.allclose(encoder(other), single(frame), atol=1e-5) == (kernel == "center")


def test_an_image_model_learns_through_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zeroed output gets a gradient in the first step; what comes before it, from the second."""
    timm_model("vit_base_patch16_224.mae", monkeypatch)
    encoder = import_encoder("timm:vit_base_patch16_224.mae", inflation=Inflation(frames=3)).encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        encoder(clip_of(3, 32)).pow(3).mean().backward()
        time = encoder.blocks[0].time
        moved.append([bool(layer.weight.grad.abs().max() > 0) for layer in (time.out, time.qkv)])
        optimizer.step()
    assert moved == [[True, False], [True, True]]


@pytest.mark.parametrize("attention", ["factorised", "joint"])
@pytest.mark.parametrize("name", ["vit_base_patch14_reg4_dinov2.lvd142m", DINOV3])
def test_an_image_model_may_become_a_joint_encoder(name: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a clip of one frame both are the image model."""
    model = timm_model(name, monkeypatch)
    inflation = Inflation(frames=1, attention=attention)  # type: ignore[arg-type]
    encoder = import_encoder(f"timm:{name}", inflation=inflation).encoder
    clip = clip_of(1, 32)
    with torch.no_grad():
        expected = model.forward_features(normalised(clip, IMAGENET_MEAN, IMAGENET_STD).flatten(0, 1))[:, None, 5:]
        torch.testing.assert_close(encoder(clip), expected, **CLOSE)


@pytest.mark.parametrize("pooled", [False, True])
def test_videomae_of_hugging_face(tmp_path: Path, pooled: bool) -> None:
    config = transformers.VideoMAEConfig(
        **SMALL, num_frames=4, use_mean_pooling=pooled, decoder_hidden_size=12, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=48,
    )  # fmt: skip
    kind = transformers.VideoMAEForVideoClassification if pooled else transformers.VideoMAEForPreTraining
    model = kind(config)
    imported = import_encoder(hugging_face(tmp_path, model))
    encoder = imported.encoder
    assert (encoder.config.positions, encoder.config.attention, encoder.config.tubelet) == ("sequence", "joint", 2)
    assert encoder.config.norm_eps == 1e-12
    clip = clip_of(4, 32)
    with torch.no_grad():
        expected = model.videomae(normalised(clip, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state
        ours = encoder.encode(encoder.embed(clip), norm=not pooled).flatten(1, 2)
        torch.testing.assert_close(ours / expected.std(), expected / expected.std(), **CLOSE)
    told = "\n".join(imported.notes)
    assert ("new, as the file has none: the final norm" in told) == pooled
    assert ("a classifier on top: classifier.bias, classifier.weight, fc_norm.bias and 1 more" in told) == pooled
    assert ("of another pre-training's predictions" in told) != pooled
    assert "zero, as the file has none: blocks.N.attn.k.bias (2 tensors)" in told


@pytest.mark.parametrize("kind", ["new", "4.x"])
def test_vitmae_of_hugging_face_under_both_kinds_of_names(tmp_path: Path, kind: str) -> None:
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **SMALL, mask_ratio=0.0,
            decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        )
    )  # fmt: skip
    source = hugging_face(tmp_path, model)
    if kind == "4.x":
        old = (
            (r"vit\.layers\.", "vit.encoder.layer."),
            (
                r"attention\.([qkv])_proj",
                lambda m: "attention.attention." + {"q": "query", "k": "key", "v": "value"}[m[1]],
            ),
            (r"attention\.o_proj", "attention.output.dense"),
            (r"mlp\.fc1", "intermediate.dense"),
            (r"mlp\.fc2", "output.dense"),
        )
        tensors = {}
        for name, tensor in model.state_dict().items():
            for pattern, words in old:
                name = renamed(name, ((pattern, words),)) if name.startswith("vit.") else name
            tensors[name] = tensor.contiguous()
        assert any("vit.encoder.layer.1.attention.attention.value.bias" in name for name in tensors)
        save_file(tensors, tmp_path / "model.safetensors")
    encoder = import_encoder(source, inflation=Inflation(frames=2)).encoder
    clip = clip_of(2, 32)
    with torch.no_grad():
        pixels = normalised(clip, IMAGENET_MEAN, IMAGENET_STD).flatten(0, 1)
        noise = torch.arange(4.0).expand(4, -1)  # keeps the order of patches
        expected = model.vit(pixels, noise=noise).last_hidden_state[:, 1:].unflatten(0, (2, 2))
        torch.testing.assert_close(encoder(clip), expected, **CLOSE)


@pytest.mark.parametrize("head_width", [12, 16])  # 3 · 4, and 3 · 4 with 4 channels that are not turned
def test_vjepa2_of_hugging_face(tmp_path: Path, head_width: int) -> None:
    model = transformers.VJEPA2Model(
        transformers.VJEPA2Config(
            hidden_size=2 * head_width, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=3.5, crop_size=48,
            frames_per_clip=6, pred_hidden_size=12, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        )
    )  # fmt: skip
    encoder = import_encoder(hugging_face(tmp_path, model)).encoder
    assert (encoder.config.positions, encoder.config.mlp_ratio, encoder.config.frames) == ("rotary", 3.5, 6)
    clip = clip_of(6, 48)
    with torch.no_grad():
        pixels = normalised(clip, IMAGENET_MEAN, IMAGENET_STD)
        expected = model(pixels, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(encoder(clip).flatten(1, 2), expected, **CLOSE)


def test_timesformer_of_hugging_face(tmp_path: Path) -> None:
    model = transformers.TimesformerForVideoClassification(transformers.TimesformerConfig(**SMALL, num_frames=3))
    encoder = import_encoder(hugging_face(tmp_path, model)).encoder
    assert (encoder.config.frames, encoder.config.prefix_per, encoder.config.prefix_tokens) == (3, "clip", 1)
    clip = clip_of(3, 32)
    with torch.no_grad():
        pixels = normalised(clip, 3 * [0.45], 3 * [0.225])
        expected = model.timesformer(pixels).last_hidden_state[:, 1:]  # patch after patch, each with its frames
        expected_BTND = expected.unflatten(1, (4, 3)).transpose(1, 2)
        torch.testing.assert_close(encoder(clip), expected_BTND, **CLOSE)


@pytest.mark.parametrize(
    ("make", "num_prefix"),
    [
        (lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL)), 1),
        (lambda: transformers.Dinov2Model(_without(transformers.Dinov2Config, "intermediate_size", patch_size=8)), 1),
        (
            lambda: transformers.Dinov2WithRegistersModel(
                _without(transformers.Dinov2WithRegistersConfig, "intermediate_size", patch_size=8)
            ),
            5,
        ),
        (lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL, patch_size=8)), 1),
        (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL, patch_size=8)), 0),
    ],
)
def test_image_models_of_hugging_face(tmp_path: Path, make: Callable[[], Any], num_prefix: int) -> None:
    model = make()
    pixels = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.25, 0.3]}
    encoder = import_encoder(hugging_face(tmp_path, model, pixels), inflation=Inflation(frames=2)).encoder
    clip = clip_of(2, 32)
    with torch.no_grad():
        frames = normalised(clip, *pixels.values()).flatten(0, 1)
        expected = model(frames).last_hidden_state
        if isinstance(model, transformers.CLIPVisionModel):  # its last norm is for the class token alone
            expected = model.post_layernorm(expected)
        expected = expected[:, num_prefix:].unflatten(0, (2, 2))
        torch.testing.assert_close(encoder(clip), expected, **CLOSE)


# DINOv3: queries and keys that turn by row and column.


def dinov3(**more: Any) -> Any:
    """A small DINOv3 of transformers; `scramble` it, or save it by `hugging_face`."""
    sizes = {**SMALL, "patch_size": 8, "num_register_tokens": 4, **more}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes))


@pytest.mark.parametrize("head_width", [12, 16])
@pytest.mark.parametrize("shape", [(32, 32), (24, 56)])
def test_dinov3_of_hugging_face(tmp_path: Path, head_width: int, shape: tuple[int, int]) -> None:
    """Frame by frame on its own grid and on another, on which it says nothing of interpolation."""
    model = dinov3(hidden_size=2 * head_width, key_bias=head_width == 16)
    imported = import_encoder(hugging_face(tmp_path, model), inflation=Inflation(frames=3))
    encoder = imported.encoder
    assert (encoder.config.positions, encoder.config.size, encoder.config.norm_eps) == ("rotary_space", 32, 1e-5)
    told = "\n".join(imported.notes)
    assert "predictions: embeddings.mask_token (1 tensors)" in told
    assert ("zero, as the file has none: blocks.N.attn.k.bias (2 tensors)" in told) == (head_width == 12)
    clip = torch.rand(2, 3, 3, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        frames = normalised(clip, IMAGENET_MEAN, IMAGENET_STD).flatten(0, 1)
        expected = model(frames).last_hidden_state[:, 5:].unflatten(0, (2, 3))
        torch.testing.assert_close(encoder(clip), expected, **CLOSE)
        tokens = encoder.embed(clip)
        one_place = torch.zeros(tokens.x_BTVD.shape[:3], dtype=torch.int64)
        unturned = encoder.encode(replace(tokens, patch_BTV=one_place))
        assert (unturned - expected).abs().max() > 1e-2  # or the comparison would say little


def test_visible_patches_of_dinov3_keep_their_places(tmp_path: Path) -> None:
    """Some patches, others in each frame, are as in its own layers with the other tokens taken out."""
    model = dinov3()
    encoder = import_encoder(hugging_face(tmp_path, model), inflation=Inflation(frames=3)).encoder
    clip = clip_of(3, 32)
    patch_BTV = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(1)).argsort(dim=2)[..., :6]
    with torch.no_grad():
        frames = normalised(clip, IMAGENET_MEAN, IMAGENET_STD).flatten(0, 1)
        patch_FV = patch_BTV.flatten(0, 1)
        token_FS = torch.cat([torch.arange(5).expand(6, -1), 5 + patch_FV], dim=1)
        x_FSD = model.embeddings(frames).gather(1, token_FS[..., None].expand(-1, -1, 24))
        turns = tuple(table[patch_FV][:, None] for table in model.rope_embeddings(frames))
        expected = model.norm(model.model(x_FSD, position_embeddings=turns).last_hidden_state)
        some_BTVD = encoder.features_of(clip, patch_BTV)
    torch.testing.assert_close(some_BTVD.flatten(0, 1), expected[:, 5:], **CLOSE)


def test_a_joint_encoder_of_dinov3_turns_every_frame_alike(tmp_path: Path) -> None:
    """Equal frames attend to each other as each to itself, so each is the picture; among other frames it is not."""
    model = dinov3()
    inflation = Inflation(frames=3, attention="joint")
    encoder = import_encoder(hugging_face(tmp_path, model), inflation=inflation).encoder
    clip = clip_of(1, 32).expand(-1, 3, -1, -1, -1)
    with torch.no_grad():
        expected = model(normalised(clip[:, 0], IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, None, 5:]
        torch.testing.assert_close(encoder(clip), expected.expand(-1, 3, -1, -1), **CLOSE)
        assert (encoder(clip_of(3, 32))[:, :1] - encoder(clip_of(3, 32)[:, :1])).abs().max() > 1e-3


def test_time_tells_frames_of_dinov3_apart_once_it_is_learned(tmp_path: Path) -> None:
    """And is interpolated for other frames; space is not for other sizes, and nothing says so."""
    source = hugging_face(tmp_path, dinov3())
    encoder = import_encoder(source, inflation=Inflation(frames=4)).encoder
    assert not encoder.positions.time_TD.any()
    encoder(clip_of(4, 32)).pow(3).mean().backward()
    assert encoder.positions.time_TD.grad.abs().max() > 0
    with torch.no_grad():
        encoder.positions.time_TD.copy_(torch.arange(4.0)[:, None].expand(-1, 24))
    wide = VideoEncoder(replace(encoder.config, frames=8, size=48))
    copy_encoder(encoder, wide, "it")
    expected = torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(wide.positions.time_TD[:, 0].detach(), expected)
    resized = import_encoder(source, inflation=Inflation(frames=4, size=48))
    assert resized.notes[-1] == "made for other clips: positions, now 4 frames of 48²"


def test_frames_alone_are_interpolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = import_encoder(hugging_face(tmp_path, dinov3()), inflation=Inflation(frames=2)).encoder
    with caplog.at_level("WARNING", logger="mam2"):
        encoder(clip_of(2, 40))
        copy_encoder(encoder, VideoEncoder(replace(encoder.config, size=40)), "it")
        assert not caplog.records
        encoder(clip_of(3, 32))
        copy_encoder(encoder, VideoEncoder(replace(encoder.config, frames=3)), "it")
    assert [record.message[:26] for record in caplog.records] == ["Positions are interpolated"] * 2


def test_dinov3_by_a_file_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With timm's name, alone, or in timm's folder, of which none needs the network, it is the same encoder."""
    model = timm_model(DINOV3, monkeypatch)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in model.state_dict().items()}, file)
    expected = import_encoder(f"timm:{DINOV3}", file=str(file), inflation=Inflation(size=64)).encoder
    assert expected.origin == Origin(source=f"timm:{DINOV3}", licence="dinov3-license")
    alone = import_encoder(str(file), num_heads=3, inflation=Inflation(size=64))
    assert "assumed: DINOv3's rotary positions, for pictures of 224²" in alone.notes
    config = {"architecture": DINOV3.split(".")[0], "pretrained_cfg": model.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = import_encoder(str(tmp_path), num_heads=3)
    assert (folder.encoder.config.size, folder.encoder.origin.licence) == (256, "dinov3-license")
    for encoder in (alone.encoder, import_encoder(str(tmp_path), num_heads=3, inflation=Inflation(size=64)).encoder):
        assert encoder.config == expected.config
        assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), expected.parameters(), strict=True))


def original_dinov3(model: Any) -> dict[str, Tensor]:
    """A DINOv3 of transformers as Meta's files have it: biases of keys, which a mask takes out, and rounded periods."""
    words = (
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^embeddings\.register_tokens", "storage_tokens"),
        (r"^embeddings\.", ""),
        (r"^model\.layer\.", "blocks."),
        (r"attention\.o_proj", "attn.proj"),
        (r"mlp\.up_proj", "mlp.fc1"),
        (r"mlp\.down_proj", "mlp.fc2"),
        (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    )
    found = dict(model.state_dict())
    for i in range(2):
        found[f"model.layer.{i}.attention.k_proj.bias"] = torch.ones(24)
    tensors = {
        renamed(name, words): tensor
        for name, tensor in fused(found, "attention.q_proj", "attention.k_proj", "attention.v_proj").items()
    }
    for i in range(2):
        tensors[f"blocks.{i}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(24)
    tensors["rope_embed.periods"] = (100 ** (torch.arange(3) / 3)).bfloat16()
    return tensors


def test_the_original_dinov3(tmp_path: Path) -> None:
    model = dinov3()
    expected = import_encoder(hugging_face(tmp_path, model)).encoder.state_dict()
    tensors = original_dinov3(model)
    assert {"storage_tokens", "mask_token", "blocks.1.attn.qkv.bias", "blocks.1.ls2.gamma"} <= set(tensors)
    source = save_original(tmp_path / "dinov3.pth", tensors)
    imported = import_encoder(source, num_heads=2, inflation=Inflation(size=32))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in imported.encoder.state_dict().items())
    with pytest.raises(UserError, match=r"rotary positions of other periods than DINOv3's for 3 heads.*--num-heads"):
        import_encoder(source, num_heads=3)
    tensors["rope_embed.periods"] = tensors["rope_embed.periods"] * 2
    with pytest.raises(UserError, match="Accepted: 3 of them, from 1 on towards 100"):
        import_encoder(save_original(tmp_path / "other.pth", tensors), num_heads=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}), r"holds blocks\.N\.attn\.q_norm\.weight"),
        (lambda t: t.update({"rope.freqs": torch.ones(8)}), r"holds rope\.freqs, which no known encoder has"),
        (lambda t: t.pop("blocks.1.gamma_2"), r"has no blocks\.1\.ls2\.gamma"),
        (lambda t: t.pop("blocks.1.attn.proj.bias"), r"has no blocks\.1\.attn\.proj\.bias"),
        (lambda t: t.pop("reg_token"), "has no table of positions, and is no DINOv3"),
        (lambda t: t.update({"reg_token": torch.ones(1, 8, 24)}), "has no table of positions, and is no DINOv3"),
        (lambda t: t.update({"blocks.0.mlp.fc1_g.weight": torch.ones(8)}), "has gated MLPs, SwiGLU .*ViT-S, -B and -L"),
    ],
)  # fmt: skip
def test_what_is_no_dinov3_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in timm_model(DINOV3, monkeypatch).state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    with pytest.raises(UserError, match=words):
        import_encoder(str(tmp_path / "changed.safetensors"), num_heads=3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_plus_patch16_dinov3.lvd1689m", r"has gated MLPs, SwiGLU \(blocks\.N\.mlp\.fc1_g\.weight"),
        ("vit_small_patch16_rope_224.naver_in1k", "is a Eva; accepted are its VisionTransformers, and DINOv3"),
        ("eva02_tiny_patch14_224.mim_in22k", "is a Eva; accepted are its VisionTransformers, and DINOv3"),
    ],
)
def test_other_evas_of_timm_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_encoder(f"timm:{name}")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"use_gated_mlp": True}, r"has gated MLPs, SwiGLU \(blocks\.N\.mlp\.gate_proj\.bias"),
        ({"rope_theta": 10_000.0}, r"has the rope_theta 10000\.0; accepted: 100"),
    ],
)
def test_other_dinov3s_of_hugging_face_are_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_encoder(hugging_face(tmp_path, dinov3(**more)))


def test_numbers_of_a_config_are_checked(tmp_path: Path) -> None:
    folder = Path(hugging_face(tmp_path, dinov3()).removeprefix("hf:"))
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"image_size": [32, 32]}))
    assert import_encoder(f"hf:{folder}").encoder.config.size == 32
    for name, value in (("image_size", [32, 64]), ("num_attention_heads", "two"), ("num_attention_heads", 0)):
        file.write_text(json.dumps(config | {name: value}))
        with pytest.raises(UserError, match=rf"config.json has the {name} .*; accepted: a whole number above 0"):
            import_encoder(str(folder))


def test_heads_that_have_no_pairs_for_rows_and_columns_are_refused() -> None:
    with pytest.raises(UserError, match="heads of a multiple of 4 channels; here width 24 with num_heads 4 gives 6"):
        EncoderConfig(width=24, num_heads=4, positions="rotary_space")


def _without(kind: Any, name: str, **more: Any) -> Any:
    return kind(**{key: value for key, value in SMALL.items() if key != name}, **more)


def test_timm_downloads_only_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_model(WITHOUT_CLASS, monkeypatch)
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_file(other, tmp_path / "w.safetensors")
    asked = []

    def download(name: str, wanted: list[str]) -> Path:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr("mam2.model.importers.recognise.download", download)
    encoder = import_encoder(f"timm:{WITHOUT_CLASS}", file=str(tmp_path / "w.safetensors")).encoder
    torch.testing.assert_close(encoder.norm.weight.data, model.norm.weight.data + 1)
    assert asked == []
    other["patch_embed.proj.weight"] = torch.ones(48, 3, 8, 8)
    save_file(other, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=f"timm:{WITHOUT_CLASS} has 24 numbers per token, the weights have 48"):
        import_encoder(f"timm:{WITHOUT_CLASS}", file=str(tmp_path / "wide.safetensors"))
    for source in (f"timm:{WITHOUT_CLASS}", "hf:MCG-NJU/videomae-base"):
        with pytest.raises(UserError, match=f"{source} is not in the cache .*no network.*put them in a folder"):
            import_encoder(source)
    assert asked == [f"timm/{WITHOUT_CLASS}", "MCG-NJU/videomae-base"]
    with pytest.raises(UserError, match="timm has no model vit_bas; similar ones"):
        import_encoder("timm:vit_bas")
    monkeypatch.undo()
    with pytest.raises(UserError, match="timm:resnet18 is a ResNet; accepted are its VisionTransformers"):
        import_encoder("timm:resnet18")


# Originals: the state dicts of the models above under their authors' names, in files of torch.save.


def original_videomae(model: Any) -> dict[str, Tensor]:
    """As MCG-NJU's pre-training saves it."""
    words = (
        (r"^videomae\.encoder\.layer\.", "encoder.blocks."),
        (r"^videomae\.embeddings\.patch_embeddings\.projection", "encoder.patch_embed.proj"),
        (r"^videomae\.layernorm", "encoder.norm"),
        (r"attention\.output\.dense", "attn.proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
    )
    apart = (
        (r"attention\.attention\.query\.bias", "attn.q_bias"),
        (r"attention\.attention\.value\.bias", "attn.v_bias"),
    )
    tensors = fused(model.state_dict(), *(f"attention.attention.{part}" for part in ("query", "key", "value")))
    return {renamed(name, (*words, *apart)): tensor for name, tensor in tensors.items()}


def fused(tensors: dict[str, Tensor], query: str, key: str, value: str) -> dict[str, Tensor]:
    """The same with weights of queries, keys and values as one, `attn.qkv`; biases too where all three are there."""
    made = dict(tensors)
    for name in tensors:
        for part in ("weight", "bias"):
            names = [name.replace(query, other) for other in (query, key, value)]
            if name.endswith(f"{query}.{part}") and all(n in tensors for n in names):
                made[name.replace(query, "attn.qkv")] = torch.cat([made.pop(n) for n in names])
    return made


def save_original(file: Path, found: dict[str, Any]) -> str:
    torch.save(found, file)
    return str(file)


def test_the_original_videomae(tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(
        **SMALL | {"image_size": 224}, num_frames=16, use_mean_pooling=False, layer_norm_eps=1e-6,
        decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
    )  # fmt: skip
    model = scramble(transformers.VideoMAEForPreTraining(config))
    tensors = original_videomae(model)
    assert {"encoder.blocks.1.attn.qkv.weight", "encoder.blocks.1.attn.q_bias"} <= set(tensors)
    source = save_original(tmp_path / "checkpoint.pth", {"model": tensors, "epoch": 3, "args": Path("x")})
    with pytest.raises(UserError, match=r"does not state its number of attention heads\. Give --num-heads"):
        import_encoder(source)
    imported = import_encoder(source, num_heads=2)
    assert "VideoMAE's fixed positions, for 16 frames of 224²" in "\n".join(imported.notes)
    transformed = hugging_face(tmp_path / "hf", model)
    expected = import_encoder(transformed).encoder.state_dict()
    # `hugging_face` scrambles with the same seed.
    assert all(torch.equal(tensor, expected[name]) for name, tensor in imported.encoder.state_dict().items())


def test_the_original_vjepa2(tmp_path: Path) -> None:
    model = transformers.VJEPA2Model(
        transformers.VJEPA2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, crop_size=32, frames_per_clip=4,
            pred_hidden_size=12, pred_num_attention_heads=2, pred_num_hidden_layers=1,
        )
    )  # fmt: skip
    expected = import_encoder(hugging_face(tmp_path / "hf", model)).encoder
    words = (
        (r"^encoder\.embeddings\.patch_embeddings\.proj", "module.backbone.patch_embed.proj"),
        (r"^encoder\.layer\.", "module.backbone.blocks."),
        (r"^encoder\.layernorm", "module.backbone.norm"),
        (r"attention\.proj", "attn.proj"),
    )
    tensors = {
        renamed(name, words): tensor
        for name, tensor in fused(model.state_dict(), "attention.query", "attention.key", "attention.value").items()
    }
    backbone = {name: tensor for name, tensor in tensors.items() if name.startswith("module.backbone.")}
    assert "module.backbone.blocks.1.attn.qkv.bias" in backbone
    online = {name: tensor + 1 for name, tensor in backbone.items()}
    found = {"encoder": online, "predictor": {"module.x": torch.zeros(1)}, "target_encoder": backbone, "epoch": 1}
    imported = import_encoder(save_original(tmp_path / "vitl.pt", found), num_heads=2)
    assert imported.encoder.config.positions == "rotary"
    clip = clip_of(4, 32)
    with torch.no_grad():
        assert torch.equal(imported.encoder(clip), expected(clip))  # the moving average, which is evaluated


def test_the_original_timesformer(tmp_path: Path) -> None:
    model = transformers.TimesformerForVideoClassification(transformers.TimesformerConfig(**SMALL, num_frames=3))
    expected = import_encoder(hugging_face(tmp_path / "hf", model)).encoder.state_dict()
    words = (
        (r"^classifier", "head"),
        (r"^timesformer\.encoder\.layer\.", "blocks."),
        (r"^timesformer\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^timesformer\.embeddings\.position_embeddings", "pos_embed"),
        (r"^timesformer\.embeddings\.time_embeddings", "time_embed"),
        (r"^timesformer\.embeddings\.", ""),
        (r"^timesformer\.layernorm", "norm"),
        (r"temporal_attention\.attention", "temporal_attn"),
        (r"temporal_attention\.output\.dense", "temporal_attn.proj"),
        (r"attention\.attention", "attn"),
        (r"attention\.output\.dense", "attn.proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"(?<!attention\.)output\.dense", "mlp.fc2"),
        (r"temporal_layernorm", "temporal_norm1"),
        (r"temporal_dense", "temporal_fc"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
    )
    tensors = {f"model.{renamed(name, words)}": tensor for name, tensor in model.state_dict().items()}
    assert {"model.blocks.1.temporal_attn.qkv.weight", "model.time_embed"} <= set(tensors)
    source = save_original(tmp_path / "TimeSformer.pyth", {"model_state": tensors, "cfg": "x"})
    imported = import_encoder(source, num_heads=2)
    assert "assumed: pixels of mean 0.45" in imported.notes[0]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in imported.encoder.state_dict().items())


def test_dinos_original_with_chunked_blocks_and_a_student_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vit_base_patch14_reg4_dinov2.lvd142m"
    model = timm_model(name, monkeypatch)
    expected = import_encoder(f"timm:{name}").encoder.state_dict()
    words = ((r"^blocks\.", "blocks.0."), (r"^reg_token", "register_tokens"), (r"^", "backbone."))
    tensors = {renamed(old, words): tensor for old, tensor in model.state_dict().items()}
    tensors["backbone.mask_token"] = torch.zeros(1, 24)
    tensors["backbone.pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.5), tensors["backbone.pos_embed"]], dim=1)
    found = {"student": {"x": torch.zeros(1)}, "teacher": tensors}
    encoder = import_encoder(save_original(tmp_path / "dino.pth", found), num_heads=3).encoder
    shift = torch.tensor([0.5, 0, 0, 0, 0])[:, None]  # its class token has a position
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected[name] + (shift if name == "prefix.value_PD" else 0))


# Strictness.


def siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Tensor]], Any]) -> str:
    """A file of weights of which `change` has changed something."""
    tensors = {name: tensor.clone() for name, tensor in timm_model(WITHOUT_CLASS, monkeypatch).state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "changed.safetensors")
    return str(tmp_path / "changed.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}), r"holds blocks\.N\.attn\.q_norm\.weight"),
        (lambda t: t.update({"rope.freqs": torch.ones(8)}), r"holds rope\.freqs, which no known encoder has"),
        (lambda t: t.pop("blocks.1.attn.proj.weight"), r"has no blocks\.1\.attn\.proj\.weight, which a plain ViT has"),
        (lambda t: t.pop("blocks.1.attn.proj.bias"), r"has no blocks\.1\.attn\.proj\.bias"),
        (lambda t: t.pop("blocks.0.mlp.fc1.bias"), r"has no blocks\.0\.mlp\.fc1\.bias"),
        (lambda t: t.pop("pos_embed"), "has no table of positions"),
        (lambda t: t.pop("patch_embed.proj.weight"), "holds no known encoder .* Known are plain ViTs"),
        (lambda t: t.update({"x.patch_embed.proj.weight": torch.ones(2)}), "holds 2 encoders"),
        (lambda t: t.update({"pos_embed": torch.ones(1, 15, 24)}), "has 15 positions, which are no square"),
        (lambda t: t["norm.weight"].fill_(math.nan), r"weights that are not finite: norm\.weight"),
        (lambda t: t.update({"patch_embed.proj.weight": torch.ones(24, 1, 8, 8)}), r"patch kernel of \(24, 1, 8, 8\)"),
        (lambda t: t.update({"blocks.0.mlp.fc2.bias": torch.ones(5)}), r"mlp\.2\.bias \(5,\) instead of \(24,\)"),
    ],
)  # fmt: skip
def test_what_is_unknown_missing_or_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        import_encoder(siglip(tmp_path, monkeypatch, change), num_heads=3)


# What comes after: files, other sizes, training.

ENCODERS = {
    "image": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=4, size=32, patch_size=8,
        prefix_tokens=3, pre_norm=True, norm_eps=1e-5, layer_scale=0.5, activation="quick_gelu", mlp_ratio=2.0,
    ),
    "timesformer": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=4, size=32, patch_size=8, prefix_tokens=1, prefix_per="clip"
    ),
    "registers, joint": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=4, size=32, patch_size=8, prefix_tokens=2, attention="joint"
    ),
    "rotary": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=8, size=32, patch_size=8,
        tubelet=2, attention="joint", positions="rotary",
    ),
    "rotary in space": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=4, size=32, patch_size=8, prefix_tokens=5, positions="rotary_space"
    ),
    "rotary in space, joint": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=8, size=32, patch_size=8, prefix_tokens=5,
        tubelet=2, attention="joint", positions="rotary_space",
    ),
    "full": EncoderConfig(
        width=24, depth=2, num_heads=2, frames=8, size=32, patch_size=8, tubelet=2, attention="joint", positions="full"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_patches_are_told_apart_by_their_places_not_by_their_order(kind: str) -> None:
    """Some patches in another order give the same features in that order; and which they are makes a difference."""
    config = ENCODERS[kind]
    encoder = VideoEncoder(config)
    scramble(encoder)
    clip = clip_of(config.frames, 32)
    patch_BTV = torch.tensor([3, 11, 0, 7]).expand(2, config.tubelets, -1)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        some = encoder.features_of(clip, patch_BTV)
        assert some.shape == (2, config.tubelets, 4, 24)
        torch.testing.assert_close(encoder.features_of(clip, patch_BTV[..., order]), some[:, :, order], **CLOSE)
        same = torch.full_like(clip, 0.5)
        if config.positions in ("rotary", "rotary_space"):  # which tell only how far apart patches are that differ
            moved = encoder.encode(replace(encoder.embed(clip).at(patch_BTV), patch_BTV=patch_BTV[..., order]))
        else:
            some = encoder.features_of(same, patch_BTV)
            moved = some[:, :, order]
    assert (some - moved).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("recipe", ["mam2_b_k400_rp", "videomae_b_k400", "vjepa_b_k400", "maskfeat_b_k400"])
def test_every_method_trains_every_encoder(kind: str, recipe: str) -> None:
    config = scaled(cast(Pretrain, get_recipe(recipe, Pretrain)), "tiny")
    encoder = ENCODERS[kind]
    if encoder.attention == "factorised" and config.encoder.attention == "joint":
        config = replace(config, mask=MaskConfig())
    config = replace(config, encoder=encoder)
    model = cast(Any, pretrain_build(config))
    targets = TargetMaker(
        config.targets, patch_size=8, tubelet=encoder.tubelet, device=torch.device("cpu"),
        appearance=config.objective.needs_appearance, motion=config.objective.needs_motion,
    )  # fmt: skip
    clip = clip_of(encoder.frames, 32)
    sample_B = torch.arange(2)
    mask = config.mask(encoder.tubelets, encoder.grid, sample_B=sample_B, seed=0)
    model(clip, mask, targets(clip, sample_B=sample_B, seed=0), 0).total.backward()
    # V-JEPA's predictor and others have positions of their own.
    without = {name for name, _ in model.encoder.named_parameters() if name.startswith("positions.")}
    got = {name for name, parameter in model.encoder.named_parameters() if parameter.grad is not None}
    assert got >= {name for name, _ in model.encoder.named_parameters()} - without
    assert got >= ({"prefix.value_PD"} if encoder.prefix_tokens else set())


@pytest.mark.parametrize("kind", ENCODERS)
def test_layer_decay_knows_every_part(kind: str) -> None:
    classifier = Classifier(VideoEncoder(ENCODERS[kind]), 3)
    for name, _ in classifier.named_parameters():
        layer = layer_id(name, 2)
        if name.startswith("encoder.blocks."):
            assert layer == 1 + int(name.split(".")[2])
        elif name.startswith("encoder.norm.") or not name.startswith("encoder."):
            assert layer == 3
        else:
            assert layer == 0, name
    optimizer = make_optimizer(classifier, Optim(layer_decay=0.5, weight_decay=0.1), depth=2, by_layer=True)
    group_of = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in classifier.named_parameters():
        if any(part in name for part in ("prefix", "positions")):
            assert (group_of[parameter]["weight_decay"], group_of[parameter]["lr_scale"]) == (0.0, 0.125)


@pytest.mark.parametrize("kind", ["separable", "full"])
def test_positions_come_back_from_other_frames_and_sizes(kind: str) -> None:
    """A table that is linear in frame, row and column is the same after a way there and back, but for its rim."""
    config = replace(ENCODERS["full"], positions=kind)  # type: ignore[arg-type]
    source = VideoEncoder(config)
    frame, row, column = torch.meshgrid(*(torch.arange(4.0) for _ in range(3)), indexing="ij")
    with torch.no_grad():
        if kind == "full":
            source.positions.table_TND.copy_((frame + 2 * row - column).flatten(1)[..., None].expand(-1, -1, 24))
        else:
            source.positions.time_TD.copy_(torch.arange(4.0)[:, None].expand(-1, 24))
            source.positions.space_ND.copy_((2 * row - column)[0].flatten()[:, None].expand(-1, 24))
    there = VideoEncoder(replace(config, frames=16, size=64))
    copy_encoder(source, there, "it")
    wide = there.positions(8, (8, 8))[..., 0].unflatten(1, (8, 8))
    centres = torch.arange(8) / 2 - 0.25  # of the finer grid, in places of the coarse one
    expected = centres[:, None, None] + 2 * centres[:, None] - centres
    torch.testing.assert_close(wide[2:-2, 2:-2, 2:-2], expected[2:-2, 2:-2, 2:-2], rtol=0, atol=0.3)
    back = VideoEncoder(config)
    copy_encoder(there, back, "it")
    clip = clip_of(8, 32)
    assert torch.isfinite(back(clip)).all()
    same = VideoEncoder(config)
    copy_encoder(source, same, "it")
    assert torch.equal(same.positions(4, (4, 4)), source.positions(4, (4, 4)))


def test_the_licence_travels_into_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vit_base_patch16_224.mae"
    timm_model(name, monkeypatch)
    origin = Origin(source=f"timm:{name}", licence="cc-by-nc-4.0")
    encoder = load_encoder(f"timm:{name}")
    assert encoder.origin == origin
    file = tmp_path / "encoder.safetensors"
    save_encoder(file, encoder)
    assert read_origin(file) == origin
    other = VideoEncoder(replace(encoder.config, frames=8))
    copy_encoder(load_encoder(file), other, "it")
    save_classifier(tmp_path / "classifier.safetensors", Classifier(other, 2), ("a", "b"))
    assert load_classifier(tmp_path)[0].encoder.origin == origin
    assert load_encoder(tmp_path).origin == origin
    assert read_encoder_config(f"timm:{name}") == encoder.config
    given = import_encoder(f"timm:{name}", licence="mine").encoder.origin
    assert given == Origin(source=f"timm:{name}", licence="mine")
    save_encoder(file, VideoEncoder(encoder.config))
    assert read_origin(file) is None


def test_a_model_card_tells_the_licence(tmp_path: Path) -> None:
    source = hugging_face(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    assert import_encoder(source).encoder.origin == Origin(source=str(tmp_path), licence="unknown; ask its authors")
    (tmp_path / "README.md").write_text("---\ntags:\n- vision\nlicense: cc-by-nc-4.0\n---\nlicense: none\n")
    assert load_encoder(tmp_path).origin == Origin(source=str(tmp_path), licence="cc-by-nc-4.0")
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: dinov3-license\nlicense_link: x\n---\n")
    assert load_encoder(tmp_path).origin == Origin(source=str(tmp_path), licence="dinov3-license")


def test_a_folder_of_timm_needs_no_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json tells statistics and licence; CLIP's epsilon follows from the architecture's name."""
    name = "vit_base_patch16_clip_quickgelu_224.openai"
    model = timm_model(name, monkeypatch)
    config = {"architecture": name.split(".")[0], "pretrained_cfg": model.pretrained_cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    expected = import_encoder(f"timm:{name}").encoder
    encoder = import_encoder(str(tmp_path), num_heads=3).encoder
    assert encoder.config == expected.config
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), expected.parameters(), strict=True))
    assert encoder.origin == Origin(source=str(tmp_path), licence="apache-2.0")


def test_weights_in_several_files(tmp_path: Path) -> None:
    model = scramble(transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "multilabel", max_shard_size="10KB")
    assert (tmp_path / "multilabel" / "model.safetensors.index.json").exists()
    one, several = (load_encoder(tmp_path / name) for name in ("one", "multilabel"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), several.parameters(), strict=True))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "vit_ma"}'), "Did you mean .*vit_mae"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds config.json but no weights"),
        (lambda folder: (folder / "config.json").unlink(), r"encoder\.safetensors does not exist"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, write: Callable[[Path], Any], words: str) -> None:
    hugging_face(tmp_path, transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    write(tmp_path)
    with pytest.raises(UserError, match=words):
        load_encoder(tmp_path)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    torch.save({"model": {"x": torch.zeros(1)}, "args": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="holds no known encoder"):
        load_encoder(tmp_path / "bomb.pth")
    assert not canary.exists()


def test_video_encoders_keep_their_tubelets(tmp_path: Path) -> None:
    source = hugging_face(tmp_path, transformers.VideoMAEModel(transformers.VideoMAEConfig(**SMALL, num_frames=4)))
    with pytest.raises(UserError, match="whose tubelets and attention are its own"):
        import_encoder(source, inflation=Inflation(tubelet=2))
    assert import_encoder(source, inflation=Inflation(frames=8, size=48)).encoder.config.frames == 8


@pytest.mark.parametrize("positions", ["separable", "rotary_space"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_an_encoder_of_single_frames_of_our_own_is_inflated(tmp_path: Path, prefix: int, positions: str) -> None:
    config = EncoderConfig(
        width=24, depth=2, num_heads=2, frames=1, size=32, patch_size=8, attention="joint", prefix_tokens=prefix,
        layer_scale=0.3, positions=positions,  # type: ignore[arg-type]
    )  # fmt: skip
    image = VideoEncoder(config)
    scramble(image)
    save_encoder(tmp_path / "encoder.safetensors", image)
    video = import_encoder(str(tmp_path), inflation=Inflation(frames=3)).encoder
    assert (video.config.attention, video.config.frames) == ("factorised", 3)
    clip = clip_of(3, 32)
    with torch.no_grad():
        expected = torch.cat([image(clip[:, t : t + 1]) for t in range(3)], dim=1)
        torch.testing.assert_close(video(clip), expected, **CLOSE)


def test_a_run_of_video_is_imported_for_other_clips(tmp_path: Path) -> None:
    config = ENCODERS["image"]
    save_encoder(tmp_path / "encoder.safetensors", VideoEncoder(config))
    imported = import_encoder(str(tmp_path), inflation=Inflation(frames=6, size=48))
    assert imported.encoder.config == replace(config, frames=6, size=48)
    assert imported.notes == ["interpolated: positions, now 6 frames of 48²"]
    same = import_encoder(str(tmp_path)).encoder.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in load_encoder(tmp_path).state_dict().items())


@pytest.mark.slow
def test_vit_b_at_full_size(tmp_path: Path) -> None:
    """VideoMAE-B of Hugging Face, SigLIP-B and DINOv3-B of timm, as they are published but for their numbers."""
    model = transformers.VideoMAEModel(transformers.VideoMAEConfig(use_mean_pooling=False)).eval()
    model.save_pretrained(tmp_path)
    clip = clip_of(16, 224)[:1]
    with torch.no_grad():
        expected = model(normalised(clip, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state
        torch.testing.assert_close(load_encoder(tmp_path)(clip).flatten(1, 2), expected, **CLOSE)
    image = timm.create_model(WITHOUT_CLASS, pretrained=False).eval()
    save_file(image.state_dict(), tmp_path / "siglip.safetensors")
    file = str(tmp_path / "siglip.safetensors")
    encoder = import_encoder(f"timm:{WITHOUT_CLASS}", file=file, inflation=Inflation(frames=2)).encoder
    with torch.no_grad():
        expected = image.forward_features(clip[0, :2] * 2 - 1)
        torch.testing.assert_close(encoder(clip[:, :2])[0], expected, **CLOSE)
    image = timm.create_model(DINOV3, pretrained=False, init_values=0.5).eval()
    save_file(image.state_dict(), tmp_path / "dinov3.safetensors")
    file = str(tmp_path / "dinov3.safetensors")
    encoder = import_encoder(f"timm:{DINOV3}", file=file, inflation=Inflation(frames=2)).encoder
    with torch.no_grad():
        expected = image.forward_features(normalised(clip[0, :2], IMAGENET_MEAN, IMAGENET_STD))
        torch.testing.assert_close(encoder(clip[:, :2])[0], expected[:, 5:], **CLOSE)
