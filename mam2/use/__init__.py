"""Verbs after training: embed, search, predict, evaluate, show, the page of a run, the demo."""

from pathlib import Path

# Export, hub, AutoModel and MTEB stood here in version 0.1, and folders on the hub import them by these names.
__path__.append(str(Path(__file__).parents[1] / "share"))
