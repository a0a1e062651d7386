"""What a run says on a terminal: a round is a line that fits; how long the rest takes is known from what is done."""

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from hellora.runs.progress import TerminalProgress, TimeLeft, round_in_words
from hellora.runs.run import last_metrics


def line_of(**changes: Any) -> dict[str, Any]:
    """A round of the quickstart, as rounds.jsonl has it."""
    return {
        "round": 9,
        "metrics": {"accuracy": 0.607, "micro_f1": 0.607, "macro_f1": 0.55, "loss": 1.426},
        "clients": {str(client): {"loss": 0.791, "examples": 10} for client in range(8)},
        "updated": list(range(8)),
        "cohort": list(range(8)),
        "uplink_bytes": 1_800_000,
        "downlink_bytes": 2_600_000,
        "seconds": 114.82,
        "simulated_clock": None,
        "left_out": None,
        "missing": {},
        "rejected": {},
        "sums": [],
        **changes,
    }


def test_a_round_is_one_line_that_fits() -> None:
    short = "round   9  accuracy 0.607  macro_f1 0.550  loss 1.426  train loss 0.791  114.8 s"
    whole = short.replace("  114.8 s", "  8/8 clients  up 1.7 MiB, down 2.5 MiB  114.8 s")
    assert round_in_words(line_of(), 80) == short
    assert len(whole) <= 120
    assert round_in_words(line_of(), 120) == round_in_words(line_of(), None) == whole


def test_micro_f1_is_shown_where_it_is_no_accuracy() -> None:
    several = {"micro_f1": 0.607, "macro_f1": 0.55, "loss": 1.426}
    assert round_in_words(line_of(metrics=several), 80).startswith("round   9  micro_f1 0.607  macro_f1 0.550  loss")


def test_what_matters_less_is_left_out_first() -> None:
    assert "7/8 clients" in round_in_words(line_of(updated=list(range(7))), 90), "not all answered"
    timed = round_in_words(line_of(simulated_clock=8123.0), 80)
    assert timed == "round   9  accuracy 0.607  loss 1.426  114.8 s  simulated 8123 s"
    assert round_in_words(line_of(metrics=None, clients={}), 80).startswith("round   9  8/8 clients  up ")


def shown(progress: TerminalProgress) -> str:
    (rounds,) = progress.bars.tasks
    return TimeLeft().render(rounds).plain


def test_the_time_left_is_known_from_the_first_round_on_however_long_rounds_are() -> None:
    """Of a run that goes on after round 2, with 100 s a round."""
    console, now = Console(file=StringIO(), width=80, force_terminal=True), [0.0]
    progress = TerminalProgress(console)
    progress.bars.get_time = lambda: now[0]  # type: ignore[method-assign]
    progress.rounds = progress.bars.add_task("rounds", total=10, completed=3, first=3)
    for task in progress.bars.tasks:
        task._get_time = progress.bars.get_time
        task.start_time = 0.0
    assert shown(progress) == ""
    now[0] = 100.0
    progress.round_finished(line_of())
    assert shown(progress) == "0:10:00 left"
    now[0] = 190.0
    assert shown(progress) == "0:08:30 left"
    now[0] = 1900.0
    assert shown(progress) == "0:00:00 left", "not below nothing"


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_has_no_line_that_is_too_wide_nor_a_broken_word(width: int) -> None:
    file, reason = StringIO(), "it sent an update whose head has other classes than were asked for [3], by far too many"
    progress = TerminalProgress(Console(file=file, width=width, force_terminal=True, color_system=None))
    progress.round_finished(line_of(rejected={"3": reason}))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert " ".join(" ".join(lines[1:]).split()) == f"client 3 rejected: {reason}"


def test_a_run_that_goes_on_says_after_which_round_and_how_good_it_is() -> None:
    lines: list[Any] = [{"metrics": {"accuracy": 0.659}}, {"metrics": None}]
    assert last_metrics(lines) == {"accuracy": 0.659}
    assert last_metrics(lines[1:]) == {}


def begun(metrics: dict[str, float], first_round: int, eval_every: int = 1) -> str:
    file = StringIO()
    run = SimpleNamespace(fleet=[], planner=None, rounds=5)
    experiment = SimpleNamespace(run=SimpleNamespace(eval_every=eval_every))
    setup: Any = SimpleNamespace(
        federation=run, clients=(), base=SimpleNamespace(notices=()), experiment=experiment, measured_by_clients=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hellora.runs.progress.what_trains", lambda _: [])
        TerminalProgress(Console(file=file, width=80)).started(setup, metrics, first_round)
    return file.getvalue()


def test_a_run_that_begins_says_start_and_one_that_goes_on_what_it_has() -> None:
    assert begun({"accuracy": 0.052}, 0) == "    start  accuracy 0.052\n"
    assert begun({"accuracy": 0.659}, 4) == "resuming after round 3, accuracy 0.659\n"
    assert begun({}, 4) == "resuming after round 3\n"
    assert begun({"accuracy": 0.5}, 4, eval_every=2) == "resuming after round 3, accuracy 0.500\n"
    of_another = "resuming after round 3; after round 2, the last that was evaluated: accuracy 0.500\n"
    assert begun({"accuracy": 0.5}, 4, eval_every=3) == of_another
