"""What is shown of a comparison."""

import csv
import io
import json
import math
import re

import pytest
from finished_runs import run_of, runs_of
from rich.console import Console

from hellora.comparing.latex import as_latex, escaped
from hellora.comparing.runs import Cell
from hellora.comparing.statistics import numbers, rows_of
from hellora.comparing.table import (
    as_csv,
    as_markdown,
    as_table,
    cell_text,
    footnotes,
    frame,
    group_headings,
    headings,
    on_screen,
)

T2, T1 = 4.302652729911275, 12.706204736432095  # Student's t, 0.975, of 2 degrees of freedom and of 1


def test_marks() -> None:
    runs = runs_of(
        {
            ("iid", "better"): [0.61, 0.71, 0.81],
            ("iid", "random_layers"): [0.60, 0.70, 0.80],
            ("iid", "noisy"): [0.90, 0.40, 0.79],
            ("alone", "better"): [0.2, 0.3, 0.4],
        }
    )
    rows = {(row.setting, row.method): row for row in rows_of(runs)}
    assert {key: (row.best, row.like_best, row.above_reference) for key, row in rows.items()} == {
        ("iid", "better"): (True, None, True),
        ("iid", "random_layers"): (False, False, None),
        ("iid", "noisy"): (False, True, False),
        ("alone", "better"): (False, None, None),
    }
    assert cell_text(rows["iid", "better"], "accuracy") == "0.710 ± 0.248"  # t · 0.1 / √3
    assert re.fullmatch(r"≈ 0\.697 ± .*\*", cell_text(rows["iid", "noisy"], "accuracy"))
    assert sum("not distinguishable from the best" in note for note in footnotes(list(rows.values()))) == 1
    assert sum("not above random_layers" in note for note in footnotes(list(rows.values()))) == 1
    assert not any("random_layers" in note for note in footnotes([rows["iid", "better"]]))


def test_of_one_seed_nothing_is_said_about_differences() -> None:
    rows = rows_of(runs_of({("iid", "a"): [0.2], ("iid", "random_layers"): [0.3]}))
    assert [(row.best, row.above_reference) for row in rows] == [(False, None), (True, None)]
    assert [cell_text(row, "accuracy") for row in rows] == ["0.200", "0.300"]
    assert [row.values["accuracy"].half for row in rows] == [None, None]


def test_a_lower_loss_is_better() -> None:
    runs = runs_of({("x", "a"): [1.0, 1.1], ("x", "random_layers"): [2.0, 2.1]}, metric="loss", worst=None)
    a, reference = rows_of(runs)
    assert (a.best, a.above_reference, reference.best, reference.like_best) == (True, True, False, False)
    assert list(headings([a, reference])) == ["loss", "uplink_bytes", "downlink_bytes", "seconds", "rounds", "n"]


def test_models_of_clients_own_are_not_compared_with_the_global_one() -> None:
    runs = runs_of({("x", "a"): [0.5, 0.6], ("x", "random_layers"): [0.4, 0.5]})
    runs |= runs_of({("x", "own"): [0.9, 0.9]}, evaluated_on="the clients' held-out examples")
    rows = rows_of(runs)
    assert [(row.method, row.best, row.above_reference) for row in rows] == [
        ("a", True, True),
        ("random_layers", False, None),
        ("own", False, None),
    ]
    assert cell_text(rows[2], "accuracy") == "0.900 ± 0.000†"
    assert any(note.startswith("†") for note in footnotes(rows))


def test_groups_are_headed_by_what_tells_them_apart() -> None:
    rows = rows_of({Cell("x", "a", 0): run_of([0.5], groups={1: 0.4, 4: 0.5})})
    assert [text for name, text in headings(rows).items() if name.startswith("group")] == ["1 layer", "4 layers"]
    rows = rows_of({Cell("x", "a", 0): run_of([0.5], groups={4: 0.5})})
    assert not any(name.startswith("group") for name in headings(rows))  # it would be the accuracy again
    rows = rows_of({Cell("x", "a", 0): run_of([0.5], groups={1: 0.5, 4: 0.5})})
    assert not any(name.startswith("group") for name in headings(rows)), "everybody receives the same model"


