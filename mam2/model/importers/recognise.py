"""Recognition of published encoders: a name or file to its tensors and its facts."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mam2.config import UserError, did_you_mean
from mam2.files import first_line, parse_json, read_tensors
from mam2.inert import read_torch_file
from mam2.model.blocks import Activation
from mam2.model.encoder import Origin
from mam2.model.importers.facts import Facts, Triple
from mam2.model.importers.names import refuse_gated
from mam2.model.positions import SPACE_BASE, PositionKind
from mam2.patches import IMAGENET_MEAN, IMAGENET_STD

HALF: Triple = (0.5, 0.5, 0.5)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
KINETICS_MEAN: Triple = (0.45, 0.45, 0.45)
KINETICS_STD: Triple = (0.225, 0.225, 0.225)
UNKNOWN_LICENCE = "unknown; ask its authors"
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "open_clip_model.safetensors")
CONTAINERS = ("target_encoder", "encoder", "teacher", "model", "module", "state_dict", "model_state")
"""Names under which checkpoints keep an encoder. V-JEPA's evaluations take the moving average, "target_encoder"."""
MODEL_TYPES: dict[str, tuple[float, Triple, Triple, PositionKind]] = {
    # Hugging Face's: LayerNorm's epsilon and pixel statistics where its files don't tell; positions, where its files
    # have no table.
    "videomae": (1e-12, IMAGENET_MEAN, IMAGENET_STD, "sequence"),
    "vit_mae": (1e-12, IMAGENET_MEAN, IMAGENET_STD, "separable"),
    "vit": (1e-12, HALF, HALF, "separable"),
    "deit": (1e-12, IMAGENET_MEAN, IMAGENET_STD, "separable"),
    "dinov2": (1e-6, IMAGENET_MEAN, IMAGENET_STD, "separable"),
    "dinov2_with_registers": (1e-6, IMAGENET_MEAN, IMAGENET_STD, "separable"),
    "dinov3_vit": (1e-5, IMAGENET_MEAN, IMAGENET_STD, "rotary_space"),
    "clip_vision_model": (1e-5, CLIP_MEAN, CLIP_STD, "separable"),
    "siglip_vision_model": (1e-6, HALF, HALF, "separable"),
    "vjepa2": (1e-6, IMAGENET_MEAN, IMAGENET_STD, "rotary"),
    "timesformer": (1e-6, KINETICS_MEAN, KINETICS_STD, "separable"),
}


def find_published(source: str, *, file: str = "") -> tuple[dict[str, Tensor], Facts]:
    """The tensors of a published encoder under their own names, and the facts that they do not tell.

    Args:
        source: `timm:NAME`, `hf:NAME`, `hf:FOLDER`, or a folder or file on disk.
        file: for `timm:NAME`, a file of its weights; nothing is downloaded then.

    Raises:
        UserError: nothing there, nothing known, or no way to get it from here.
    """
    if source.startswith("timm:"):
        return from_timm(source.removeprefix("timm:"), file)
    if file:
        raise UserError(f"--file goes with a name of timm, such as timm:vit_base_patch16_224.mae, not with {source}.")
    if source.startswith("hf:") and not Path(source.removeprefix("hf:")).exists():
        return from_hub(source.removeprefix("hf:"))
    place = Path(source.removeprefix("hf:"))
    return from_folder(place) if place.is_dir() else from_file(place)


