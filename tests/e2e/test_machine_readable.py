"""What commands say with --quiet and with --json, for scripts: one line, or one object."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refusals import check_refusal

Command = Callable[..., Any]


def parsed(answer: Any) -> dict[str, Any]:
    """The one object on standard output."""
    assert answer.status == 0, answer.err
    assert answer.out.count("\n") == 1
    found: dict[str, Any] = json.loads(answer.out)
    return found


def test_a_run_and_what_comes_of_it(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "quiet"
    once = ("run", small, "--set", "rounds=1")
    quiet = hellora(*once, "--out", out, "--quiet")
    assert (quiet.status, quiet.err) == (0, "")
    assert quiet.out == f"adapter: {out / 'adapter'} (its README shows how to use it)\n"
    loud = hellora(*once, "--out", out, "--resume", "--json")
    found = parsed(loud)
    assert (found["run"], found["adapter"]) == (str(out), str(out / "adapter"))
    assert {**found["summary"], "seal": "its digest"}.keys() == json.loads((out / "summary.json").read_text()).keys()
    assert "done" in loud.err
    assert "adapter: " not in loud.err, "nothing is said twice"
    exported = parsed(hellora("export", out, "--out", tmp_path / "mine", "--json"))
    assert exported == {"folder": str(tmp_path / "mine"), "merged": False}
    check_refusal(hellora(*once, "--out", out, "--json"), "holds a run already")


def test_plans(hellora: Command, small: Path) -> None:
    bare = parsed(hellora("plan", small, "--json"))
    assert (bare["round"], bare["layers"], len(bare["clients"])) == (0, 4, 3)
    assert all(len(row["ranks"]) == 4 and sum(map(bool, row["ranks"])) <= row["capacity"] for row in bare["clients"])
    budget = ("--set", 'fleet.memory=["100MiB"]', "--set", "fleet.layers=[]")
    planned = parsed(hellora("plan", small, "--json", *budget))
    assert all(row["peak_bytes"] < 100 * 2**20 for row in planned["clients"])
    assert {"budget", "policy", "uplink_bytes", "seconds"} <= planned["clients"][0].keys()


def test_a_plan_of_a_budget(hellora: Command, tiny_bert: Path) -> None:
    found = parsed(hellora("plan", "--model", tiny_bert, "--memory", "100MiB", "--rank", 4, "--json"))
    assert found["model"] == str(tiny_bert)
    assert {"triangle", "budget_value"} <= found["choices"].keys()
    assert found["choices"]["uniform"]["ranks"] == [4, 4, 4, 4]
    assert any("float32" in note for note in found["notes"])


def test_a_draft(hellora: Command, tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("\ufefftext;label\n" + "we saw, again;sea\na worm;soil\n" * 20, encoding="utf-8")
    found = parsed(hellora("init", tmp_path / "my.csv", "--out", tmp_path / "my.toml", "--json"))
    assert found["file"] == str(tmp_path / "my.toml")
    assert found["experiment"] == tomllib.loads((tmp_path / "my.toml").read_text())
    wrong = hellora("init", tmp_path / "my.csv", "--outt", "x")
    assert wrong.err.startswith(
        "error: hellora init: no such option '--outt'. Did you mean one of: '--out', '--quiet'? See "
    )


def test_what_there_is(hellora: Command) -> None:
    listed = parsed(hellora("list", "allocators", "--json"))
    assert listed["allocators"]["geometric"] == ["Trains a fixed pattern of layers for each capacity."]
    assert len(parsed(hellora("list", "--json"))) > 8
    shown = parsed(hellora("show", "flexlora", "--json"))
    assert shown["title"] == "flexlora (preset)"
    assert {"key": "fleet.ranks", "value": "[4, 8, 12]", "takes": "", "meaning": ""} in shown["settings"]
    assert shown["facts"]["run it"] == "hellora run flexlora"


def test_a_comparison(hellora: Command, small: Path, tmp_path: Path) -> None:
    words = ("compare", small, "--method", "a=method.allocator=random_layers", "--seeds", 0, "--set", "rounds=1")
    found = parsed(hellora(*words, "--out", tmp_path / "compared", "--json"))
    assert found["comparison"] == str(tmp_path / "compared")
    assert found["table"] == json.loads((tmp_path / "compared" / "table.json").read_text())
    quiet = hellora(*words, "--out", tmp_path / "compared", "--resume", "--quiet")
    assert quiet.out.startswith(f"table: {tmp_path / 'compared' / 'table.md'}, also as .csv, .json and .tex; ")
    assert quiet.out.count("\n") == 1
