"""The share of mutants that the tests kill, by file, as docs/log/tests.md has it: after `mutmut run`."""

import json
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code


def main() -> None:
    print("| file | mutants | killed | share |\n| --- | --- | --- | --- |")
    whole = Counter[str]()
    for meta in sorted(Path("mutants").rglob("*.meta")):
        counts = Counter(
            status_by_exit_code[code] for code in json.loads(meta.read_text())["exit_code_by_key"].values()
        )
        whole += counts
        if counts:
            print(row(meta.relative_to("mutants").with_suffix("").as_posix(), counts))
    print(row("all", whole))


def row(name: str, counts: Counter[str]) -> str:
    """An endless loop counts as killed; what was not run does not count."""
    ran, killed = counts.total() - counts["not checked"], counts["killed"] + counts["timeout"]
    return f"| {name} | {ran} | {killed} | {killed / max(1, ran):.1%} |"


if __name__ == "__main__":
    main()
