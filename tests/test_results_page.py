"""Tables of docs/results.md and README.md are what the studies' files say."""

from pathlib import Path

import pytest
import results_page
from results_page import BEGIN, END, PAGE, README, RESULTS, Row


def row(scores: dict[str, list[int]]) -> Row:
    by_seed = {column: dict(enumerate(values)) for column, values in scores.items()}
    return Row(data="data", protocol="protocol", study="study", scores=by_seed)


def test_the_page_holds_the_table_of_the_files() -> None:
    page = PAGE.read_text("utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert results_page.with_table(page, results_page.matrix()) == page, "run python benchmarks/results_page.py"


def test_readme_holds_its_table() -> None:
    page = README.read_text("utf-8")
    if BEGIN not in page:
        pytest.skip("README.md has no markers")
    table = results_page.readme_table()
    assert results_page.with_table(page, table) == page, "run python benchmarks/results_page.py --readme"


def test_means_and_costs_come_from_the_study() -> None:
    (fig2,) = [r for r in results_page.rows() if (r.data, r.protocol) == ("rendered motion", "4,000 steps; ridge")]
    assert fig2.scores["flash"] == pytest.approx({0: 81.0, 1: 79.5, 2: 80.5})
    assert fig2.scores["random_mam2"] == pytest.approx({0: 34.75, 1: 33.5, 2: 31.75})
    assert fig2.difference("mam2", "videomae") == pytest.approx((24.75, 12.83), abs=0.01)
    assert "| operations, VideoMAE = 1 | 3.7 | 14 | 1 | 1.3 | 0 |" in results_page.readme_table()


def test_verdicts_follow_the_interval_of_the_paired_difference() -> None:
    # Seeds differ by 20 points, st_mae by 9, 10 and 11 at each: paired, 10 ± 4.303 / sqrt(3).
    scores = row(
        {
            "videomae": [30, 40, 50],
            "st_mae": [39, 50, 61],
            "mam2": [21, 30, 39],
            "lite": [30, 41, 50],
            "flash": [30, 60, 50],
        }
    )
    assert scores.difference("st_mae", "videomae") == pytest.approx((10, 2.484), abs=0.001)
    verdicts = [scores.verdict(column, "videomae") for column in ("st_mae", "mam2", "lite", "flash", "v_jepa")]
    assert verdicts == ["ahead", "behind", "equal", "inconclusive", "inconclusive"]


def test_marks_of_a_cell() -> None:
    scores = row(
        {
            "videomae": [30, 40, 50],
            "st_mae": [39, 50, 61],
            "mam2": [21, 30, 39],
            "random_mam2": [30, 40, 50],
            "random_videomae": [10, 21, 30],
        }
    )
    cells = [scores.cell(column) for column in ("videomae", "st_mae", "mam2", "random_mam2", "lite")]
    assert cells == ["40.0 ↑", "**50.0** ↑", "*30.0* ↓", "40.0 =", ""]


def test_seeds_that_only_one_has_do_not_count() -> None:
    scores = row({"videomae": [30, 40, 50], "mam2": [31]})
    assert scores.difference("mam2", "videomae") is None
    assert scores.cell("mam2") == "31.0"
    assert scores.num_seeds() == "1–3"


def test_the_command_writes_between_the_markers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    (tmp_path / "bare.md").write_text("no markers\n", "utf-8")
    monkeypatch.setattr(results_page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(results_page, "README", tmp_path / "bare.md")
    results_page.main([])
    results_page.main(["--readme"])
    expected = f"before\n{BEGIN}\n{results_page.matrix()}\n{END}\nafter\n"
    assert (tmp_path / "page.md").read_text("utf-8") == expected
    assert (tmp_path / "bare.md").read_text("utf-8") == "no markers\n"


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_each_study_has_a_page_that_names_its_files_and_the_results_name_the_study(name: str) -> None:
    page = (RESULTS / name / "README.md").read_text("utf-8")
    for file in (RESULTS / name).iterdir():
        assert file.name == "README.md" or file.name in page
    results = PAGE.read_text("utf-8")
    assert f"benchmarks/results/{name}/README.md" in results or f"| {name} |" in results
