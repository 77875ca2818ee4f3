"""Pre-training methods, one file each, by the contract of `contract.py` (docs/add_an_objective.md)."""

from __future__ import annotations

from mam2.objectives.mam2 import MAM2Config

ObjectiveChoice = MAM2Config  # or MAM2Config | YourConfig
"""The configurations that a pre-training can have."""
