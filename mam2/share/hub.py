"""Models on the Hugging Face hub: weights, configuration, model card and code for AutoModel, and their upload."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mam2.config import UserError, to_json
from mam2.files import read_object, write_text
from mam2.model.encoder import EncoderConfig, Origin
from mam2.model.weight_file import CLASSIFIER_FILE, ENCODER_FILE, HUB, check_name
from mam2.model.weights import save_encoder
from mam2.pictures.report import read_log
from mam2.share.auto_model import CODE, CODE_FILE
from mam2.train.run import read_run
from mam2.trained import Trained, open_model
from mam2.version import __version__

CARD = "README.md"
_SHARES = {"top1": "top-1", "top5": "top-5", "map": "mAP"}
_ERRORS = {"mae": "mean error", "rmse": "root mean square error", "r2": "R²"}
_PROBLEMS = {"multilabel": "multi_label_classification", "regression": "regression"}  # the words of transformers


@dataclass(frozen=True, kw_only=True)
class _About:
    """What is known of a model that is shared.

    Attributes:
        name: USER/NAME.
        encoder: its sizes.
        classes: names; empty for an encoder.
        labels: their kind.
        pooling: of a classifier.
        origin: the published weights that it was made from, if any.
        license: an identifier of the hub's.
        runs: run.json, without the user's folders, and the rows of log.jsonl, of the run that the weights are of and
            before it of the one that it starts from; of as many as are there.
        tests: evaluate.json and probe_*.json, by their names.
    """

    name: str
    encoder: EncoderConfig
    classes: tuple[str, ...]
    labels: str
    pooling: str
    origin: Origin | None
    license: str
    runs: list[tuple[dict[str, Any], list[dict[str, Any]]]]
    tests: dict[str, dict[str, Any]]


def push(
    source: str | Path, name: str, *, folder: str | Path | None = None, private: bool = False, license: str = ""
) -> str:
    """Uploads an encoder or a classifier to the hub, with a model card made from its run; or writes the folder only.

    `load_encoder("hf://USER/NAME")` and transformers' `AutoModel.from_pretrained(..., trust_remote_code=True)` load it.

    Args:
        source: a run's folder, or what `load_encoder` takes.
        name: USER/NAME on the hub.
        folder: a folder to write instead, new or written by this before; nothing is uploaded.
        private: whether only you, or your organisation, can see it.
        license: of the weights, as the hub calls it, such as "apache-2.0"; empty takes what the weight file says.

    Returns:
        Where it is: the folder, or an address.

    Raises:
        UserError: nothing to share, a name or folder that can't be used, or a hub that refuses.
    """
    check_name(name)
    if folder is not None:
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / CODE_FILE).exists())):
            raise UserError(f"{folder} exists and is no folder that `mam2 push` wrote. Give another --folder.")
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(source, name, Path(temporary), license=license)
        if folder is None:
            return _upload(Path(temporary), name, private=private)
        for weights in (ENCODER_FILE, CLASSIFIER_FILE):
            (Path(folder) / weights).unlink(missing_ok=True)  # of another model
        shutil.copytree(temporary, folder, dirs_exist_ok=True)
    return str(folder)


def write_folder(source: str | Path, name: str, folder: Path, *, license: str = "") -> None:
    """Writes all files of a repository into a folder that is there; see `push`."""
    model = open_model(source, device="cpu")  # a damaged one is not shared
    weights = folder / (CLASSIFIER_FILE if model.classifier else ENCODER_FILE)
    if model.file:
        shutil.copyfile(model.file, weights)  # with all that it says of itself
    else:
        save_encoder(weights, model.encoder)
    about = _about(model, name, license=license)
    write_text(folder / "config.json", json.dumps(_config(about), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "video_preprocessor_config.json", json.dumps(_processor(about.encoder), indent=2) + "\n")
    write_text(folder / CODE_FILE, CODE)
    write_text(folder / CARD, card(about))


def card(about: _About) -> str:
    """The model card: how to use the model, and what its run, its tests and its weights say of it. No path of the
    user's machine is in it but the last part of each."""
    kind = "classifier" if about.classes else "encoder"
    encoder = about.encoder
    sections = [
        _header(about),
        f"# {about.name.partition('/')[2]}\n\n"
        f"A video {kind}: {encoder.depth} blocks of width {encoder.width}, {encoder.attention} attention, "
        f"{encoder.frames} frames of {encoder.size} × {encoder.size} pixels, patches of "
        f"{encoder.tubelet} × {encoder.patch_size} × {encoder.patch_size}"
        + (f"; {len(about.classes)} classes." if about.classes else "."),
        _usage(about),
        _training(about),
        _results(about),
        _origin(about),
    ]
    if about.runs:
        text = json.dumps(about.runs[-1][0]["config"], indent=2, ensure_ascii=False)
        sections.append(f"<details><summary>The whole configuration</summary>\n\n```json\n{text}\n```\n\n</details>")
    return "\n\n".join(filter(None, sections)) + "\n"


