"""The version, which pyproject.toml reads too. It imports nothing."""

__version__ = "0.2.0"
