"""Trackers' calls, by stand-ins with their interfaces."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers import log_rows, tiny_mae

from mam2.config import UserError
from mam2.files import flat
from mam2.train.pretrain import Pretrain, pretrain


class Told(ModuleType):
    """A module that notes every call of a function of these names."""

    def __init__(self, name: str, *functions: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for function in functions:
            setattr(self, function, self.noting(function))

    def noting(self, function: str) -> Any:
        def call(*args: Any, **settings: Any) -> Any:
            self.calls.append((function, args, settings))
            return self.answers.get(function)

        return call

    answers: dict[str, Any] = {}  # noqa: RUF012


def run_of(videos: Path, track: Any, steps: int = 2) -> Pretrain:
    return tiny_mae(videos, steps=steps, seed=3, track=track)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_trackers_of_one_interface(name: Any, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(name, "init", "log", "finish")
    monkeypatch.setitem(sys.modules, name, told)
    assert pretrain(run_of(videos, name), tmp_path / "run")
    assert [call[0] for call in told.calls] == ["init", "log", "log", "finish"]
    settings = told.calls[0][2]
    assert (settings["project"], settings["name"], settings["resume"]) == ("mam2", "run", "allow")
    assert settings["config"]["loop.seed"] == 3
    for line, (_, (numbers,), given) in zip(log_rows(tmp_path / "run"), told.calls[1:3], strict=True):
        assert {**numbers, "step": given["step"]} == line
    first = settings.get("id")
    assert pretrain(run_of(videos, name, steps=4), tmp_path / "run")  # goes on in the same run
    assert told.calls[4][2].get("id") == first
    assert [call[2]["step"] for call in told.calls if call[0] == "log"] == [1, 2, 3, 4]


def test_mlflow(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = ("set_experiment", "search_runs", "start_run", "set_tag", "log_params", "log_metrics", "end_run")
    told = Told("mlflow", *functions)
    told.answers = {"search_runs": []}
    monkeypatch.setitem(sys.modules, "mlflow", told)
    assert pretrain(run_of(videos, "mlflow"), tmp_path / "run")
    assert [call[0] for call in told.calls] == [*functions[:5], "log_metrics", *functions[5:]]
    told.answers = {"search_runs": [SimpleNamespace(info=SimpleNamespace(run_id="abc"))]}
    assert pretrain(run_of(videos, "mlflow", steps=3), tmp_path / "run")
    assert [call[2]["run_id"] for call in told.calls if call[0] == "start_run"] == [None, "abc"]
    assert len([call for call in told.calls if call[0] == "log_params"]) == 1


def test_a_tracker_that_is_not_installed(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="'wandb', which is not installed: pip install wandb"):
        pretrain(run_of(videos, "wandb"), tmp_path / "run")
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