def _header(about: _About) -> str:
    tags = ["mam2", "video", "self-supervised-learning"]
    tags += [_method(record) for record, _ in about.runs if record["kind"] == "pretrain"]
    tags = list(dict.fromkeys(tags))
    return "\n".join(
        [
            "---",
            f"license: {about.license}",
            "library_name: mam2",
            f"pipeline_tag: {'video-classification' if about.classes else 'feature-extraction'}",
            "tags:",
            *(f"- {tag}" for tag in tags),
            "---",
        ]
    )


def _usage(about: _About) -> str:
    encoder = about.encoder
    shape = f"(2, {encoder.frames}, 3, {encoder.size}, {encoder.size})"
    lines = ["## Use", "", "```python", "import torch, mam2  # from the repository of mam2, with its extra hf", ""]
    lines += [f"clip = torch.randint(256, {shape}, dtype=torch.uint8)  # (B, T, 3, H, W), RGB"]
    address = f'"{HUB}{about.name}"'
    if about.classes:
        lines += [f"classifier, classes = mam2.load_classifier({address})"]
        numbers = {"classes": "probabilities = classifier(clip).softmax(dim=1)"}
        numbers |= {
            "multilabel": "probabilities = classifier(clip).sigmoid()",
            "regression": "numbers = classifier(clip)",
        }
        lines += [f"{numbers[about.labels]}  # (B, K)"]
    lines += [f"encoder = mam2.load_encoder({address})", "features = encoder(clip)  # (B, T, N, D)", "```", ""]
    lines += ["or with transformers:", "", "```python", "from transformers import AutoModel", ""]
    lines += [f'model = AutoModel.from_pretrained("{about.name}", trust_remote_code=True)']
    lines += ["vectors = model(clip).pooler_output  # (B, D)", "```", ""]
    lines += ["Clips are uint8, or floats from 0 to 1; they are normalised inside."]
    return "\n".join(lines)


def _training(about: _About) -> str:
    """Data, recipe, progress and cost, as the runs' own files have them."""
    lines = ["## Training"]
    for record, log in about.runs:
        config = record["config"]
        data, loop = config["data"], config["loop"]
        did = f"Pre-trained by `{_method(record)}`" if record["kind"] == "pretrain" else "Fine-tuned"
        split = f", split `{data['split']}`" if data["split"] else ""
        sampling = f"{data['sampling']} sampling" + (
            f", a frame in {data['stride_frames']}" if data["sampling"] != "uniform" else ""
        )
        lines += [
            "",
            f"{did} on {record.get('num_videos', 0):,} videos, `{data['root']}`{split}:",
            "",
            f"- {sampling}; starts from `{config.get('init') or 'random weights'}`;",
            f"- {loop['duration']} of batch {loop['batch_size']}, seed {loop['seed']};",
        ]
        rows = [row for row in log if "step" in row]
        if rows:
            names = ("loss", "accuracy", "effective_rank")
            values = [f"{name.replace('_', ' ')} {rows[-1][name]:.4g}" for name in names if name in rows[-1]]
            lines.append(f"- at step {rows[-1]['step']:,}: {', '.join(values)};")
        if speeds := [row["clips_per_second"] for row in rows if row.get("clips_per_second")]:
            speed = statistics.median(speeds)
            minutes = rows[-1]["step"] * loop["batch_size"] * data["repeats"] / speed / 60
            cost = f"{minutes / 60:.3g} hours" if minutes > 120 else f"{minutes:.2g} minutes"
            lines.append(f"- cost: {cost}, at {speed:.3g} clips per second.")
    return "\n".join(lines) if about.runs else ""


