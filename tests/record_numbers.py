"""Records what training computes, to show that a change to the code changes no number.

    python tests/record_numbers.py before.json
    python tests/record_numbers.py after.json --compare before.json

Runs 12 seeded steps in fp32 on the CPU for the tiny recipe, every row of Tables 1 and 2 and the variants of the
encoder and the mask, then a fine-tuning with Table 8's augmentation, an evaluation and the three probes. Each result
holds the losses of every step and a digest of all weights, whatever the tensors are called. Files from different
machines differ in the last bits; compare two of the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file
from torchvision.models.optical_flow import raft_small

from mam2.__main__ import main as mam2
from mam2.data.synthetic import MOTIONS, render
from mam2.recipes import RECIPES
from mam2.targets.tokenizers.codes import save_tokenizer
from mam2.targets.tokenizers.dalle import DALLE, DALLEConfig
from mam2.targets.tokenizers.vqgan import VQGAN, VQGANConfig

TIMINGS = {"data_seconds", "clips_per_second", "memory_gib"}
LOOP = ["--loop.precision", "fp32", "--loop.compile", "off", "--loop.log-every", "1", "--loop.duration", "12 steps"]
LOOP += ["--loop.save-every", "12 steps", "--loop.batch-size", "4", "--data.num-workers", "0"]
ENCODER = ["--encoder.width", "32", "--encoder.depth", "2", "--encoder.num-heads", "2"]
ENCODER += ["--encoder.frames", "4", "--encoder.size", "64", "--encoder.patch-size", "16"]
OBJECTIVE = ["--objective.width", "32", "--objective.num-heads", "2"]
RANDOM_CODES = ["--targets.appearance", "random_projection", "--targets.num-codes", "64"]
SMALL = [*ENCODER, *OBJECTIVE, *RANDOM_CODES]
VARIANTS = {  # what no row of the paper's tables has
    "joint, random": ["--encoder.attention", "joint", "--mask.kind", "random"],
    "tubelets": ["--encoder.frames", "8", "--encoder.tubelet", "2"],
    "predicted, aligned": ["--mask.predicted", "0.5", "--mask.aligned", "0.5"],
    "pixels": ["--targets.appearance", "pixels", "--targets.motion-scale", "patch"],
    "concat, sum": [
        "--objective.context",
        "concat",
        "--objective.motion-reduction",
        "sum",
        "--objective.alignment-reduction",
        "sum",
    ],
    "teacher": ["--objective.teacher-momentum", "0.9", "--objective.alignment-target", "batch"],
    "ramp, clip": ["--objective.alignment-ramp", "6 steps", "--targets.motion-scale", "clip"],
    "layer scale": ["--encoder.layer-scale", "0.1", "--objective.alignment-target", "layer_norm"],
    "accumulate, recompute": ["--loop.accumulate", "2", "--loop.recompute"],
    "coupled, tubelets": ["--objective.decoders", "coupled", "--encoder.frames", "8", "--encoder.tubelet", "2"],
    "no regressor, predicted": ["--objective.regressor-depth", "0", "--mask.predicted", "0.5"],
}


def write_tokenizers(folder: Path) -> dict[str, list[str]]:
    """Random networks in the official formats: the options that name them, by target."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"ch": 32, "num_res_blocks": 1, "z_channels": 32, "embed_dim": 32, "num_codes": 64}
    nearest = VQGANConfig(ch_mult=(1, 1, 1, 1, 1), **sizes)
    gumbel = VQGANConfig(ch_mult=(1, 1, 1, 1), quantizer="gumbel", **sizes)
    dalle = DALLEConfig(width=8, num_blocks=1, decoder_width=8, num_codes=64)
    save_tokenizer(VQGAN(nearest).state_dict(), folder / "vqgan_16384.safetensors", config=nearest)
    save_tokenizer(VQGAN(gumbel).state_dict(), folder / "vqgan_8192.safetensors", config=gumbel)
    save_tokenizer(DALLE(dalle).state_dict(), folder / "dalle.safetensors", config=dalle)
    torch.save(raft_small(weights=None).state_dict(), folder / "raft_small.pth")
    names = ("vqgan_16384", "vqgan_8192", "dalle")
    options = {name: ["--targets.file", str(folder / f"{name}.safetensors")] for name in names}
    flow = ["--targets.flow-model", "raft_small", "--targets.flow-file", str(folder / "raft_small.pth")]
    return options | {"optical_flow": flow}


