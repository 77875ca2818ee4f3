"""Weight files by their source: a run's folder, a file, or `hf://USER/NAME[@REVISION]` on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mam2.config import UserError

ENCODER_FILE = "encoder.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"
HUB = "hf://"
_REPO = r"[\w.-]+/[\w.-]+"


def weight_file(source: str | Path, names: Sequence[str] = (CLASSIFIER_FILE, ENCODER_FILE)) -> Path:
    """The weight file that a source means: itself, or the first of `names` that is in a folder or on the hub.

    Args:
        source: a file, which may be missing; a folder; or `hf://USER/NAME`, with `@REVISION` (a branch, a tag or a
            commit) or without. What was fetched before is found without a network.
        names: the last is returned where a folder has none of them.

    Raises:
        UserError: the hub has no such thing, or can't be reached.
    """
    if str(source).startswith(HUB):
        return _fetched(str(source), names)
    source = Path(source)
    if not source.is_dir():
        return source
    return next((source / name for name in names if (source / name).exists()), source / names[-1])


def check_name(name: str) -> str:
    """`name` if it can be a repository's, else UserError."""
    if not re.fullmatch(_REPO, name):
        raise UserError(f"{name!r} is no name on the hub; accepted: USER/NAME, such as ada/lips-vit-b.")
    return name


def _fetched(address: str, names: Sequence[str]) -> Path:
    name, _, revision = address.removeprefix(HUB).partition("@")
    check_name(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's
            HTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise UserError(f"{address} needs the package huggingface_hub. Install it: pip install 'mam2[hf]'.") from error
    wanted = " or ".join(names)
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(names)))
    except LocalEntryNotFoundError as error:
        problem = f"{wanted} was not fetched before, and the hub can't be reached. Connect, or correct HF_HOME"
        raise UserError(f"{address} can't be loaded: {problem}.") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{address} can't be loaded: the repository has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        problem = "there is no such repository, or it is not open to you. Correct the name, or run `hf auth login`"
        raise UserError(f"{address} can't be loaded: {problem}.") from error
    except (HTTPError, OSError) as error:
        reason = str(error)[:200] or repr(error)
        raise UserError(f"{address} can't be loaded: looking for {wanted}: {reason}") from error
    found = next((folder / file for file in names if (folder / file).exists()), None)
    if found is None:
        raise UserError(f"{address} holds no {wanted}. Name a repository that `mam2 push` wrote.")
    return found
