"""MAM²: self-supervised pre-training of video transformers by masked appearance-motion modelling.

`load_encoder("RUN")(clip)` gives features; `pretrain(get_recipe("mam2_tiny", Pretrain), "RUN")` is a whole run, and so
is `finetune` of a `Finetune`. Recipes are dataclasses: `dataclasses.replace` changes one.
"""

from mam2.config import UserError
from mam2.evaluate import evaluate
from mam2.model.encoder import Classifier, EncoderConfig, VideoEncoder, vit_b, vit_l
from mam2.objectives.mam2 import MAM2, MAM2Config
from mam2.recipes import get_recipe
from mam2.targets import TargetSizes
from mam2.train.checkpoint import load_classifier, load_encoder
from mam2.train.finetune import Finetune, finetune
from mam2.train.pretrain import Pretrain, pretrain

__version__ = "0.1.0"
__all__ = [
    "MAM2",
    "Classifier",
    "EncoderConfig",
    "Finetune",
    "MAM2Config",
    "Pretrain",
    "TargetSizes",
    "UserError",
    "VideoEncoder",
    "evaluate",
    "finetune",
    "get_recipe",
    "load_classifier",
    "load_encoder",
    "pretrain",
    "vit_b",
    "vit_l",
]
