"""MAM²: self-supervised pre-training of video transformers by masked appearance-motion modelling.

`load_encoder("RUN")(clip)` gives features; `pretrain(config, "RUN")` and `finetune(config, "RUN")` are whole runs of a
`Pretrain` or a `Finetune`, such as `get_recipe` returns. Dataclasses: `dataclasses.replace` sets their `data`.
"""

from mam2.config import UserError
from mam2.data.clips import Data
from mam2.evaluate import evaluate
from mam2.masks import Masking
from mam2.model.encoder import Classifier, EncoderConfig, VideoEncoder, vit_b, vit_l
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.recipes import get_recipe
from mam2.targets import TargetMaker, TargetsConfig, TargetSizes
from mam2.train.checkpoint import load_classifier, load_encoder
from mam2.train.engine import Loop
from mam2.train.finetune import Finetune, evaluate_run, finetune
from mam2.train.optim import Optim
from mam2.train.pretrain import Pretrain, pretrain

__version__ = "0.1.0"
__all__ = [
    "MAM2",
    "Classifier",
    "Data",
    "EncoderConfig",
    "Finetune",
    "Loop",
    "MAM2Config",
    "Masking",
    "Optim",
    "Pretrain",
    "TargetMaker",
    "TargetSizes",
    "TargetsConfig",
    "UserError",
    "VideoEncoder",
    "evaluate",
    "evaluate_run",
    "finetune",
    "get_recipe",
    "load_classifier",
    "load_encoder",
    "pretrain",
    "vit_b",
    "vit_l",
]
