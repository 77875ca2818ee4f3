"""Pre-training methods, one file each, by the contract of `contract.py` (docs/add_an_objective.md)."""

from __future__ import annotations

from mam2.objectives.mae import MAEConfig
from mam2.objectives.mam2 import MAM2Config
from mam2.objectives.masked_input import MaskedInputConfig
from mam2.objectives.vjepa import VJEPAConfig

ObjectiveChoice = MAM2Config | MAEConfig | MaskedInputConfig | VJEPAConfig
"""The configurations that a pre-training can have."""