def write_videos(folder: Path) -> None:
    """Two rendered videos per class, without loss: x264 does not write the same pixels every time."""
    for number, motion in enumerate(MOTIONS):
        (folder / motion).mkdir(parents=True)
        for i in range(2):
            with av.open(str(folder / motion / f"{i}.mkv"), "w") as container:
                stream = container.add_stream("ffv1", rate=10)
                stream.height = stream.width = 64
                stream.pix_fmt = "yuv420p"
                clip_TCHW = render(motion, seed=2 * number + i, num_frames=20, size=64)
                for frame_HWC in clip_TCHW.permute(0, 2, 3, 1).contiguous().numpy():
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
                container.mux(stream.encode())


def pretrainings(tokenizers: dict[str, list[str]]) -> dict[str, list[str]]:
    """Each pre-training's recipe and options."""
    runs = {"mam2_tiny": ["mam2_tiny", "--loop.duration", "12 steps"]}
    for name in (name for name in RECIPES if name.startswith("ablation")):
        width = ["--objective.width", "24", "--objective.num-heads", "2"] if "width" in name else OBJECTIVE
        config: Any = RECIPES[name].make()
        files = tokenizers.get(config.targets.appearance, []) if config.objective.needs_appearance else []
        runs[name] = [name, *ENCODER, *width, *files, *tokenizers.get(config.targets.motion, [])]
    return runs | {name: ["mam2_b_k400_rp", *SMALL, *options] for name, options in VARIANTS.items()}


def run(*words: object) -> None:
    """One command line, in this process."""
    sys.argv = ["mam2", *map(str, words)]
    mam2()


def training(folder: Path) -> dict[str, Any]:
    """The logged values of every step, and the digest of the last weights."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    values = [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]
    tensors = load_file(sorted((folder / "checkpoints").iterdir())[-1] / "model.safetensors")
    return {"steps": values, "weights": digest(tensor.numpy() for tensor in tensors.values())}


def digest(arrays: Any) -> str:
    """A hash of values, whatever their names and order."""
    single = sorted(hashlib.sha256(array.tobytes() + repr(array.shape).encode()).hexdigest() for array in arrays)
    return hashlib.sha256("".join(single).encode()).hexdigest()[:16]


def record(folder: Path, only: str) -> dict[str, Any]:
    """All results by name."""
    videos, results = folder / "videos", dict[str, Any]()
    write_videos(videos)
    for name, words in pretrainings(write_tokenizers(folder)).items():
        if only in name:
            run("pretrain", *words[:1], "--data.root", videos, "--out", folder / name, *LOOP, *words[1:])
            results[name] = training(folder / name)
    if only in "downstream":
        base, tuned = folder / "base", folder / "tuned"
        run("pretrain", "mam2_b_k400_rp", "--data.root", videos, "--out", base, *LOOP, *SMALL)
        labelled = ["--data.root", videos, "--clips", "2", "--crops", "3"]
        run("finetune", "finetune_b_ucf101", "--init", base, *labelled, "--out", tuned, *LOOP, *ENCODER)
        results["finetune"] = training(tuned)
        run("evaluate", tuned, "--data.root", videos)
        results["evaluate"] = json.loads((tuned / "evaluate.json").read_text())
        with np.load(tuned / "predictions.npz") as predictions:
            results["evaluate"]["probability"] = digest([predictions["probability"]])
        for kind in ("linear", "attentive", "knn"):
            words = ["--train", videos, "--test", videos, "--kind", kind, "--precision", "fp32", "--epochs", "5"]
            run("probe", base, *words, "--num-workers", "0", "--trials", "2")
            report = json.loads((base / "probe" / f"probe_{kind}.json").read_text())
            kept = ("top1", "top5", "chosen", "sweep", "baseline", "per_class", "confusion")
            results[f"probe, {kind}"] = {name: report[name] for name in kept}
    return results


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """Where two results differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = list(dict.fromkeys([*wanted, *found]))
        return [d for n in names for d in differences(found.get(n), wanted.get(n), f"{where}/{n}")]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = zip(found, wanted, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{where}[{i}]")]
    return [] if found == wanted else [f"{where}: {found!r}, was {wanted!r}"]


def main() -> None:
    """The command line; exit status 1 where a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", default="", help="record the runs whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = record(Path(folder), options.only)
    options.out.write_text(json.dumps(results, indent=1))
    if options.compare:
        before = json.loads(options.compare.read_text())
        found = [d for name, result in results.items() for d in differences(result, before.get(name), name)]
        print("\n".join(found[:40]) or f"{len(results)} results, all equal.")
        sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
