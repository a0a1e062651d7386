"""Which runs are one group, what it is called, and what the comparison says of it."""

import json
import shutil
from pathlib import Path

import pytest
import tomli_w
from run_folders import TABLE, ended_run, line, summary_of, write_run

from hellora.comparing.statistics import CLIENTS_OWN
from hellora.core.errors import InputError
from hellora.reporting.several import page_of_several, run_folders, settings_of

T = 12.706204736432095  # Student's t(0.975, 1)
RANDOM = {**TABLE["method"], "allocator": "random_layers"}  # type: ignore[dict-item]


def comparison(folder: Path) -> Path:
    """Two settings × two methods × two seeds, each cell with an accuracy of its own."""
    folder.mkdir(parents=True)
    table = {"settings": {"skewed": {}, "iid": {}}, "methods": {"random_layers": {}, "mine": {}}}
    (folder / "comparison.toml").write_text(tomli_w.dumps(table))
    for s, setting in enumerate(("skewed", "iid")):
        for m, method in enumerate(("random_layers", "mine")):
            for seed in (0, 1):
                accuracy = 0.2 + 0.2 * s + 0.3 * m + 0.02 * seed
                ended_run(folder / "cells" / setting / method / f"seed-{seed}", [0.1, accuracy], seed=seed)
    return folder


def test_runs_that_differ_in_their_seed_are_one_group_named_by_what_differs(tmp_path: Path) -> None:
    folders = [
        ended_run(tmp_path / "a", seed=1),
        ended_run(tmp_path / "b", seed=0, compute={"threads": 2}),
        ended_run(tmp_path / "c", method=RANDOM),
    ]
    (groups,) = settings_of(folders).values()
    assert {name: [run.name for run in runs] for name, runs in groups.items()} == {
        "allocator fed_hello": ["b", "a"],
        "allocator random_layers": ["c"],
    }


def test_seeds_alone_are_one_group_named_by_the_first(tmp_path: Path) -> None:
    (groups,) = settings_of([ended_run(tmp_path / f"seed-{seed}", seed=seed) for seed in (0, 1)]).values()
    assert list(groups) == ["seed-0"]


def test_many_differences_make_no_name(tmp_path: Path) -> None:
    others = {"rounds": 9, "cohort": 1, "min": 1, "max": 2}
    (groups,) = settings_of([ended_run(tmp_path / "a"), ended_run(tmp_path / "b", **others)]).values()
    assert list(groups) == ["a", "b"]


def test_two_groups_of_one_name_stay_two(tmp_path: Path) -> None:
    others = {"rounds": 9, "cohort": 1, "min": 1, "max": 2}
    (groups,) = settings_of([ended_run(tmp_path / "a" / "run"), ended_run(tmp_path / "b" / "run", **others)]).values()
    assert list(groups) == ["run", "run (2)"]


def test_the_same_run_twice_would_count_twice(tmp_path: Path) -> None:
    a, b = (ended_run(tmp_path / name / "run") for name in "ab")
    with pytest.raises(InputError, match=f"{a} and {b} have the same settings and seed"):
        settings_of([a, b])
    cell = run_folders([comparison(tmp_path / "cmp")])[0]
    with pytest.raises(InputError, match="have the same settings and seed"):
        settings_of([cell, cell / ".." / cell.name])


def test_methods_of_one_name_in_two_comparisons_stay_apart(tmp_path: Path) -> None:
    """Their runs could differ in anything, and their seeds could be unequal, so that nothing would tell them apart."""
    first, second, third = (comparison(tmp_path / name) for name in ("x/first", "x/second", "y/first"))
    for seed in (0, 1):
        (second / f"cells/iid/mine/seed-{seed}").rename(second / f"cells/iid/mine/seed-{seed + 2}")
    methods = {setting: list(groups) for setting, groups in settings_of(run_folders([first, second])).items()}
    names = [f"{method} of {name}" for name in ("first", "second") for method in ("random_layers", "mine")]
    assert methods == {"skewed": names, "iid": names}
    groups = settings_of(run_folders([first, third]))["iid"]
    assert list(groups) == [
        "random_layers of first",
        "mine of first",
        "random_layers of first (2)",
        "mine of first (2)",
    ]
    assert [len(runs) for runs in groups.values()] == [2, 2, 2, 2]


