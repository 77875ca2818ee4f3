"""The log of a run: its lines, the bar, and what the reporter warns of."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import log_rows

from mam2.config import UserError
from mam2.device import memory_gib
from mam2.losses import Losses
from mam2.train.logs import Reporter, RunLog, losses_line, speed_line, variation


def log_of(folder: Path, num_steps: int = 2, *, start_step: int = 0) -> RunLog:
    return RunLog(folder, start_step=start_step, num_steps=num_steps, title="test")


def test_log_lines_and_their_end(tmp_path: Path) -> None:
    log = log_of(tmp_path, 20)
    rest = {"grad_norm": 1.0, "clips_per_second": 5.0, "data_seconds": 0.1, "memory_gib": 1.0}
    rows = [{"step": number, "loss": 1 / number, **rest} for number in (10, 20)]
    for row in rows:
        log.write(row)
        log.advance(int(row["step"]), row)
    log.advance(20, None)
    log.close()
    assert log_rows(tmp_path) == rows
    assert any((tmp_path / "tensorboard").iterdir())


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    lines = [json.dumps({"step": number, "loss": 0.5}) for number in (10, 20, 30)]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 40, "lo']))
    log = log_of(tmp_path, 50, start_step=20)
    log.write({"step": 30, "loss": 0.25})
    log.close()
    assert log_rows(tmp_path) == [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.5}, {"step": 30, "loss": 0.25}]


def test_a_log_line_is_on_disk_at_once(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.write({"step": 1, "loss": 0.5})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    log.close()


def test_a_full_disk_in_tensorboards_thread_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(tmp_path)

    def full(*values: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log._board, "add_scalar", full)
    with pytest.raises(OSError, match="tensorboard can't be written: No space left on device"):
        log.write({"step": 1, "loss": 1.0})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 1.0}\n'
    log.close()


def test_health_of_collapsed_features() -> None:
    found = variation(torch.ones(4, 3, 5))
    assert found["feature_std"] == 0
    assert found["effective_rank"] == pytest.approx(1)
    assert variation(torch.randn(1, 3, 5)) == {}


def test_health_by_hand() -> None:
    # Two clips, one frame: deviations ±1 and ±2 in two channels, all along one direction.
    found = variation(torch.tensor([[[0.0, 0.0]], [[2.0, 4.0]]]))
    assert found["feature_std"] == pytest.approx((math.sqrt(2) + math.sqrt(8)) / 2)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-4)
    # Four clips at the corners of a square: two directions, equally strong.
    corners = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]], [[-1.0, 1.0]], [[-1.0, -1.0]]])
    found = variation(corners)
    assert found["feature_std"] == pytest.approx(math.sqrt(4 / 3))
    assert found["effective_rank"] == pytest.approx(2)
    # The size of the features changes one figure, not the other; an offset changes neither.
    bigger = variation(3 * corners + 7)
    assert bigger["feature_std"] == pytest.approx(3 * math.sqrt(4 / 3))
    assert bigger["effective_rank"] == pytest.approx(2)


def test_health_is_of_differences_between_clips_not_frames() -> None:
    frames = torch.randn(1, 6, 5).expand(4, 6, 5)
    assert variation(frames)["feature_std"] == pytest.approx(0, abs=1e-6)


def test_memory_is_this_process() -> None:
    assert 0.01 < memory_gib() < 1000


# The bar


def test_the_bar_fits_80_columns_and_names_the_parts() -> None:
    row = {"loss": 12.34567, "appearance": 9.0, "motion": 1.25, "alignment": 1.0, "motion_of_none": 1.5}
    row |= {"grad_norm": 1.0, "clips_per_second": 1234.5, "data_seconds": 0.02, "memory_gib": 10.0}
    line = losses_line(row)
    assert line == "loss 12.346: appearance 9.000, motion 1.250 (zero-motion 1.500), alignment 1.000"
    assert len(line) <= 80
    assert len("pre-training  100000/100000 0:00:00 ") + len(speed_line(row)) <= 80 - 4  # room for the bar itself


# The reporter


@dataclass
class FakeLoader:
    num_steps: int = 4
    steps_per_epoch: int = 2
    num_bad: int = 0

    def count_bad(self) -> int:
        return self.num_bad


def losses_of(features_BTD: torch.Tensor | None = None, **parts: float) -> Losses:
    tensors = {name: torch.tensor(value) for name, value in parts.items()}
    return Losses(torch.stack(list(tensors.values())).sum(), tensors, features_BTD)


def report(folder: Path, steps: list[Losses], *, norm: float = 1.0, log_every: int = 1) -> list[dict[str, Any]]:
    """The lines that steps leave in log.jsonl."""
    loader = FakeLoader(num_steps=len(steps), num_bad=3)
    with Reporter(log_of(folder, len(steps)), loader, log_every=log_every) as reporter:
        for number, losses in enumerate(steps, start=1):
            reporter.add(number, [losses], torch.tensor(norm), {"lr": 0.5, "data_seconds": 0.0}, num_clips=8)
            reporter.read(all_steps=number == len(steps))
    return log_rows(folder)


def test_metrics_of_accumulated_parts_are_averaged_and_logged_in_order(tmp_path: Path) -> None:
    rows = report(tmp_path, [losses_of(motion=1.0), losses_of(motion=2.0), losses_of(motion=4.0)], log_every=2)
    assert [row["step"] for row in rows] == [2, 3]  # every second one, and the last
    assert [row["motion"] for row in rows] == [2.0, 4.0]
    assert [row["epoch"] for row in rows] == [1.0, 1.5]
    assert rows[0]["bad_videos"] == 3
    assert rows[0]["lr"] == 0.5
    assert rows[0]["clips_per_second"] > 0


def test_learning_nothing_of_motion_is_said_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mam2"):
        report(tmp_path / "learns", [losses_of(motion=0.9, motion_of_none=1.0)] * 3)
        assert not caplog.records
        report(tmp_path / "not", [losses_of(motion=1.0, motion_of_none=1.0)] * 3)
    assert len(caplog.records) == 1
    assert "motion loss is 1.000 times that of predicting none" in caplog.text


def test_collapsed_features_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mam2"):
        report(tmp_path, [losses_of(torch.ones(4, 2, 3), motion=1.0)] * 3)
    assert len(caplog.records) == 1
    assert "collapse" in caplog.text


def test_a_gradient_that_is_not_finite_ends_the_run_and_names_the_part(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Step 1: the motion loss is not finite"):
        report(tmp_path, [losses_of(motion=math.nan, appearance=1.0)], norm=math.nan)
    with pytest.raises(UserError, match="a gradient is not finite"):
        report(tmp_path, [losses_of(motion=1.0)], norm=math.inf)
