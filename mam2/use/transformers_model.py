"""The models of share/transformers_model.py, for code in folders that version 0.1 pushed to the hub."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("mam2.share.transformers_model"), name)