def _results(about: _About) -> str:
    if not about.tests:
        return ""
    lines = ["## Results", "", "| test | videos | result |", "| --- | --- | --- |"]
    for name, test in about.tests.items():
        views = f", {test['clips']} × {test['crops']} views" if "crops" in test else ""
        shares = [f"{title} {100 * test[key]:.1f} %" for key, title in _SHARES.items() if test.get(key) is not None]
        errors = [f"{title} {test[key]:.4g}" for key, title in _ERRORS.items() if test.get(key) is not None]
        lines.append(f"| {name}{views} | {test['num_videos']:,} | {', '.join(shares + errors)} |")
    return "\n".join([*lines, "", "Measured by this package on the author's videos."])


def _origin(about: _About) -> str:
    if not about.origin:
        return ""
    lines = [f"- source: `{about.origin.source}`", f"- licence: {about.origin.licence}"]
    return "\n".join(["## Weights that it was made from", "", *lines])


def _method(record: dict[str, Any]) -> str:
    """The name of a pre-training's objective: MAM2Config is mam2."""
    return str(record["config"]["objective"].get("is", "mam2")).removesuffix("Config").lower()


def _about(model: Trained, name: str, *, license: str) -> _About:
    """Gathers what the files of a run say; those of a weight file alone say less."""
    origin = model.origin
    stated = license or (origin.licence if origin else "unknown")
    if not re.fullmatch(r"[a-zA-Z0-9.-]+", stated):
        if license:
            raise UserError(f"The license {license!r} is no identifier; accepted: such as apache-2.0, cc-by-nc-4.0.")
        stated = "other"
    source = Path(model.source)
    folder = source if source.is_dir() else source.parent
    runs = list[tuple[dict[str, Any], list[dict[str, Any]]]]()
    tests = dict[str, dict[str, Any]]()
    if (folder / "run.json").is_file():
        runs.append(_run(folder))
        init = Path(str(read_run(folder)["config"].get("init") or ""))
        if (init / "run.json").is_file():
            runs.insert(0, _run(init))
        for file in (folder / "evaluate.json", *sorted((folder / "probe").glob("probe_*.json"))):
            if file.is_file():
                name_of = file.stem.replace("evaluate", "fine-tuned").replace("_", ", ")
                tests[name_of] = read_object(file, {"num_videos": int})
    return _About(
        name=name,
        encoder=model.encoder.config,
        classes=model.classes,
        labels=model.kind,
        pooling=model.classifier.pooling if model.classifier else "all",
        origin=origin,
        license=stated.lower(),
        runs=runs,
        tests=tests,
    )


def _run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    log = folder / "log.jsonl"
    return _without_folders(read_run(folder)), read_log(log) if log.is_file() else []


def _without_folders(value: Any) -> Any:
    """JSON whose paths are cut to their last part: where a user keeps files is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _config(about: _About) -> dict[str, Any]:
    """config.json, as transformers reads it."""
    module = Path(CODE_FILE).stem
    config: dict[str, Any] = {
        "model_type": "mam2",
        "architectures": ["Mam2ForVideoClassification" if about.classes else "Mam2Model"],
        "auto_map": {"AutoConfig": f"{module}.Mam2Config", "AutoModel": f"{module}.Mam2Model"},
        "mam2_version": __version__,
        "encoder": to_json(about.encoder),
    }
    if about.classes:
        config["auto_map"]["AutoModelForVideoClassification"] = f"{module}.Mam2ForVideoClassification"
        config["pooling"] = about.pooling
        config["id2label"] = dict(enumerate(about.classes))
        config["problem_type"] = _PROBLEMS.get(about.labels, "single_label_classification")
        config["label2id"] = {label: number for number, label in enumerate(about.classes)}
    return config


def _processor(encoder: EncoderConfig) -> dict[str, Any]:
    """How transformers makes clips: the short side resized, the middle square, values from 0 to 1."""
    size = encoder.size
    return {
        "video_processor_type": "VideoMAEVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }


def _upload(folder: Path, name: str, *, private: bool) -> str:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # it is httpx's
    except ModuleNotFoundError as error:
        raise UserError("An upload needs the package huggingface_hub. Install it: pip install 'mam2[hf]'.") from error
    api = HfApi()
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise UserError(f"{name} is there already and public. Make it private on the hub, or choose another name.")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Push by mam2 {__version__}")
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{name} can't be uploaded: {str(error)[:300] or repr(error)} Log in with `hf auth login`, with a token "
            "that can write, or write a folder by --folder."
        ) from error
    return str(url)