def from_timm(name: str, file: str) -> tuple[dict[str, Tensor], Facts]:
    """An encoder of timm by its name: timm knows its sizes and licence, and downloads it unless a file is given."""
    try:
        import timm
        from timm.layers import QuickGELU
        from timm.models import Eva, VisionTransformer
    except ImportError as error:
        raise UserError(
            f"timm:{name} needs timm, which knows the model's sizes: pip install 'mam2[timm]'. A file of its weights "
            "alone needs nothing: give its path."
        ) from error
    known = timm.list_models(pretrained=True) + timm.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none"
        raise UserError(f"timm has no model {name}; similar ones: {near}. `timm.list_models('vit_*')` lists all.")
    model: Any = timm.create_model(name, pretrained=False)
    rotary = isinstance(model, Eva) and turns_as_dinov3(model)
    if not isinstance(model, VisionTransformer) and not rotary:
        raise UserError(f"timm:{name} is a {type(model).__name__}; accepted are its VisionTransformers, and DINOv3.")
    refuse_gated(model.state_dict(), source=f"timm:{name}")
    settings: dict[str, Any] = model.pretrained_cfg
    block = model.blocks[0]
    act = block.mlp.act
    if not isinstance(act, nn.GELU | QuickGELU):
        raise UserError(f"timm:{name} has the activation {act}; accepted: GELU, QuickGELU.")
    activation: Activation = "quick_gelu" if isinstance(act, QuickGELU) else "gelu"
    if isinstance(act, nn.GELU) and act.approximate == "tanh":
        activation = "gelu_tanh"
    facts = Facts(
        width=model.embed_dim,
        num_heads=block.attn.num_heads,
        norm_eps=float(block.norm1.eps),
        activation=activation,
        mean=triple(settings["mean"]),
        std=triple(settings["std"]),
        size=model.patch_embed.img_size[0] if rotary else 224,
        positions="rotary_space" if rotary else "sequence",
        origin=Origin(source=f"timm:{name}", licence=settings.get("license") or UNKNOWN_LICENCE),
    )
    if file:
        return tensors_of(Path(file)), facts
    try:
        if hub_name := settings.get("hf_hub_id"):  # says at once whether the hub can be reached; timm tries for long
            download(hub_name, ["config.json"])
        return dict(timm.create_model(name, pretrained=True).state_dict()), facts
    except Exception as error:  # of the hub, the network, the file system
        raise unreachable(f"timm:{name}", f"mam2 import timm:{name} --file FILE --out OUT", error) from error


def turns_as_dinov3(model: Any) -> bool:
    """True for an Eva of timm with DINOv3's positions and blocks; its other ViTs with rotary positions differ."""
    from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
    from timm.models.eva import EvaBlock

    rope = model.rope
    return (
        isinstance(rope, RotaryEmbeddingDinoV3)
        and (rope.temperature, rope.min_period, rope.max_period) == (SPACE_BASE, None, None)
        and (rope.normalize_coords, rope.grid_offset, rope.grid_indexing) == ("separate", 0.0, "ij")
        and rope.rotate_half
        and all(isinstance(block, EvaBlock) for block in model.blocks)
    )


def from_hub(name: str) -> tuple[dict[str, Tensor], Facts]:
    """An encoder on Hugging Face's hub, downloaded into its cache."""
    try:
        folder = download(name, ["*.json", "README.md", "model*.safetensors", "pytorch_model.bin"])
    except ImportError as error:
        raise UserError(
            f"hf:{name} needs huggingface_hub: pip install 'mam2[hf]'. A folder on disk, hf:FOLDER, needs nothing. "
            f"There is no folder {name}."
        ) from error
    except Exception as error:  # of the hub, the network, the file system
        raise unreachable(f"hf:{name}", "mam2 import hf:FOLDER --out OUT", error) from error
    tensors, facts = from_folder(folder)
    return tensors, replace(facts, origin=replace(facts.origin, source=f"hf:{name}"))


def download(name: str, wanted: list[str]) -> Path:
    """The folder in the cache of Hugging Face's hub that holds these files of a model."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=wanted))


def unreachable(source: str, command: str, error: Exception) -> UserError:
    """The error where a download fails."""
    return UserError(
        f"{source} is not in the cache of Hugging Face's hub and can't be downloaded ({type(error).__name__}: "
        f"{first_line(error)[:160]}). Fetch its config.json and model.safetensors elsewhere, put them in a folder "
        f"here, and run: {command}"
    )


def from_folder(folder: Path) -> tuple[dict[str, Tensor], Facts]:
    """A folder as Hugging Face's libraries and timm write it: config.json and weights."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(
            f"{folder} holds no encoder: no encoder.safetensors of a run, no config.json of Hugging Face or timm. Give "
            "a run's folder, or a folder with config.json and model.safetensors."
        )
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"{folder} holds config.json but no weights; accepted: {', '.join(WEIGHT_FILES)}.")
    config = object_of(config_file)
    facts = (
        facts_of_timm(config, folder)
        if "pretrained_cfg" in config or "architecture" in config
        else facts_of_hugging_face(config, folder)
    )
    return tensors_of(weights), facts


