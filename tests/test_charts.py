"""Charts: loss curves of a log, and confusion matrices."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mam2.config import UserError
from mam2.pictures.charts import confusion_picture, curves_of, points_of, smooth


def test_smoothing_keeps_lines_and_lags_behind_nothing() -> None:
    assert smooth(np.full(9, 2.5), 4) == pytest.approx(np.full(9, 2.5))
    assert smooth(np.arange(20.0), 5)[2:-2] == pytest.approx(np.arange(20.0)[2:-2])
    assert smooth(np.arange(3.0), 99) == pytest.approx([0.5, 1.0, 1.5])


def test_points_are_sorted_finite_and_the_later_of_two_counts() -> None:
    rows = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 1, "loss": 2.0}, {"note": "no step"}]
    rows += [{"step": 3, "loss": float("nan")}, {"step": 4, "rank_me": 2.0}]
    assert points_of(rows, "loss") == [(1, 2.0), (2, 1.0)]
    assert points_of(rows, "rank_me") == [(4, 2.0)]


def test_curves_draw_each_known_part_once() -> None:
    rows = [{"step": s, "epoch": 0.1, "loss": 5 - s / 50, "lr": 1e-3, "unknown": 3} for s in range(200)]
    rows[5] |= {"motion": 0.25, "motion_of_none": 0.5}
    rows[6]["loss"] = float("nan")
    rows += [{"step": 199, "loss": 7.0}, {"note": "no step"}]  # a resume: step 199 again
    loss, motion, rate = curves_of(rows)
    assert [figure.layout.title.text for figure in (loss, motion, rate)] == [
        "loss, total",
        "loss, motion",
        "learning rate",
    ]
    raw, smoothed = loss.data
    assert len(raw.x) == len(smoothed.x) == 199  # the NaN is left out
    assert raw.y[-1] == 7.0
    assert len(rate.data) == 1
    assert [(line.name, line.x, line.y) for line in motion.data] == [
        ("of this model", (5,), (0.25,)),
        ("of predicting no motion", (5,), (0.5,)),
    ]
    assert all(line.showlegend for line in motion.data)  # in words beside the chart
    assert min(figure.layout.font.size for figure in (loss, motion, rate)) >= 14


def test_an_empty_log_has_no_curves() -> None:
    assert curves_of([]) == []


@pytest.mark.parametrize("num_classes", [1, 3, 101])
def test_confusion_pictures(tmp_path, num_classes) -> None:
    confusion = torch.eye(num_classes).long() * 3
    confusion[-1] = 0  # a class without clips
    names = [f"a class with a very long name {k} $" for k in range(num_classes)]
    confusion_picture(confusion, names, tmp_path / "confusion.png", title="a $ title")
    assert imread(tmp_path / "confusion.png")[..., :3].min() < 100 / 255


def test_a_confusion_matrix_must_fit_its_names(tmp_path) -> None:
    with pytest.raises(UserError, match=r"\(2, 2\), for 3 class names"):
        confusion_picture(torch.ones(2, 2), ["a", "b", "c"], tmp_path / "confusion.png", title="")
