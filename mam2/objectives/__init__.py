"""Pre-training methods: a configuration and a module each. To add one, extend the two names below
(docs/add_an_objective.md)."""

from __future__ import annotations

from typing import Any

from mam2.objectives.mam2 import MAM2, MAM2Config

ObjectiveConfig = MAM2Config  # or MAM2Config | YourConfig
OBJECTIVES: dict[type, Any] = {MAM2Config: MAM2}