def facts_of_timm(config: Mapping[str, Any], folder: Path) -> Facts:
    """Facts of timm's config.json."""
    settings = config.get("pretrained_cfg", config)
    architecture = str(config.get("architecture", ""))
    is_clip = "_clip_" in architecture
    is_dinov3 = "_dinov3" in architecture or architecture.endswith("_lingbot")
    return Facts(
        norm_eps=1e-5 if is_clip or is_dinov3 else 1e-6,
        activation="quick_gelu" if "quickgelu" in architecture else "gelu",
        mean=triple(settings.get("mean", IMAGENET_MEAN)),
        std=triple(settings.get("std", IMAGENET_STD)),
        size=int(settings.get("input_size", (3, 224, 224))[-1]),
        positions="rotary_space" if is_dinov3 else "sequence",
        origin=Origin(source=str(folder), licence=settings.get("license") or licence_of(folder)),
        assumed=() if "mean" in settings else ("pixels of ImageNet's mean and deviation",),
    )


def facts_of_hugging_face(config: Mapping[str, Any], folder: Path) -> Facts:
    """Facts of config.json and preprocessor_config.json."""
    model_type = str(config.get("model_type", ""))
    if isinstance(config.get("vision_config"), Mapping):  # CLIP's and SigLIP's whole models
        model_type = f"{model_type}_vision_model"
        config = config["vision_config"]
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{folder}/config.json has the model_type {model_type!r}. {did_you_mean(model_type, MODEL_TYPES)}"
        )
    if (kind := config.get("attention_type", "divided_space_time")) != "divided_space_time":
        raise UserError(f"{folder} has the attention_type {kind!r}; accepted: 'divided_space_time'.")
    if (base := config.get("rope_theta", SPACE_BASE)) != SPACE_BASE and model_type == "dinov3_vit":
        raise UserError(f"{folder}/config.json has the rope_theta {base}; accepted: {SPACE_BASE:g}.")
    eps, mean, std, positions = MODEL_TYPES[model_type]
    act = str(config.get("hidden_act", "quick_gelu" if model_type == "clip_vision_model" else "gelu"))
    act = "gelu_pytorch_tanh" if model_type == "siglip_vision_model" and "hidden_act" not in config else act
    if act not in ACTIVATIONS:
        raise UserError(f"{folder}/config.json has the activation {act!r}; accepted: {', '.join(ACTIVATIONS)}.")
    pixels: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (folder / name).is_file():
            pixels |= object_of(folder / name)
    return Facts(
        num_heads=whole_number(config, "num_attention_heads", 16 if model_type == "vjepa2" else 12, folder),
        norm_eps=float(config.get("layer_norm_eps", eps)),
        activation=ACTIVATIONS[act],
        mean=triple(pixels.get("image_mean", mean)),
        std=triple(pixels.get("image_std", std)),
        frames=whole_number(config, "num_frames" if "num_frames" in config else "frames_per_clip", 16, folder),
        assumed=() if pixels else (f"pixels of mean {mean} and deviation {std}; there is no preprocessor_config.json",),
        size=whole_number(config, *(("crop_size", 256) if model_type == "vjepa2" else ("image_size", 224)), folder),
        positions=positions,
        origin=Origin(source=str(folder), licence=licence_of(folder)),
    )


def whole_number(config: Mapping[str, Any], name: str, default: int, folder: Path) -> int:
    """A field of config.json; of two equal numbers, the height and width of a square, one."""
    value = config.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{folder}/config.json has the {name} {value!r}; accepted: a whole number above 0.")
    return value


def from_file(file: Path) -> tuple[dict[str, Tensor], Facts]:
    """The tensors of a file of weights alone, and the facts that they show."""
    tensors = tensors_of(file)
    return tensors, facts_of_tensors(tensors, Origin(source=str(file), licence=UNKNOWN_LICENCE))


