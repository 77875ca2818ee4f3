"""Progress bars: what they draw, on which process, and that the items pass through."""

import pytest

from mam2.progress import progress


def test_items_pass_and_the_bar_counts_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(["a", "bcd"], title="letters", total=4, size=len)) == ["a", "bcd"]
    drawn = capsys.readouterr()
    assert drawn.out == ""
    assert "letters" in drawn.err
    assert "4/4" in drawn.err


@pytest.mark.parametrize(("hidden", "rank"), [(True, 0), (False, 1)])
def test_no_bar(hidden: bool, rank: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", str(rank))
    assert list(progress(range(3), title="numbers", total=3, hidden=hidden)) == [0, 1, 2]
    assert capsys.readouterr().err.strip() == ""


def test_an_error_of_the_loop_comes_through() -> None:
    def items():
        yield 1
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        list(progress(items(), title="numbers", total=2))
