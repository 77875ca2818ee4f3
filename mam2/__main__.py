"""Runs `mam2 COMMAND ...`: finds the command, imports its file, turns errors into messages.

Exit status: 0 done (also after SIGTERM, with everything saved), 2 an error the user can fix, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys

from mam2.config import UserError, did_you_mean, printable
from mam2.terminal import start_logging, width_of, wrapped
from mam2.verbs import VERBS, module_of, usage
from mam2.version import __version__


def main() -> None:
    """Runs the command that the command line names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(width_of(sys.stdout) or 100))
        return
    if arguments[0] == "--version":
        print(f"mam2 {__version__}")
        return
    try:
        run(*split(arguments))
    except UserError as error:
        fail(str(error))
    except OSError as error:  # no permission, disk full, a file where a folder is wanted
        if isinstance(error, BrokenPipeError) and not can_print():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        fail(f"{error}. What was saved before is untouched.")
    except KeyboardInterrupt:
        fail("interrupted. What was saved is kept; the same command resumes from there.", status=130)


def split(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and its arguments.

    Raises:
        UserError: an unknown command.
    """
    for words in (2, 1):
        if (verb := " ".join(arguments[:words])) in VERBS:
            return verb, arguments[words:]
    raise UserError(f"There is no command {arguments[0]!r}. {did_you_mean(arguments[0], VERBS)} See `mam2 --help`.")


def run(verb: str, arguments: list[str]) -> None:
    """Imports a command's file, which takes seconds, and runs it."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"mam2 {__version__} {verb}: loading PyTorch ...", file=sys.stderr, flush=True)
    try:
        command = importlib.import_module(f"mam2.cli.{module_of(verb)}")
    except ModuleNotFoundError as error:
        raise UserError(f"The command needs the package {error.name}. Install it: pip install 'mam2[all]'.") from error

    import torch

    from mam2 import distributed

    start_logging()
    try:
        with distributed.session():
            command.main(verb, arguments)
    except torch.OutOfMemoryError as error:
        fail(
            f"{str(error).splitlines()[0]} In training use --loop.accumulate 2 (or more), --loop.recompute, or a "
            "smaller --loop.batch-size; `mam2 cost RECIPE` says how many clips fit. What was saved is kept."
        )


def can_print() -> bool:
    """Asks if stdout still has a reader: in `mam2 recipes | head` it may be gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def fail(message: str, *, status: int = 2) -> None:
    """Ends the program with a message on stderr."""
    width = width_of(sys.stderr) if sys.stderr.isatty() else 0  # whoever reads a log looks for whole lines
    print(wrapped(f"mam2: {printable(message)}", width), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