def test_groups_with_and_without_a_budget_in_bytes_stand_beside_each_other() -> None:
    assert group_headings(["group 1 layer, rank 8, 1.0 GiB", "group 1 layer, rank 8", "group 2 layers, rank 8"]) == {
        "group 1 layer, rank 8, 1.0 GiB": "1 layer, 1.0 GiB",
        "group 1 layer, rank 8": "1 layer",
        "group 2 layers, rank 8": "2 layers",
    }
    assert group_headings(["group 1 layer, rank 8, 1.0 GiB", "group 1 layer, rank 8"]) == {
        "group 1 layer, rank 8, 1.0 GiB": "1.0 GiB",
        "group 1 layer, rank 8": "1 layer, rank 8",
    }


# -------------------------------------------------------------------------------------------------------- what is shown


def test_the_table_in_each_form() -> None:
    runs = runs_of({("iid", "a"): [0.5, 0.7], ("iid", "random_layers"): [0.7, 0.4]}, groups={2: 0.4, 4: 0.6})
    rows = rows_of(runs, tuned={("iid", "a"): {"train.lr": 0.01}})
    notes = footnotes(rows, ["a remark"])
    assert as_markdown(rows, notes).startswith(
        "## iid\n\n"
        "| method | accuracy | worst client | best − worst | 2 layers | 4 layers "
        "| up | down | s | rounds | tuned | n |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
        "| a | **0.600 ± 1.271\\*** | 0.250 ± 0.000 | 0.500 ± 0.000 | 0.400 ± 0.000 | 0.600 ± 0.000 | 10 B "
        "| 30 B | 0 | 1 | train.lr 0.01 | 2 |\n"
        "| random_layers | ≈ 0.550 ± 1.906 |"
    )
    assert "\n- \\* not above random_layers" in as_markdown(rows, notes)
    assert as_markdown(rows, notes).endswith("\n- a remark\n")
    first, second = csv.DictReader(io.StringIO(as_csv(rows)))
    assert (first["setting"], first["method"], first["n"], first["tuned"]) == ("iid", "a", "2", "train.lr=0.01")
    assert float(first["accuracy"]) == pytest.approx(0.6)
    assert float(first["accuracy ±"]) == pytest.approx(T1 * 0.1)
    assert (first["uplink_bytes"], first["best"], first["above random_layers"]) == ("10.0", "True", "False")
    assert second["above random_layers"] == ""
    table = json.loads(json.dumps(as_table(rows, notes, {"cells/iid/b/seed-0": "why"})))
    assert table["rows"][0]["values"]["accuracy"] == {"mean": 0.6, "half": pytest.approx(T1 * 0.1), "n": 2, "never": 0}
    assert table["rows"][0]["seeds"] == [0, 1]
    assert table["failed"] == {"cells/iid/b/seed-0": "why"}


def test_the_table_is_a_frame_too() -> None:
    curves = {"sure": ([0.8], [0.9]), "lucky": ([0.8], [0.2])}
    runs = {Cell("iid", m, seed): run_of(values) for m, each in curves.items() for seed, values in enumerate(each)}
    rows = rows_of(runs, target=0.75)
    table = frame(rows).set_index("method")
    assert table.loc["sure", "accuracy"] == pytest.approx(0.85)
    assert table["reached"].tolist() == [2, 1]
    assert table.loc["sure", "bytes_to_target"] == 40
    assert math.isnan(table.loc["lucky", "rounds_to_target"]), "not the mean of the lucky seed"
    assert cell_text(rows[1], "rounds_to_target") == "≥ 1 (1 of 2)"
    assert cell_text(rows[0], "bytes_to_target") == "40 B ± 0 B"
    assert [row["reached"] for row in csv.DictReader(io.StringIO(as_csv(rows)))] == ["2", "1"]
    assert list(headings(rows).values())[3:5] == ["rounds to target", "bytes to target"]
    assert as_csv([]).startswith("setting,method,n,")