def test_a_comparison_s_cells_are_in_its_own_order(tmp_path: Path) -> None:
    folders = run_folders([comparison(tmp_path / "cmp")])
    names = [f"{folder.parents[1].name}/{folder.parent.name}/{folder.name}" for folder in folders]
    assert names == [
        f"{setting}/{method}/seed-{seed}"
        for setting in ("skewed", "iid")
        for method in ("random_layers", "mine")
        for seed in (0, 1)
    ]
    by_setting = settings_of(folders)
    assert {setting: list(groups) for setting, groups in by_setting.items()} == {
        "skewed": ["random_layers", "mine"],
        "iid": ["random_layers", "mine"],
    }


def test_a_comparison_without_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comparison.toml").write_text("")
    with pytest.raises(InputError, match="no run of this comparison has begun"):
        run_folders([tmp_path])


def test_the_end_has_means_and_intervals_as_compare_has_them(tmp_path: Path) -> None:
    page = page_of_several(run_folders([comparison(tmp_path / "cmp")]))
    sections = {section.id: section for section in page.sections}
    of_each = [f"{id}-{setting}" for setting in ("skewed", "iid") for id in ("accuracy", "loss")]
    assert list(sections) == ["end", "differences", *of_each]
    assert sections["end"].open
    views = {view.label: view for view in sections["end"].views}
    figure = views["accuracy"].figure
    assert figure.layout.yaxis.ticktext == (
        "<b>skewed</b>",
        "random_layers",
        "mine",
        "<b>iid</b>",
        "random_layers",
        "mine",
    )
    random, mine = figure.data  # a trace, and with it a colour, for each method
    assert (random.name, random.y, mine.name, mine.y) == ("random_layers", (1, 4), "mine", (2, 5))
    assert (random.x, mine.x) == (pytest.approx((0.21, 0.41)), pytest.approx((0.51, 0.71)))
    assert random.error_x.array == pytest.approx((T * 0.01, T * 0.01))
    assert (random.marker.symbol, mine.marker.symbol) == (("circle-open",) * 2, ("star",) * 2)
    assert [trace.x[0] for trace in views["kept of iid"].figure.data] == pytest.approx(
        [(0.2 / 0.4 + 0.22 / 0.42) / 2, (0.5 / 0.7 + 0.52 / 0.72) / 2]
    )
    assert views["worst client"].figure.data[0].x == (0.25, 0.25)
    assert views["up"].figure.data[0].x == (200, 200)
    assert {"1 layer", "2 layers", "down", "seconds"} <= views.keys()
    table = views["accuracy"].table
    assert table.columns[:3] == ["setting", "method", "accuracy"]
    assert table.rows[1][:3] == ["skewed", "mine", "★ 0.510 ± 0.127"]
    assert any("Student" in note for note in page.notes)


def test_a_method_has_one_colour_everywhere(tmp_path: Path) -> None:
    """Also where a setting lacks the first method: its colour stays free."""
    folder = comparison(tmp_path / "cmp")
    for seed in (0, 1):
        shutil.rmtree(folder / f"cells/iid/random_layers/seed-{seed}")
    page = page_of_several(run_folders([folder]))
    found: dict[str, set[int]] = {"random_layers": set(), "mine": set()}
    for section in page.sections:
        for view in section.views:
            for trace in view.figure.data:
                found[trace.name.removesuffix(", 95 %")].add(trace.meta["colour"])
    assert found == {"random_layers": {0}, "mine": {1}}


def test_differences_are_paired_and_to_the_method_that_is_chosen(tmp_path: Path) -> None:
    sections = {
        section.id: section for section in page_of_several(run_folders([comparison(tmp_path / "cmp")])).sections
    }
    views = {view.label: view for view in sections["differences"].views}
    assert list(views) == ["to random_layers", "to mine"]
    (mine,) = views["to random_layers"].figure.data
    assert (mine.x, mine.error_x.array) == (pytest.approx((0.3, 0.3)), pytest.approx((0, 0), abs=1e-9))
    assert views["to random_layers"].figure.layout.xaxis.zeroline
    assert [row[-1] for row in views["to mine"].table.rows] == ["worse", "worse"]


