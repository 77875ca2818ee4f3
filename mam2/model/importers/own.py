"""Encoders of single frames that this project trained, under timm's names: they are inflated like any image model."""

from __future__ import annotations

from torch import Tensor

from mam2.model.encoder import EncoderConfig, Origin, VideoEncoder
from mam2.model.importers.facts import Facts
from mam2.model.importers.names import Renames, renamed
from mam2.model.importers.tensors import paired

OURS: Renames = (
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^prefix\.value_PD$", "reg_token"),
    (r"^positions\.space_ND$", "pos_embed"),
    (r"\.norm_joint\.", ".norm1."),
    (r"\.norm_mlp\.", ".norm2."),
    (r"\.joint\.qkv\.", ".attn.qkv."),
    (r"\.joint\.out\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"\.add_joint\.scale_D$", ".ls1.gamma"),
    (r"\.add_mlp\.scale_D$", ".ls2.gamma"),
)


def is_of_images(config: EncoderConfig) -> bool:
    """True for an encoder of single frames of a kind that can be inflated."""
    return config.frames == 1 and config.attention == "joint" and config.positions in ("separable", "rotary_space")


def as_timm(encoder: VideoEncoder, source: str) -> tuple[dict[str, Tensor], Facts]:
    """The tensors of an encoder of single frames under timm's names, and its facts."""
    tensors = dict(encoder.state_dict())
    config = encoder.config
    time_1D = tensors.pop("positions.time_TD")
    if config.positions == "separable":
        tensors["positions.space_ND"] = tensors["positions.space_ND"] + time_1D
    else:  # what is added to every patch is a bias
        tensors["patch_embed.bias"] = tensors["patch_embed.bias"] + time_1D[0]
        for name in (f"blocks.{i}.joint.qkv" for i in range(config.depth)):
            layer = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = paired(layer, config.num_heads, back=True)
    facts = Facts(
        num_heads=config.num_heads,
        norm_eps=config.norm_eps,
        activation=config.activation,
        size=config.size,
        positions=config.positions,
        origin=encoder.origin or Origin(source=source, licence="your own"),
    )
    return {renamed(name, OURS): tensor for name, tensor in tensors.items()}, facts