def test_latex_is_methods_by_settings() -> None:
    values = {("iid", "a_b"): [0.61, 0.71, 0.81], ("iid", "noisy"): [0.90, 0.40, 0.79], ("iid", "low"): [0.1, 0.2, 0.3]}
    rows = rows_of(runs_of({**values, ("skewed&", "a_b"): [0.2, 0.3, 0.4]}), target=0.5)
    text = as_latex(rows, ["100 % sure"])
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert comments[-1] == "% 100 % sure"
    results, costs = text.split("\n", len(comments))[-1].split("\n\n")
    assert results.splitlines() == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & iid & skewed\& \\",
        r"\midrule",
        r"a\_b & $\mathbf{0.710 \pm 0.248}$ & $0.300 \pm 0.248$ \\",
        r"noisy & $\underline{0.697 \pm 0.653}$ & -- \\",
        r"low & $0.200 \pm 0.248$ & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert r"\multicolumn{3}{l}{\emph{skewed\&}} \\" in costs
    with_reference = rows_of(runs_of({("iid", "a"): [0.5, 0.7], ("iid", "random_layers"): [0.7, 0.4]}))
    text = as_latex(with_reference, footnotes(with_reference))
    assert r"a & $\mathbf{0.600 \pm 1.271}^{*}$ \\" in text
    assert "% underlined: not distinguishable from the best" in text
    assert "% * not above random_layers" in text
    assert r"noisy & $\geq$ 1 (2 of 3) & $\geq$ 40 B (2 of 3) \\" in costs
    assert escaped("\\ ~^{x}$") == r"\textbackslash{} \textasciitilde{}\textasciicircum{}\{x\}\$"


def test_the_best_mean_is_bold_on_screen() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="standard")
    for table in on_screen(rows_of(runs_of({("iid", "a"): [0.5], ("iid", "b"): [0.7]})), console):
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    assert re.search(r"\x1b\[1m *0\.700", text)
    assert not re.search(r"\x1b\[1m *0\.500", text)


def test_a_narrow_screen_has_whole_names_and_says_which_columns_have_no_room() -> None:
    name = "a_method_with_a_long_name"
    rows = rows_of(runs_of({("iid", name): [0.5, 0.7], ("iid", "b"): [0.7, 0.8]}, groups={2: 0.4, 4: 0.6}), target=0.6)
    for width in (120, 80, 40):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        for table in on_screen(rows, console):
            console.print(table)
        file = console.file
        assert isinstance(file, io.StringIO)
        lines = file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert sum(name in line and "≈ 0.600 ± 1.271" in line for line in lines) == (width > 40)
        assert "…" not in file.getvalue()
        assert ("≥ 1 (1 of 2)" in file.getvalue()) == (width > 40)
        assert any(line.startswith("no room for: rounds, s, down") for line in lines)


def test_the_peak_is_the_most_that_any_client_held() -> None:
    run = run_of([0.2, 0.4], peaks={0: 3000, 4: 500})
    assert numbers(run)["peak_bytes"] == 3000
    rows = rows_of({Cell("iid", "a", 0): run})
    assert "| peak |" in as_markdown(rows, [])
    assert "| 2.9 KiB |" in as_markdown(rows, [])


def test_metrics_that_were_asked_for_have_columns_behind_the_main_one() -> None:
    runs = runs_of({("iid", "a"): [0.5, 0.7]})
    for run, value in zip(runs.values(), (0.2, 0.4), strict=True):
        vars(run)["summary"] = {
            **run.summary,
            "asked_metrics": ["matthews"],
            "final": {"accuracy": 0.5, "matthews": value},
        }
    (row,) = rows_of(runs)
    assert list(headings([row]).values())[:2] == ["accuracy", "Matthews' φ"]
    assert cell_text(row, "matthews") == "0.300 ± 1.271"  # t · 0.1 of two
