"""Names of tensors in published checkpoints, brought to one vocabulary: timm's, which most originals share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mam2.config import UserError

KNOWN = (
    "plain ViTs of timm, Hugging Face or the original: ViT, MAE, DINO, DINOv2, DINOv3, CLIP, SigLIP, VideoMAE, "
    "V-JEPA 2, TimeSformer"
)
Renames = tuple[tuple[str, str], ...]

TIMM: Renames = (
    (r"^(?:register|storage)_tokens$", "reg_token"),  # DINOv2's and DINOv3's original
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's original, whose blocks lie in chunks
    (r"^ln_pre\.", "norm_pre."),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.attn\.([qv])_bias$", r".attn.\1.bias"),  # VideoMAE's original
)
HUGGING_FACE: Renames = (
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^embeddings\.patch_embeddings?(?:\.proj(?:ection)?)?\.", "patch_embed.proj."),
    (r"^embeddings\.(?:cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(?:\.weight)?$", "pos_embed"),
    (r"^embeddings\.time_embeddings$", "time_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(?:layernorm|post_layernorm)\.", "norm."),
    (r"\.(?:layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.temporal_layernorm\.", ".temporal_norm1."),
    (r"\.temporal_attention\.attention\.qkv\.", ".temporal_attn.qkv."),
    (r"\.temporal_attention\.output\.dense\.", ".temporal_attn.proj."),
    (r"\.temporal_dense\.", ".temporal_fc."),
    (r"\.attention\.attention\.qkv\.", ".attn.qkv."),
    (r"\.(?:attention\.attention|attention|self_attn)\.([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.attention\.attention\.([qv])_bias$", r".attn.\1.bias"),  # VideoMAE as the hub has it
    (r"\.(?:attention\.output\.dense|attention\.proj|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
ANCHORS: tuple[tuple[str, Renames], ...] = (
    ("patch_embed.proj.weight", TIMM),
    ("embeddings.patch_embeddings.projection.weight", HUGGING_FACE),
    ("embeddings.patch_embeddings.proj.weight", HUGGING_FACE),
    ("embeddings.patch_embedding.weight", HUGGING_FACE),
    ("embeddings.patch_embeddings.weight", HUGGING_FACE),  # DINOv3
)
"""The patch kernel's name in a family; what stands before it stands before the whole encoder."""

LEFT_OUT: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(decoder|predictor)[._]|encoder_to_decoder|(^|\.)mask_tokens?$", "of another pre-training's predictions"),
    (r"(^|\.)(attn_pool|pooler|head\.(probe|attention|layernorm|mlp))(\.|$)", "a pooling head"),
    (r"(^|\.)(head|head_dist|fc_norm|classifier)\.", "a classifier on top"),
    (r"(^|\.)(visual_projection|text_projection)\.|(^|\.)(text_model|text)\.|logit_(scale|bias)$", "for text"),
    (r"(^|\.)position_ids$", "an index, no weight"),
    (r"(^|\.)local_cls_norm\.", "of small crops in its pre-training"),
)


@dataclass(frozen=True)
class Named:
    """The tensors of a published encoder under timm's names.

    Attributes:
        tensors: tensors of the encoder itself.
        left_out: unused names, as the file has them, by the reason.
    """

    tensors: dict[str, Tensor]
    left_out: dict[str, list[str]]


def named(found: Mapping[str, Tensor], *, source: str) -> Named:
    """The encoder's tensors under timm's names; UserError unless there is one known encoder."""
    anchors = [(name, anchor, renames) for anchor, renames in ANCHORS for name in found if name.endswith(anchor)]
    if len(anchors) != 1:
        some = ", ".join(sorted(found)[:4]) or "nothing"
        what = "no known encoder" if not anchors else f"{len(anchors)} encoders"
        raise UserError(f"{source} holds {what} ({len(found)} tensors: {some}, ...). Known are {KNOWN}.")
    name, anchor, renames = anchors[0]
    before = name.removesuffix(anchor)
    tensors: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    for old, tensor in found.items():
        reason = next((why for pattern, why in LEFT_OUT if re.search(pattern, old.removeprefix(before))), "")
        if reason:
            left_out.setdefault(reason, []).append(old)
        elif not old.startswith(before):
            raise UserError(f"{source} holds {old}, of which nothing is known. Known are {KNOWN}.")
        elif (new := renamed(old.removeprefix(before), renames)) in tensors:
            raise UserError(f"{source} holds {new} twice, once as {old}. Give a file with one encoder.")
        else:
            tensors[new] = tensor
    return Named(tensors, left_out)


def refuse_gated(names: Iterable[str], *, source: str) -> None:
    """UserError for the names of gated MLPs."""
    gated = [name for name in names if re.search(r"\.mlp\.(fc1_[gx]|w\d+|gate_proj|weights_in)\.", name)]
    if gated:
        raise UserError(
            f"{source} has gated MLPs, SwiGLU ({listed(gated)}), which our encoder has not. Accepted: MLPs of two "
            "layers with GELU between them; of DINOv3, ViT-S, -B and -L have these, ViT-S+, -H+ and -7B have not."
        )


def renamed(name: str, renames: Renames) -> str:
    """A tensor's name in timm's words."""
    for pattern, words in renames:
        name = re.sub(pattern, words, name)
    return name


def listed(names: Iterable[str]) -> str:
    """Names in few words: numbers of blocks become N."""
    short = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in names)
    words = list(short)
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
