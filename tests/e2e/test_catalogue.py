"""What there is to name: `hellora list` and `hellora show`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import pytest
from pages import ROOT
from refusals import check_refusal

from hellora.experiments import catalogue
from hellora.experiments.registry import FOLDERS, KEYS, named, names
from hellora.experiments.sections import NAMING
from hellora.experiments.tables import plain

Command = Callable[..., Any]


@pytest.mark.parametrize("word", ["aggregators", "aggregator", "server-optimizers", "local_training", "presets"])
def test_list_takes_a_kind(hellora: Command, word: str) -> None:
    answer = hellora("list", word)
    kind = catalogue.kind_called(word)
    assert answer.status == 0
    assert re.findall(r"^\S.*$", answer.out, re.MULTILINE) == [catalogue.heading(kind)]
    assert re.findall(r"^  (\w+)", answer.out, re.MULTILINE) == catalogue.names(kind)


def test_an_unknown_kind_is_answered_with_all(hellora: Command) -> None:
    check_refusal(hellora("list", "agregators"), "there is no kind 'agregators': choose among presets, partitioners, ")
    check_refusal(hellora("show", "fed_hello", "--kind", "x"), "there is no kind 'x'")


def test_a_preset_is_shown_with_its_idea_and_its_settings(hellora: Command) -> None:
    out = hellora("show", "flexlora").out
    assert out.startswith("flexlora (preset)\n  FlexLoRA (Bai et al., ")
    assert "\n  Assumes: " in out
    assert "\n  Fails: " in out
    assert "\nbased on  quickstart, " in out
    assert "\ndocs      docs/methods/flexlora.md\n" in out
    assert "\n  fleet.ranks = [4, 8, 12]\n" in out
    assert hellora("show", "FlexLoRA").out == out


def test_a_preset_on_another_has_the_page_of_that_one(hellora: Command) -> None:
    out = hellora("show", "glue_rte").out
    assert "\ndocs      docs/methods/helora_pad.md\n" in out
    assert '\n  data.subset = "rte"\n' in out


def test_a_name_of_several_kinds_says_how_to_see_the_other(hellora: Command) -> None:
    preset = hellora("show", "fed_hello").out
    assert preset.startswith("fed_hello (preset)\n")
    assert "\nsee also  hellora show fed_hello --kind allocator\n" in preset
    other = hellora("show", "fed_hello", "--kind", "allocators").out
    assert other.startswith("fed_hello (allocator)\n  Draws layers by their depth")
    assert "see also" not in other


def test_a_strategy_is_shown_with_what_its_settings_take_and_mean(hellora: Command) -> None:
    out = hellora("show", "fed_hello", "--kind", "allocator").out
    assert "\nuse it    --set method.allocator=fed_hello\n" in out
    assert re.search(r"\nused by   bert_ledgar, .*\bquickstart\b", out)
    assert "\n  method.warmup = not set\n      whole number: rounds of randomized_geometric, T_RGD" in out
    assert (
        '\n  method.pattern = "bottleneck"\n      one of triangle, inverted_triangle, bottleneck, uniform: the shape'
        in out
    ), "a type that is defined in another module"


def test_what_most_presets_use_is_counted(hellora: Command) -> None:
    out = hellora("show", "plain").out
    assert re.search(r"\nused by   \d+ of the \d+ presets\n", out)
    assert "\nuse it    --set \"method.local_training=['plain']\"\n" in out


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FOLDERS for name in names(kind)])
def test_everything_can_be_shown(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "presets_with", lambda *_: [])  # which takes a look at all of them each time
    shown = catalogue.entry(name, kind)
    facts = dict(shown.facts)
    assert all(shown.text)
    assert kind in ("task", "partitioner") or (ROOT / facts["docs"]).is_file()
    assert all(setting.takes and setting.meaning and "Literal" not in setting.takes for setting in shown.settings)


@pytest.mark.parametrize("table", catalogue.TABLES)
def test_a_table_is_shown_with_every_setting_that_it_may_have(table: str) -> None:
    shown, place = catalogue.entry(table, "table"), catalogue.TABLES[table]
    names = [setting.key.rpartition(".")[2] for setting in shown.settings]
    assert names == [field.name for field in fields(named(place))]
    assert all(setting.takes and setting.meaning for setting in shown.settings)
    default = plain(asdict(named(place)()))
    written = {name: json.loads(s.value) for name, s in zip(names, shown.settings, strict=True) if s.value != "not set"}
    assert written == default


def test_the_commands_know_tables(hellora: Command) -> None:
    out = hellora("show", "train").out
    assert out.startswith("[train] (table)\n")
    assert "\n  train.batch_size = 16\n      whole number: examples per step\n" in out
    assert hellora("show", "[train]").out == out
    assert "\n  seed = 0\n" in hellora("show", "top").out
    assert (
        '\n  policy.may = ["recompute_frozen", "recompute_all", "micro_batch", "beside"]\n'
        in hellora("show", "policy").out
    )
    assert (
        "\nbesides   the settings of the server optimizer that it names: hellora list\n"
        in hellora("show", "server").out
    )


def test_each_kind_has_a_key_of_its_own() -> None:
    assert KEYS.keys() == set(NAMING.values()) == set(FOLDERS)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["flexlra"], "there is no name 'flexlra': did you mean 'flexlora' or "),
        (["ner"], "there is no name 'ner': did you mean 'token_classification'?"),
        (["zzz"], "there is no name 'zzz': `hellora list` has them all"),
        (["geometric", "--kind", "aggregator"], "there is no aggregator 'geometric': `hellora list aggregator` has"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(hellora: Command, words: list[str], advice: str) -> None:
    check_refusal(hellora("show", *words), advice)


def test_nothing_heavy_is_imported_to_show_or_list() -> None:
    path = os.pathsep.join(part for part in sys.path if part)
    code = (
        "import sys; from hellora.cli.ending import run_command; from hellora.cli.app import app\n"
        "for words in (['list'], ['show', 'flexlora'], ['show', 'dirichlet']):\n"
        "    sys.argv[1:] = words; assert run_command(app) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": path}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
