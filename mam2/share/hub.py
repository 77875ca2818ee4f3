"""Models on the Hugging Face hub: weights, configuration, model card and code for AutoModel, and their upload."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from mam2.config import UserError, to_json
from mam2.files import read_object, write_text
from mam2.model.weight_file import CLASSIFIER_FILE, ENCODER_FILE, check_name
from mam2.model.weights import save_encoder
from mam2.pictures.page import code_in_markdown, in_markdown
from mam2.share.auto_model import CODE, CODE_FILE
from mam2.train.run import read_log, read_run
from mam2.trained import Trained, open_model
from mam2.version import __version__

CARD = "README.md"
_SHARES = {"top1": "top-1", "top5": "top-5", "map": "mAP"}
_ERRORS = {"mae": "mean error", "rmse": "root mean square error", "r2": "R²"}
_PROBLEMS = {"multilabel": "multi_label_classification", "regression": "regression"}  # the words of transformers


@dataclass(frozen=True, kw_only=True)
class Push:
    """Settings of an upload.

    Attributes:
        private: make the repository visible to you, or your organisation, only.
        folder: folder to write instead of an upload: new, or written by an earlier push.
        license: licence of the weights, as the hub calls it, such as apache-2.0; empty takes what the weight file says.
    """

    private: bool = False
    folder: Path | None = None
    license: str = ""


def push(
    source: str | Path, name: str, *, folder: str | Path | None = None, private: bool = False, license: str = ""
) -> str:
    """Uploads an encoder or a classifier to the hub, with a model card from its run, or writes it to a folder.

    The result is the folder, or the address on the hub.
    `load_encoder("hf://USER/NAME")` and transformers' `AutoModel.from_pretrained(..., trust_remote_code=True)` load it.

    Args:
        source: a run's folder, or another source of `load_encoder`.
        name: USER/NAME on the hub.
        folder, private, license: as in `Push`.

    Raises:
        UserError: nothing to share, a name or folder that can't be used, or a hub that refuses.
    """
    place = None if folder is None else Path(folder)
    return share(source, name, config=Push(private=private, folder=place, license=license))


def share(source: str | Path, name: str, *, config: Push) -> str:
    """Uploads a model, or writes its folder; see `push`."""
    check_name(name)
    folder = config.folder
    if folder and folder.exists() and not _is_replaceable(folder):
        raise UserError(f"{folder} exists and is no folder that `mam2 push` wrote. Give another --folder.")
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(source, name, Path(temporary), license=config.license)
        if folder is None:
            return _upload(Path(temporary), name, private=config.private)
        for weights in (ENCODER_FILE, CLASSIFIER_FILE):
            (folder / weights).unlink(missing_ok=True)  # of another model
        shutil.copytree(temporary, folder, dirs_exist_ok=True)
    return str(folder)


def _is_replaceable(folder: Path) -> bool:
    """True for an empty folder, or one of an earlier push."""
    return folder.is_dir() and (not any(folder.iterdir()) or (folder / CODE_FILE).exists())


def write_folder(source: str | Path, name: str, folder: Path, *, license: str = "") -> None:
    """Writes all files of a repository into a folder that is there; see `push`."""
    model = open_model(source, device="cpu")  # a damaged one is not shared
    weights = folder / (CLASSIFIER_FILE if model.classifier else ENCODER_FILE)
    if model.file:
        shutil.copyfile(model.file, weights)  # with all that it says of itself
    else:
        save_encoder(weights, model.encoder)
    write_text(folder / "config.json", _pretty(_config(model)) + "\n")
    write_text(folder / "video_preprocessor_config.json", _pretty(_processor(model.shape.size)) + "\n")
    write_text(folder / CODE_FILE, CODE)
    write_text(folder / CARD, model_card(model, name, license=license))


def model_card(model: Trained, name: str, *, license: str) -> str:
    """The model card: use of the model, and facts of its run, its tests and its weights.

    Paths are cut to their last part. No text of a run can break the front matter or the Markdown.
    """
    source = Path(model.source)
    folder = source if source.is_dir() else source.parent
    is_run = (folder / "run.json").is_file()
    runs = list(_runs(folder)) if is_run else []
    tags = ["mam2", "video", "self-supervised-learning"]
    tags += [re.sub(r"[^\w.-]+", "-", _method(run)) for run, _ in runs if run["kind"] == "pretrain"]
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"text": in_markdown, "code": code_in_markdown, "pretty": _pretty}
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        encoder=model.encoder.config,
        classes=model.classes,
        labels=model.kind,
        origin=model.origin,
        license=_license(model, license),
        runs=runs,
        tests=_tests(folder) if is_run else {},
        tags=dict.fromkeys(tags),
        method=_method,
        progress=_progress,
        numbers=_numbers,
    )


def _method(record: dict[str, Any]) -> str:
    """The name of a pre-training's objective: MAM2Config is mam2."""
    return str(record["config"]["objective"].get("is", "mam2")).removesuffix("Config").lower()


