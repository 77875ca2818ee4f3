"""Studies: comparisons of recipes under one protocol, by one command (docs/studies.md)."""
