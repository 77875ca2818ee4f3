"""The documents' figures: every cell of every study, with its mean, and chance; lines against what it costs."""

import json

import plot_studies
import pytest


def test_a_panel_for_each_study_and_a_row_for_each_cell(tmp_path, monkeypatch) -> None:
    def study(title: str, name: str, num_classes: int, values: dict[str, list[float]]) -> str:
        cells = [{"cell": cell, "finetune": {"values": dict(enumerate(found))}} for cell, found in values.items()]
        cells.append({"cell": "failed", "errors": ["seed 0: out of memory"]})
        (tmp_path / name).write_text(json.dumps({"num_classes": num_classes, "cells": cells}))
        return f"{title}={tmp_path / name}"

    lips = study("Lips", "lips.json", 10, {"ours": [0.7, 0.8], "rival": [0.1, 0.3]})
    rendered = study("Rendered", "rendered.json", 8, {"ours": [0.5]})
    more = study("Rendered", "more.json", 8, {"other": [0.4]})
    figures = []
    monkeypatch.setattr(plot_studies.pyplot, "close", figures.append)
    plot_studies.main([lips, rendered, more, "--out", str(tmp_path / "figure.png")])
    monkeypatch.undo()
    (figure,) = figures
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["ours", "rival", "other"]
    means = [[(text.get_text(), round(text.xy[1])) for text in panel.texts] for panel in (left, right)]
    assert means == [[("75.0", 0), ("20.0", 1)], [("50.0", 0), ("40.0", 2)]]
    chances = [line.get_xdata()[0] for panel in (left, right) for line in panel.lines if line.get_label() == "chance"]
    assert chances == pytest.approx([10, 12.5])
    plot_studies.pyplot.close(figure)


def test_lines_against_what_pre_training_costs(tmp_path, monkeypatch) -> None:
    def cell(name: str, share: float, values: list[float]) -> dict[str, object]:
        steps = int(1000 * share)
        found = {"values": dict(enumerate(values)), "mean": sum(values) / len(values)}
        return {"cell": name, "share": share, "steps": steps, "epochs": steps / 100, "seconds": 0.12 * steps,
                "finetune": found, "ridge": found | {"mean": found["mean"] / 2}}  # fmt: skip

    cells = [cell("ours", 0.5, [0.4, 0.5]), cell("ours", 1.0, [0.6, 0.8]), cell("scratch", 0.0, [0.2])]
    (tmp_path / "study.json").write_text(json.dumps({"num_classes": 10, "cells": cells}))
    figures = []
    monkeypatch.setattr(plot_studies.pyplot, "close", figures.append)
    study, out = f"Lips={tmp_path / 'study.json'}", str(tmp_path / "lines.png")
    plot_studies.main([study, "--tests", "finetune", "ridge", "--against", "epochs", "minutes", "--out", out])
    monkeypatch.undo()
    (figure,) = figures
    assert [panel.get_title() for panel in figure.axes[::2]] == ["Lips: fine-tuned", "Lips: ridge regression, frozen"]
    assert [panel.get_xlabel() for panel in figure.axes[:2]] == ["epochs of pre-training", "minutes of pre-training"]
    for panel, places in zip(figure.axes, ([5, 10], [1, 2]) * 2, strict=True):
        assert panel.lines[0].get_xdata() == pytest.approx(places)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([45, 70])
    assert figure.axes[2].lines[0].get_ydata() == pytest.approx([22.5, 35])
    scratch, chance = figure.axes[0].lines[-2:]
    assert (scratch.get_ydata()[0], chance.get_ydata()[0]) == pytest.approx((20, 10))
    plot_studies.pyplot.close(figure)
