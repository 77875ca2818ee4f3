"""The models' place in version 0.1: folders that it pushed to the hub import them from here."""

from mam2.share.transformers_model import Mam2Config, Mam2ForVideoClassification, Mam2Model

__all__ = ["Mam2Config", "Mam2ForVideoClassification", "Mam2Model"]