def _progress(config: dict[str, Any], log: list[dict[str, Any]]) -> Iterator[str]:
    """The last step of a run, and its cost."""
    rows = [row for row in log if "step" in row]
    if rows:
        names = ("loss", "accuracy", "effective_rank")
        values = [f"{name.replace('_', ' ')} {rows[-1][name]:.4g}" for name in names if name in rows[-1]]
        yield f"at step {rows[-1]['step']:,}: {', '.join(values)};"
    if speeds := [row["clips_per_second"] for row in rows if row.get("clips_per_second")]:
        speed = statistics.median(speeds)
        minutes = rows[-1]["step"] * config["loop"]["batch_size"] * config["data"]["repeats"] / speed / 60
        cost = f"{minutes / 60:.3g} hours" if minutes > 120 else f"{minutes:.2g} minutes"
        yield f"cost: {cost}, at {speed:.3g} clips per second."


def _numbers(test: dict[str, Any]) -> list[str]:
    """The results of a test."""
    shares = [f"{title} {100 * test[key]:.1f} %" for key, title in _SHARES.items() if test.get(key) is not None]
    return shares + [f"{title} {test[key]:.4g}" for key, title in _ERRORS.items() if test.get(key) is not None]


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _license(model: Trained, asked: str) -> str:
    """The licence that is asked for, or that the weight file states, as an identifier of the hub."""
    stated = asked or (model.origin.licence if model.origin else "unknown")
    if re.fullmatch(r"[a-zA-Z0-9.-]+", stated):
        return stated.lower()
    if asked:
        raise UserError(f"The license {asked!r} is no identifier; accepted: such as apache-2.0, cc-by-nc-4.0.")
    return "other"


def _tests(folder: Path) -> dict[str, dict[str, Any]]:
    """Contents of evaluate.json and probe_*.json, by title."""
    files = (folder / "evaluate.json", *sorted((folder / "probe").glob("probe_*.json")))
    titles = {file: file.stem.replace("evaluate", "fine-tuned").replace("_", ", ") for file in files}
    return {title: read_object(file, {"num_videos": int}) for file, title in titles.items() if file.is_file()}


def _runs(folder: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """run.json, without the user's folders, and rows of log.jsonl, of the run that it starts from and its own."""
    init = Path(str(read_run(folder)["config"].get("init") or ""))
    for place in (init, folder):
        if (place / "run.json").is_file():
            log = place / "log.jsonl"
            yield _without_folders(read_run(place)), read_log(log) if log.is_file() else []


def _without_folders(value: Any) -> Any:
    """JSON whose paths are cut to their last part: a user's folders are private."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and ("/" in value or "\\" in value) else value


def _config(model: Trained) -> dict[str, Any]:
    """config.json, as transformers reads it."""
    module = Path(CODE_FILE).stem
    config: dict[str, Any] = {
        "model_type": "mam2",
        "architectures": ["Mam2ForVideoClassification" if model.classifier else "Mam2Model"],
        "auto_map": {"AutoConfig": f"{module}.Mam2Config", "AutoModel": f"{module}.Mam2Model"},
        "mam2_version": __version__,
        "encoder": to_json(model.encoder.config),
    }
    if model.classifier:
        config["auto_map"]["AutoModelForVideoClassification"] = f"{module}.Mam2ForVideoClassification"
        config["pooling"] = model.classifier.pooling
        config["id2label"] = dict(enumerate(model.classes))
        config["problem_type"] = _PROBLEMS.get(model.kind, "single_label_classification")
        config["label2id"] = {label: number for number, label in enumerate(model.classes)}
    return config


def _processor(size: int) -> dict[str, Any]:
    """The configuration of transformers' clips: the short side resized, the middle square, values from 0 to 1."""
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
