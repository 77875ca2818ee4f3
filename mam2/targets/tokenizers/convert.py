"""Converts the official tokenizers to safetensors, running nothing of what their files hold.

Accepted are the Lightning checkpoints of the two VQGANs (taming-transformers), and DALL-E's dVAE, whose encoder and
decoder are two files, each a pickled module. `mam2.inert` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from mam2.config import UserError
from mam2.files import check_tensors, shapes_on_meta
from mam2.inert import Inert, read_torch_file
from mam2.targets.tokenizers.codes import save_tokenizer
from mam2.targets.tokenizers.dalle import DALLE, DALLEConfig
from mam2.targets.tokenizers.vqgan import VQGAN, Quantizer, VQGANConfig, gumbel_f8

MAX_DEPTH = 32  # of modules within modules; the official ones have 5 levels
KEPT = ("encoder.", "quant_conv.", "quantize.", "decoder.", "post_quant_conv.")
ACCEPTED = (
    "Accepted: last.ckpt of 'VQGAN ImageNet (f=16), 16384' or of 'VQGAN OpenImages (f=8), 8192, "
    "GumbelQuantization' (taming-transformers), or DALL-E's encoder.pkl."
)


def convert_checkpoint(
    source: Path | str,
    out: Path | str,
    *,
    decoder: Path | str | None = None,
    config: VQGANConfig | DALLEConfig | None = None,
) -> dict[str, str | int | bool]:
    """Writes an official tokenizer as safetensors, for `load_vqgan` or `load_dalle`.

    Args:
        source: a VQGAN's last.ckpt, or DALL-E's encoder.pkl. The names of its tensors say which.
        out: the file to write; it appears whole or not at all.
        decoder: DALL-E's decoder.pkl, which is published apart; only pictures need it.
        config: sizes that are not those of the official model.

    Returns:
        `file`, `kind` ("vqgan_16384", "vqgan_8192" or "dalle", as `--targets.appearance` names them), `num_tensors`,
        `num_parameters`, `has_decoder`, `num_dropped` (tensors that only training needs).

    Raises:
        UserError: no such file, a file of another kind, another tokenizer, or tensors that do not fit.
    """
    source = Path(source)
    found = read_tensors_of(source)
    kind = find_kind(found, source)
    num_dropped = 0
    if kind == "dalle":
        if config is not None and not isinstance(config, DALLEConfig):
            raise UserError(f"{source} is a DALL-E dVAE, but the sizes given are those of a VQGAN.")
        config = config or DALLEConfig()
        tensors = dalle_half("encoder", found, source, config)
        if decoder is not None:
            tensors |= dalle_half("decoder", read_tensors_of(Path(decoder)), Path(decoder), config)
        save_tokenizer(tensors, out, config=config)
    else:
        if decoder is not None:
            raise UserError(f"{source} is a VQGAN, which has its decoder in the same file. Leave {decoder} out.")
        sizes = vqgan_sizes("gumbel" if kind == "vqgan_8192" else "nearest", config, source)
        kept = {name: tensor for name, tensor in found.items() if name.startswith(KEPT)}
        num_dropped = len(found) - len(kept)
        with_decoder = any(name.startswith(("decoder.", "post_quant_conv.")) for name in kept)
        tensors = checked(kept, shapes_on_meta(lambda: VQGAN(sizes, with_decoder)), source)
        save_tokenizer(tensors, out, config=sizes)
    return {
        "file": str(out),
        "kind": kind,
        "num_tensors": len(tensors),
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "has_decoder": any(name.startswith("decoder.") for name in tensors),
        "num_dropped": num_dropped,
    }


def read_tensors_of(source: Path) -> dict[str, Tensor]:
    """The named tensors of a state dict, of a Lightning checkpoint, or of a pickled module."""
    state = read_torch_file(source)
    if isinstance(state, Inert):
        return module_tensors(state)
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict):
        raise UserError(f"{source} holds {type(state).__name__[:80]!r}, neither a state dict nor a module. {ACCEPTED}")
    return {name: part for name, part in state.items() if isinstance(name, str) and isinstance(part, Tensor)}


def module_tensors(module: Inert) -> dict[str, Tensor]:
    """The parameters and buffers of a pickled torch module that came out inert, under their dotted names.

    UserError for modules within themselves or very deep, as only a hostile file has them.
    """
    tensors = dict[str, Tensor]()
    seen = set[int]()

    def walk(module: Inert, prefix: str, depth: int) -> None:
        if id(module) in seen or depth > MAX_DEPTH:
            raise UserError(f"The module {prefix[:80]!r} is there twice, or lies too deep. Download the file again.")
        seen.add(id(module))
        for group in ("_parameters", "_buffers"):
            found = members(module, group)
            tensors.update({f"{prefix}{name}": part for name, part in found.items() if isinstance(part, Tensor)})
        for name, child in members(module, "_modules").items():
            if isinstance(child, Inert):
                walk(child, f"{prefix}{name}.", depth + 1)

    walk(module, "", 0)
    return tensors


def members(module: Inert, group: str) -> dict[str, object]:
    """One of the dictionaries in which a torch module keeps its parts."""
    found = module.state.get(group) if isinstance(module.state, dict) else None
    return {name: part for name, part in found.items() if isinstance(name, str)} if isinstance(found, dict) else {}


def find_kind(found: Mapping[str, Tensor], source: Path) -> Literal["vqgan_16384", "vqgan_8192", "dalle"]:
    """The tokenizer that the names belong to, whatever its sizes."""
    if "blocks.input.w" in found:
        return "dalle"
    if "quantize.embed.weight" in found or "quantize.proj.weight" in found:
        return "vqgan_8192"
    if "quantize.embedding.weight" in found:
        return "vqgan_16384"
    names = f"{len(found)} tensors, such as {', '.join(map(repr, list(found)[:3]))}" if found else "no tensors"
    raise UserError(f"{source} holds {names}: none of the official tokenizers. {ACCEPTED}")


def vqgan_sizes(quantizer: Quantizer, config: VQGANConfig | DALLEConfig | None, source: Path) -> VQGANConfig:
    """The official sizes, unless others are given."""
    if config is None:
        return gumbel_f8() if quantizer == "gumbel" else VQGANConfig()
    if isinstance(config, VQGANConfig) and config.quantizer == quantizer:
        return config
    raise UserError(f"{source} is a VQGAN with the quantizer {quantizer!r}, but the sizes given are {config}.")


def dalle_half(
    side: Literal["encoder", "decoder"], found: Mapping[str, Tensor], source: Path, config: DALLEConfig
) -> dict[str, Tensor]:
    """The tensors of encoder.pkl or decoder.pkl, under `encoder.` or `decoder.`; both files use the same names."""
    if find_kind(found, source) != "dalle":
        raise UserError(f"{source} is a VQGAN, not DALL-E's {side}. Name the downloaded {side}.pkl.")
    kernel = tuple(found["blocks.input.w"].shape)[2:]
    if kernel == ((1, 1) if side == "encoder" else (7, 7)):
        other = "decoder" if side == "encoder" else "encoder"
        raise UserError(
            f"{source} is DALL-E's {other}, not its {side}. "
            "Run `mam2 tokenizer convert encoder.pkl --decoder decoder.pkl --out dalle.safetensors`."
        )
    shapes = shapes_on_meta(lambda: DALLE(config))
    expected = {name: shape for name, shape in shapes.items() if name.startswith(f"{side}.")}
    return checked({f"{side}.{name}": tensor for name, tensor in found.items()}, expected, source)


def checked(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: Path) -> dict[str, Tensor]:
    """The tensors in fp32, once their names, shapes and types are known to be right."""
    check_tensors(tensors, expected, where=f"{source} is no official checkpoint of this tokenizer")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{source}: {name} is {tensor.dtype}, not floating point. Download it again.")
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}