def facts_of_tensors(tensors: Mapping[str, Tensor], origin: Origin) -> Facts:
    """Facts that names and shapes of tensors show; all others are assumed, with a note."""
    imagenet = "pixels of ImageNet's mean and deviation"
    if any(".temporal_" in name for name in tensors):
        note = f"pixels of mean {KINETICS_MEAN[0]} and deviation {KINETICS_STD[0]}"
        return Facts(origin=origin, mean=KINETICS_MEAN, std=KINETICS_STD, assumed=(note,))
    kernel = next((tensor for name, tensor in tensors.items() if re.search(r"patch_embed.*weight$", name)), None)
    if kernel is not None and kernel.ndim == 5:
        if any(name.endswith("pos_embed") for name in tensors):
            return Facts(origin=origin, assumed=(imagenet,))
        if any(name.endswith(("attn.q_bias", "query.bias")) for name in tensors):
            return Facts(origin=origin, assumed=("VideoMAE's fixed positions, for 16 frames of 224²", imagenet))
        note = "V-JEPA 2's rotary positions, for 16 frames of 256²"
        return Facts(origin=origin, positions="rotary", size=256, assumed=(note, imagenet))
    if is_dinov3(tensors):
        note = "DINOv3's rotary positions, for pictures of 224²"
        return Facts(origin=origin, norm_eps=1e-5, positions="rotary_space", assumed=(note, imagenet))
    if any(".norm_pre." in f".{name}" for name in tensors):
        notes = ("CLIP's pixel statistics", "GELU, not QuickGELU")
        return Facts(origin=origin, norm_eps=1e-5, mean=CLIP_MEAN, std=CLIP_STD, assumed=notes)
    return Facts(origin=origin, assumed=(imagenet,))


def is_dinov3(tensors: Mapping[str, Tensor]) -> bool:
    """True for a DINOv3's tensors: a class token, four registers, and no table of positions."""
    registers = [x for name, x in tensors.items() if re.search(r"(^|\.)(reg_token|(register|storage)_tokens)$", name)]
    has_table = any(re.search(r"(pos_embed|position_embeddings?(\.weight)?)$", name) for name in tensors)
    has_class = any(name.endswith("cls_token") for name in tensors)
    return has_class and not has_table and any(x.shape[-2:-1] == (4,) for x in registers)


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file: safetensors, in one file or several, or torch.save's, of which nothing is run;
    UserError for a missing file, one of another kind, or one without tensors."""
    if file.name.endswith(".index.json"):
        parts = sorted(set(object_of(file).get("weight_map", {}).values()))
        return {name: tensor for part in parts for name, tensor in read_tensors(file.parent / str(part))[0].items()}
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    found = state_of(read_torch_file(file))
    if not found:
        raise UserError(
            f"{file} holds no tensors by name, nor under one of {', '.join(CONTAINERS)}. Give a state dict."
        )
    return found


def state_of(found: object) -> dict[str, Tensor]:
    """The state dict in an object of torch.save; empty without one."""
    if not isinstance(found, dict):
        return {}
    for name in CONTAINERS:
        if isinstance(found.get(name), dict) and (inner := state_of(found[name])):
            return inner
    return {name: part for name, part in found.items() if isinstance(name, str) and isinstance(part, Tensor)}


def triple(found: Any) -> Triple:
    """Three numbers for red, green and blue; a single one counts for all."""
    numbers = [float(x) for x in (found if isinstance(found, list | tuple) else [found])]
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(0 <= x <= 10 for x in numbers):
        raise UserError(f"Pixel statistics are {found}; accepted: three numbers for pixels in [0, 1].")
    return numbers[0], numbers[1], numbers[2]


def licence_of(folder: Path) -> str:
    """The licence that a model card, README.md, states at its top."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\n.*?^---$", text, re.DOTALL | re.MULTILINE)
    stated = dict(re.findall(r"^(license(?:_name)?): *([^\n]+)$", head[0] if head else "", re.MULTILINE))
    licence = stated.get("license", UNKNOWN_LICENCE).strip()
    return stated.get("license_name", licence).strip() if licence == "other" else licence


def object_of(file: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError for anything else."""
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is no JSON ({first_line(error)}). Download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object. Download it again.")
    return found
