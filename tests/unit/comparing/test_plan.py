"""What is compared: both ways of saying it, the order in which settings are laid over the base, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest

from hellora.comparing.options import parse_named, parse_values
from hellora.comparing.plan import Comparison, Tuning, read_comparison
from hellora.comparing.runs import Cell
from hellora.comparing.sweep import swept_settings
from hellora.core.errors import InputError
from hellora.experiments.config import read_experiment

FILE = """\
base = "quickstart"
seeds = [3, 4]

[experiment]
rounds = 2
train.batch_size = 8

[methods.layers]
"method.allocator" = "geometric"
"method.pattern" = "triangle"

[methods.papers]
preset = "vit_cifar100"
method.warmup = 7

[settings.iid]
"data.partitioner" = "iid"

[settings.skewed]
"data.alpha" = 0.1
"""
TUNE = """
[tune]
grid = {"train.lr" = [1e-3, 1e-2], "train.epochs" = [1, 2]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_text(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write_text


def table_of(comparison: Comparison, setting: str, method: str, **point: Any) -> dict[str, Any]:
    return comparison.of(Cell(setting, method, 3), point).table


def test_a_file_is_methods_by_settings_by_seeds(write: Any) -> None:
    comparison = read_comparison(write(FILE), {})
    assert [(cell.seed, cell.setting, cell.method) for cell in comparison.cells] == [
        (seed, setting, method) for seed in (3, 4) for setting in ("iid", "skewed") for method in ("layers", "papers")
    ]
    assert (comparison.tuning_cells, comparison.points, comparison.tuning_runs) == ([], [{}], 0)
    changes = {"seed": 3, "rounds": 2, "train.batch_size": 8, "data.partitioner": "iid"}
    method = {"method.allocator": "geometric", "method.pattern": "triangle"}
    assert table_of(comparison, "iid", "layers") == read_experiment("quickstart", {**changes, **method}).table


def test_a_preset_gives_its_method_and_training_alone(write: Any) -> None:
    comparison = read_comparison(write(FILE), {})
    table, preset = table_of(comparison, "skewed", "papers"), read_experiment("vit_cifar100").table
    base = read_experiment("quickstart", {"rounds": 2, "seed": 3, "data.alpha": 0.1}).table
    assert table["method"] == {**preset["method"], "warmup": 7}
    assert table["train"] == {**base["train"], **preset["train"]}
    assert {k: v for k, v in table.items() if k not in ("method", "train")} == {
        k: v for k, v in base.items() if k not in ("method", "train")
    }


def test_a_preset_on_another_methods_preset_is_that_method_too(tmp_path: Path) -> None:
    """hetlora stands on the quickstart; what stands on hetlora keeps its method, and changes what it says."""
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "hetlora"\n[train]\nlr = 5e-3\n')
    comparison = Comparison(
        {"fleet": {"ranks": [2, 8]}}, {"mine": {"preset": str(mine)}, "theirs": {"preset": "hetlora"}}
    )
    of_mine, theirs = (comparison.of(Cell("base", name, 0), {}) for name in ("mine", "theirs"))
    assert of_mine.method == theirs.method
    assert of_mine.table["method"]["allocator"] == "self_pruning"
    assert of_mine.table["method"]["local_training"] == ["hetlora"]
    assert (of_mine.train.lr, of_mine.table["method"]["tail_penalty"]) == (5e-3, 1e-3)


@pytest.mark.parametrize("key", ["seed", "data.validation", "data.evaluate_on"])
def test_a_grid_cannot_set_what_the_comparison_sets(key: str) -> None:
    comparison = Comparison({}, {"plain": {}}, tune=Tuning({key: (1, 2)}))
    with pytest.raises(InputError, match=f"{key} is set more than once"):
        comparison.check()


@pytest.mark.parametrize("texts", [["a=train.lr=1e-3", "a=train.lr=2e-2"], ["a=preset=fedit,preset=rbla"]])
def test_what_is_named_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="given twice: leave one out"):
        parse_named("--method", texts)


def test_tuned_values_and_the_split_that_they_are_chosen_on(write: Any) -> None:
    comparison = read_comparison(write(FILE + TUNE), {})
    assert comparison.points == [{"train.lr": lr, "train.epochs": epochs} for lr in (1e-3, 1e-2) for epochs in (1, 2)]
    assert {cell.seed for cell in comparison.tuning_cells} == {3}
    assert comparison.tuning_runs == 4 * 4
    cell, point = Cell("iid", "layers", 3), {"train.lr": 0.5}
    test, tuning = comparison.of(cell, point), comparison.of(cell, point, "validation")
    assert test.train.lr == tuning.train.lr == 0.5
    assert test.data.validation == tuning.data.validation == 0.1
    assert (test.data.evaluate_on, tuning.data.evaluate_on) == ("test", "validation")


def test_the_seeds_of_a_tuning_are_its_own_then_those_begun_with_then_the_first(write: Any) -> None:
    plain, tuned = (read_comparison(write(FILE + end), {}) for end in ("", TUNE))
    own = read_comparison(write(FILE + TUNE + "seeds = [8]\n"), {})
    for comparison, begun, expected in ((tuned, (), (3,)), (tuned, (9, 7), (9, 7)), (own, (9,), (8,))):
        settled = comparison.with_tuning_seeds(begun)
        assert {cell.seed for cell in settled.tuning_cells} == set(expected)
        assert settled.tune is not None
        assert settled.tune.seeds == expected
        assert settled.cells == comparison.cells
    assert plain.with_tuning_seeds((9,)) == plain


def test_a_command_line_says_the_same_as_a_file(write: Any) -> None:
    changes = {
        "experiment": {"rounds": 2, "train.batch_size": 8},
        "methods": parse_named(
            "--method",
            [
                "layers=method.allocator=geometric, method.pattern=triangle",
                "papers=preset=vit_cifar100,method.warmup=7",
            ],
        ),
        "settings": parse_named("--setting", ["iid=data.partitioner=iid", "skewed=data.alpha=0.1"]),
        "seeds": [3, 4],
        "tune": {"grid": parse_values("--tune", ["train.lr=1e-3,1e-2", "train.epochs=1,2"])},
    }
    by_line, by_file = read_comparison("quickstart", changes), read_comparison(write(FILE + TUNE), {})
    tables = [[c.of(cell, point).table for cell in c.cells for point in c.points] for c in (by_line, by_file)]
    assert tables[0] == tables[1]


def test_a_sweep_is_settings_in_their_order(write: Any) -> None:
    """One value stands for all groups of clients, however many a method has; read again, it is the same."""
    sweep = """
[sweep]
"fleet.availability" = [1.0, 0.7]
data.min_examples = [1, 2]
"""
    comparison = read_comparison(write(FILE + sweep), {"methods": {"layers": {"fleet.layers": [1, 2, 3]}}})
    names = ["availability-1.0", "availability-0.7", "min_examples-1", "min_examples-2"]
    assert list(comparison.settings) == ["iid", "skewed", *names]
    assert comparison.of(Cell(names[1], "layers", 3), {}).fleet.availability == (0.7, 0.7, 0.7)
    assert comparison.of(Cell(names[1], "papers", 3), {}).fleet.availability == (0.7, 0.7, 0.7)
    assert comparison.of(Cell(names[3], "papers", 3), {}).table["data"]["min_examples"] == 2
    assert read_comparison(write(comparison.to_toml()), {}) == comparison
    alone = read_comparison("quickstart", {"methods": {"a": {}}, "sweep": {"data.alpha": [1, 0.1]}})
    assert list(alone.settings) == ["alpha-1", "alpha-0.1"]
    fleet = {"fleet.speed": [1e9] * 3, "fleet.link": ["1MB/s"] * 3}
    late = read_comparison("quickstart", {"methods": {"a": fleet}, "sweep": {"deadline": [60, 5]}})
    assert [late.of(cell, {}).run.deadline for cell in late.cells[:2]] == [60, 5]
    both = swept_settings({"data.alpha": [1], "model.alpha": [[1, 2]]})
    assert [list(settings) for settings in both.values()] == [["data.alpha-1"], ["model.alpha-1-2"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sweep": {"data.alpha": 0.1}}, "sweep: data.alpha must be a list of values, such as"),
        ({"sweep": {"data.alpha": [0.1, 0.1]}}, "sweep: data.alpha has a value twice"),
        ({"sweep": {"data.alhpa": [0.1]}}, "unknown setting data.alhpa"),
        ({"sweep": {"data.alpha": [1]}, "methods": {"a": {"data.alpha": 2}}}, "data.alpha is set more than once"),
        ({"sweep": {"data.alpha": [1]}, "settings": {"alpha-1": {}}}, "settings.alpha-1 has the name of a value of"),
        ({"target": 0.5, "budget": "uplink"}, "target asks what whole runs cost, and budget cuts runs short"),
        ({"target": "high"}, "target: Input should be a valid number"),
    ],
)
def test_a_sweep_or_target_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        read_comparison("quickstart", {"methods": {"a": {}}, **changes})


def test_options_change_a_file(write: Any) -> None:
    changes = {
        "methods": {"layers": {}, "third": {"method.head": "frozen"}},
        "experiment": {"rounds": 9},
        "seeds": [5],
        "budget": 1000,
    }
    comparison = read_comparison(write(FILE), changes)
    assert list(comparison.methods) == ["layers", "papers", "third"]
    assert (comparison.methods["layers"], comparison.seeds, comparison.budget) == ({}, (5,), 1000)
    assert table_of(comparison, "iid", "layers")["method"]["allocator"] == "fed_hello"  # the base as it is
    assert table_of(comparison, "iid", "layers")["rounds"] == 9
    assert table_of(comparison, "iid", "layers")["train"]["batch_size"] == 8


def test_without_settings_and_seeds_the_base_and_three(write: Any) -> None:
    comparison = read_comparison("quickstart", {"methods": {"plain": {}}})
    assert (list(comparison.settings), comparison.seeds, comparison.budget) == (["base"], (0, 1, 2), None)
    inline = write("[methods.a]\n[experiment]\ncohort = 2\n[experiment.data]\nclients = 3\n")
    assert table_of(read_comparison(inline, {}), "base", "a")["data"]["clients"] == 3


def test_what_is_written_out_reads_back_the_same(write: Any, tmp_path: Path) -> None:
    comparison = read_comparison(write('budget = "uplink"\n' + FILE + TUNE), {})
    path = tmp_path / "again.toml"
    path.write_text(comparison.to_toml())
    assert read_comparison(str(path), {}) == comparison
    assert "quickstart" not in path.read_text()


def test_commas_inside_values_and_strings_without_quotes() -> None:
    assert parse_named("--method", ["a=fleet.layers=[1, 2],train.lr=1e-3,method.allocator=geometric", "b="]) == {
        "a": {"fleet.layers": [1, 2], "train.lr": 1e-3, "method.allocator": "geometric"},
        "b": {},
    }
    assert parse_values("--tune", ["method.pattern=triangle,uniform", "cohort=1,2"]) == {
        "method.pattern": ["triangle", "uniform"],
        "cohort": [1, 2],
    }
    assert parse_values("--tune", ["fleet.layers=[1, 2],[2, 4]"]) == {"fleet.layers": [[1, 2], [2, 4]]}


@pytest.mark.parametrize("text", ["random_layers", "a=geometric", "a==1"])
def test_a_method_that_is_not_written_as_one(text: str) -> None:
    with pytest.raises(InputError, match=r"--method .*: write it as name=section\.key=value,section\.key=value"):
        parse_named("--method", [text])


@pytest.mark.parametrize("text", ["train.lr", "train.lr=", "=1,2"])
def test_a_grid_that_is_not_written_as_one(text: str) -> None:
    with pytest.raises(InputError, match=r"--tune .*: write it as section\.key=value,value"):
        parse_values("--tune", [text])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": {"c": {"method.allocator": "fed_helo"}}},
            "method c, setting iid: method.allocator: there is no allocator 'fed_helo'",
        ),
        ({"settings": {"c": {"data.alhpa": 1}}}, "method layers, setting c: unknown setting data.alhpa"),
        ({"methods": {"c": {"cohort": 21}}}, "method c, setting iid: cohort = 21 is more than data.clients = 20"),
        ({"methods": {"c": {"seed": 1}}}, "seed is set more than once"),
        (
            {"methods": {"c": {"data.partitioner": "iid"}}},
            "method c, setting iid: data.partitioner is set more than once",
        ),
        ({"methods": {"c": {"preset": "quickstrat"}}}, "no preset or file 'quickstrat': did you mean 'quickstart'"),
        ({"methods": {"c": {"preset": 3}}}, "preset must be the name of a preset or file, not 3"),
        ({"methods": {"c": {"train.lr": 1}}, "tune": {"grid": {"train.lr": [1]}}}, "train.lr is set more than once"),
        ({"tune": {"grid": {"train.lr": [1e-3, -1]}}}, "lr must be greater than 0, not -1"),
        ({"tune": {"grid": {"train.lrr": [1]}}}, "unknown setting train.lrr"),
        ({"tune": {"grid": {"train.lr": []}}}, "tune: grid must name settings and the values to try"),
        ({"tune": {"grid": {"train.lr": 0.1}}}, "tune.grid is a list: write tune.grid = [0.1]"),
        ({"tune": {"seeds": [1]}}, "tune.grid is missing"),
        ({"tune": {"grid": {"train.lr": [1]}, "validation": 0}}, "validation must be between 0 and 1, not 0"),
        ({"tune": {"grid": {"train.lr": [1]}, "splits": 2}}, "unknown setting tune.splits"),
        ({"methods": {"../c": {}}}, "'../c' must also name a folder"),
        ({"settings": {"a/b": {}}}, "'a/b' must also name a folder"),
        ({"seeds": [0, 0]}, "seeds must be one or more, each once"),
        ({"seeds": []}, "seeds must be one or more, each once"),
        ({"seeds": ["one"]}, "seeds: Input should be a valid integer, not"),
        ({"budget": "downlink"}, "budget must be 'uplink' or a whole number of bytes, not 'downlink'"),
        ({"budget": 1.5}, "budget must be 'uplink' or a whole number of bytes, not 1.5"),
        ({"budget": 0}, "budget must be 'uplink' or a whole number of bytes, not 0"),
        ({"methods": {"c": 3}}, "methods: Input should be"),
    ],
)
def test_what_is_refused_before_anything_runs(write: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as info:
        read_comparison(write(FILE), changes)
    assert message in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [0]\n", "there is no method to compare: give --method NAME=SECTION.KEY=VALUE"),
        ("methods = 3\n", "methods must be a table: write [methods]"),
        ("seed = [0]\n[methods.a]\n", "unknown setting seed: did you mean 'seeds'?"),
        ("base = 3\n[methods.a]\n", "base must be the name of a preset or file, not 3"),
        ('base = "quickstrat"\n[methods.a]\n', "no preset or file 'quickstrat'"),
    ],
)
def test_a_file_that_is_refused(write: Any, text: str, message: str) -> None:
    with pytest.raises(InputError) as info:
        read_comparison(write(text), {})
    assert message in str(info.value)


def test_a_grid_is_every_combination() -> None:
    assert Tuning({"a.b": (1, 2), "c": ("x",)}).points() == [{"a.b": 1, "c": "x"}, {"a.b": 2, "c": "x"}]
