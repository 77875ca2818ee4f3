"""MAM²: self-supervised pre-training of video transformers by masked appearance-motion modelling.

`open_model("RUN")` is a trained model from any source, ready to see videos; `load_encoder("RUN")` its encoder alone;
`pretrain(config, "RUN")` and `finetune(config, "RUN")` are whole runs of a
`Pretrain` or a `Finetune`, such as `get_recipe` returns. Dataclasses: `dataclasses.replace` sets their `data`.

Importing this package loads nothing heavy: each public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mam2.version import __version__ as __version__

if TYPE_CHECKING:
    from mam2.config import Epochs as Epochs
    from mam2.config import Steps as Steps
    from mam2.config import UserError as UserError
    from mam2.data.clips import Data as Data
    from mam2.losses import Losses as Losses
    from mam2.masks import Mask as Mask
    from mam2.masks import MaskConfig as MaskConfig
    from mam2.model.classifier import Classifier as Classifier
    from mam2.model.encoder import EncoderConfig as EncoderConfig
    from mam2.model.encoder import VideoEncoder as VideoEncoder
    from mam2.model.encoder import vit_b as vit_b
    from mam2.model.encoder import vit_l as vit_l
    from mam2.model.importers import import_encoder as import_encoder
    from mam2.model.importers.facts import Inflation as Inflation
    from mam2.model.load import load_encoder as load_encoder
    from mam2.model.weights import load_classifier as load_classifier
    from mam2.objectives.mam2 import MAM2 as MAM2
    from mam2.objectives.mam2 import MAM2Config as MAM2Config
    from mam2.probe.probe import Probe as Probe
    from mam2.probe.probe import probe_encoder as probe_encoder
    from mam2.recipes import get_recipe as get_recipe
    from mam2.targets.maker import TargetMaker as TargetMaker
    from mam2.targets.maker import Targets as Targets
    from mam2.targets.table import TargetsConfig as TargetsConfig
    from mam2.targets.table import TargetSizes as TargetSizes
    from mam2.train.engine import Loop as Loop
    from mam2.train.finetune import Finetune as Finetune
    from mam2.train.finetune import finetune as finetune
    from mam2.train.optim import Optim as Optim
    from mam2.train.pretrain import Pretrain as Pretrain
    from mam2.train.pretrain import build as build
    from mam2.train.pretrain import pretrain as pretrain
    from mam2.trained import Trained as Trained
    from mam2.trained import open_model as open_model
    from mam2.use.demo.page import demo as demo
    from mam2.use.embed import embed as embed
    from mam2.use.embed import read_clip as read_clip
    from mam2.use.embedder import Embed as Embed
    from mam2.use.evaluate_run import evaluate_run as evaluate_run
    from mam2.use.predict import predict as predict
    from mam2.use.search import near_duplicates as near_duplicates
    from mam2.use.search import search as search

MODULE_OF = {
    **dict.fromkeys(("Epochs", "Steps", "UserError"), "config"),
    "Data": "data.clips",
    "Losses": "losses",
    **dict.fromkeys(("Mask", "MaskConfig"), "masks"),
    "Classifier": "model.classifier",
    **dict.fromkeys(("EncoderConfig", "VideoEncoder", "vit_b", "vit_l"), "model.encoder"),
    "import_encoder": "model.importers",
    "Inflation": "model.importers.facts",
    "load_encoder": "model.load",
    "load_classifier": "model.weights",
    **dict.fromkeys(("MAM2", "MAM2Config"), "objectives.mam2"),
    **dict.fromkeys(("Probe", "probe_encoder"), "probe.probe"),
    "get_recipe": "recipes",
    **dict.fromkeys(("TargetMaker", "Targets"), "targets.maker"),
    **dict.fromkeys(("TargetSizes", "TargetsConfig"), "targets.table"),
    "Loop": "train.engine",
    **dict.fromkeys(("Finetune", "finetune"), "train.finetune"),
    "Optim": "train.optim",
    **dict.fromkeys(("Pretrain", "build", "pretrain"), "train.pretrain"),
    **dict.fromkeys(("Trained", "open_model"), "trained"),
    "demo": "use.demo.page",
    **dict.fromkeys(("embed", "read_clip"), "use.embed"),
    "Embed": "use.embedder",
    "evaluate_run": "use.evaluate_run",
    "predict": "use.predict",
    **dict.fromkeys(("near_duplicates", "search"), "use.search"),
}
"""The module of each public name."""
__all__ = ["__version__", *MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module 'mam2' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mam2.{MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
