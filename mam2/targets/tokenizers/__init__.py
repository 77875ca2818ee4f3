"""Appearance tokenizers: frames to codes."""
