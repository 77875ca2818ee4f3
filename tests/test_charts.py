"""Charts: loss curves of a log, and confusion matrices."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mam2.config import UserError
from mam2.pictures.charts import confusion_picture, loss_curves, smooth


def test_smoothing_keeps_lines_and_lags_behind_nothing() -> None:
    assert smooth(np.full(9, 2.5), 4) == pytest.approx(np.full(9, 2.5))
    assert smooth(np.arange(20.0), 5)[2:-2] == pytest.approx(np.arange(20.0)[2:-2])
    assert smooth(np.arange(3.0), 99) == pytest.approx([0.5, 1.0, 1.5])


def test_loss_curves_draw_each_known_part_once() -> None:
    rows = [{"step": s, "epoch": 0.1, "loss": 5 - s / 50, "lr": 1e-3, "unknown": 3} for s in range(200)]
    rows[5]["motion"] = 0.25
    rows[6]["loss"] = float("nan")
    rows += [{"step": 199, "loss": 7.0}, {"note": "no step"}]  # a resume: step 199 again
    figure = loss_curves(rows)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss, total", "loss, motion", "learning rate"]
    raw, smoothed = figure.axes[0].lines
    assert len(raw.get_xdata()) == len(smoothed.get_xdata()) == 199  # the NaN is left out
    assert raw.get_ydata()[-1] == 7.0
    assert len(figure.axes[2].lines) == 1
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[5, 0.25]]


def test_loss_curves_of_an_empty_log_say_so() -> None:
    assert [text.get_text() for text in loss_curves([]).texts] == ["nothing logged yet"]


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
