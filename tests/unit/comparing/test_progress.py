"""What a comparison shows while it runs."""

import io

from rich.console import Console

from hellora.comparing.progress import Tally, in_progress
from hellora.comparing.runs import Cell

CELL = Cell("dirichlet", "fed_hello", 3)


def test_the_run_in_progress_is_one_line_with_what_matters_most() -> None:
    def line(width: int) -> str:
        return in_progress(3, 18, CELL, "train.lr=0.01", "round 4/10", "12 min left", width)

    assert line(80) == "run 3/18  dirichlet  fed_hello  train.lr=0.01  seed 3  round 4/10  12 min left"
    assert line(77) == "run 3/18  dirichlet  fed_hello  round 4/10  12 min left"
    assert line(54) == "run 3/18  fed_hello  round 4/10  12 min left"
    assert line(40) == line(5) == "run 3/18  round 4/10  12 min left"


def test_the_time_left_is_that_of_all_runs_by_what_was_done_now() -> None:
    """Of four runs one was done before; a run takes 100 s."""
    now = 0.0
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Tally(4, console, clock=lambda: now) as tally:
        tally.finished(CELL, "", ["accuracy 0.500", "(done before)"], None)

        def shown() -> str:
            assert tally.status is not None
            return str(tally.status.status)

        tally.loading(CELL, "")
        assert shown() == "run 2/4  dirichlet  fed_hello  seed 3  loading"
        tally.running(CELL, "", 0, 0, 10)
        assert shown() == "run 2/4  dirichlet  fed_hello  seed 3  round 0/10"
        now = 50.0
        tally.running(CELL, "", 5, 0, 10)
        assert shown() == "run 2/4  dirichlet  fed_hello  seed 3  round 5/10  4 min left"  # 250 s
        now = 100.0
        tally.finished(CELL, "", ["accuracy 0.500"], 100.0)
        now = 120.0  # the next run goes on from round 8, in 20 s
        tally.running(CELL, "", 10, 8, 10)
        assert shown().endswith("round 10/10  2 min left")  # 120 s for 1.2 runs, and one to come
        tally.finished(CELL, "", ["accuracy 0.500"], 20.0)
    text = console.file
    assert isinstance(text, io.StringIO)
    assert "  2/4  dirichlet  fed_hello  seed 3  accuracy 0.500  100 s  3 min left" in text.getvalue()
    assert "  1/4  dirichlet  fed_hello  seed 3  accuracy 0.500  (done before)\n" in text.getvalue()