def test_the_page_of_a_comparison_knows_what_was_asked(tmp_path: Path) -> None:
    """Skew is swept, a target is given, and the notes of the table are the page's."""
    folder, names = tmp_path / "cmp", ["alpha-1.0", "alpha-0.1"]
    folder.mkdir()
    table = {"settings": {name: {} for name in names}, "methods": {"a": {}, "b": {}}, "target": 0.45}
    (folder / "comparison.toml").write_text(tomli_w.dumps({**table, "sweep": {"data.alpha": [1.0, 0.1]}}))
    (folder / "table.json").write_text(json.dumps({"notes": ["tuned: the best", "not complete: 1 of 9"]}))
    for i, setting in enumerate(names):
        for m, method in enumerate("ab"):
            for seed in (0, 1):
                accuracies = [0.2, 0.5 - 0.1 * i + 0.01 * seed * m]
                ended_run(folder / "cells" / setting / method / f"seed-{seed}", accuracies, seed=seed)
    page = page_of_several(run_folders([folder]))
    sections = {section.id: section for section in page.sections}
    chart = sections["sweep-data.alpha"].views[0].figure
    lines = [trace for trace in chart.data if "band" not in trace.meta]
    assert [(line.name, line.x) for line in lines] == [("a", (0, 1)), ("b", (0, 1))]
    assert lines[0].y == pytest.approx((0.5, 0.4))
    assert chart.layout.xaxis.ticktext == ("1.0", "0.1")
    cost = {view.label: view.figure for view in sections["end"].views}["rounds to target"]
    assert [trace.marker.symbol for trace in cost.data] == [("circle", "triangle-right-open")] * 2
    assert ("target", "0.45") in page.facts
    assert "tuned: the best" in page.notes
    assert not any(note.startswith("not complete") for note in page.notes)


def test_runs_that_have_not_ended_are_in_the_curves_only(tmp_path: Path) -> None:
    folders = [ended_run(tmp_path / "a"), write_run(tmp_path / "b", [line(0)], method=RANDOM)]
    page = page_of_several(folders)
    end, accuracy, _ = page.sections
    assert [trace.name for trace in end.views[0].figure.data] == ["allocator fed_hello"]
    assert [trace.name for trace in accuracy.views[0].figure.data] == ["allocator fed_hello", "allocator random_layers"]
    assert any("Runs that have not ended are in the curves" in note for note in page.notes)
    assert not page_of_several(folders[1:]).sections[0].views


def test_models_of_clients_own_are_marked(tmp_path: Path) -> None:
    folder = ended_run(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    summary["data"]["evaluated_on"] = CLIENTS_OWN
    (folder / "summary.json").write_text(json.dumps(summary))
    page = page_of_several([folder, ended_run(tmp_path / "b", method=RANDOM)])
    assert page.sections[0].views[0].figure.layout.yaxis.ticktext == (
        "allocator fed_hello †",
        "allocator<br>random_layers",
    )


def test_bars_end_where_their_metric_does(tmp_path: Path) -> None:
    """Of accuracies 0.2 and 0.8, Student's interval is 0.5 ± 3.8; losses are 0.8 and 0.2, with no upper end."""
    page = page_of_several([ended_run(tmp_path / f"{seed}", [a], seed=seed) for seed, a in enumerate((0.2, 0.8))])
    views = {view.label: view.figure.data[0].error_x for view in page.sections[0].views}
    assert (views["accuracy"].array, views["accuracy"].arrayminus) == ((0.5,), (0.5,))
    assert page.sections[0].views[0].table.rows[0][1] == f"0.500 ± {T * 0.3:.3f}"
    lines = [line(0, metrics={"loss": loss}) for loss in (0.2, 0.8)]
    more = {"initial": {"loss": 1.0}, "groups": [], "clients": {}, "worst_client": None}
    folders = [
        write_run(tmp_path / f"l{seed}", [each], summary=summary_of([each], **more), seed=seed)
        for seed, each in enumerate(lines)
    ]
    loss = page_of_several(folders).sections[0].views[0].figure.data[0].error_x
    assert (loss.array, loss.arrayminus) == (pytest.approx((T * 0.3,)), (0.5,))
