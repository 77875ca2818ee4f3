"""The README's figure: every cell of every study, with its mean, and chance."""

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
