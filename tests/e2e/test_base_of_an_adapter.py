"""An adapter knows its base, from wherever it is used: another one of the same shape is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from refusals import check_refusal
from safetensors.torch import load_file, save_file

Command = Callable[..., Any]
TEXT = "the old boat near the tide"


@pytest.fixture
def places(hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a/m is a base, and a/run a run that calls it ./m; b is empty; c/m is a base of the same shape."""
    for place in "abc":
        (tmp_path / place).mkdir()
    tiny_models.save_bert(tmp_path / "a" / "m", hidden_dropout_prob=0.1)
    other = shutil.copytree(tmp_path / "a" / "m", tmp_path / "c" / "m") / "model.safetensors"
    weights = load_file(other)
    weights["encoder.layer.3.output.dense.weight"][-1, -1] += 0.5
    save_file(weights, other, metadata={"format": "pt"})
    (tmp_path / "texts.csv").write_text(f"text\n{TEXT}\n")
    monkeypatch.chdir(tmp_path / "a")
    answer = hellora("run", small, "--out", "run", "--set", "model.name=./m", "--set", "rounds=1")
    assert answer.status == 0, answer.err
    assert hellora("export", "run", "--out", tmp_path / "adapter").status == 0
    return tmp_path


def said(answer: Any) -> dict[str, float]:
    """The probabilities of the one row that was predicted."""
    assert (answer.status, answer.err) == (0, "")
    return json.loads(answer.out)["probabilities"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("source", ["adapter", "a/run"])
def test_from_elsewhere_it_is_the_same_base_or_a_refusal(
    source: str, hellora: Command, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, texts = str(places / source), places / "texts.csv"
    expected = said(hellora("predict", "--json", source, texts))
    monkeypatch.chdir(places / "b")
    assert said(hellora("predict", "--json", source, texts)) == expected, (
        "a folder that is not here is where the run had it"
    )
    monkeypatch.chdir(places / "c")
    for command in ("predict", "evaluate"):
        answer = hellora(command, source, texts)
        check_refusal(answer, "model.name: ./m is another base than the adapter was trained on", f"{places}/a/m")
    assert said(hellora("predict", "--json", source, texts, "--set", f"model.name={places}/a/m")) == expected
    if source.startswith("adapter"):
        return
    (places / "a" / "m").rename(places / "moved")
    assert said(hellora("predict", "--json", source, texts, "--set", f"model.name={places}/moved")) == expected
    monkeypatch.chdir(places / "b")
    check_refusal(hellora("predict", source, texts), "model.name: there is no folder", "--set model.name=")


def test_in_another_number_format_it_is_compared_in_its_own(
    hellora: Command, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, texts, short = places / "adapter", places / "texts.csv", ["--set", "model.dtype=bfloat16"]
    monkeypatch.chdir(places / "a")
    exact, rounded = (
        said(hellora("predict", "--json", adapter, texts)),
        said(hellora("predict", "--json", adapter, texts, *short)),
    )
    assert rounded == pytest.approx(exact, abs=0.05)
    monkeypatch.chdir(places / "c")
    check_refusal(hellora("predict", adapter, texts, *short), "is another base than the adapter was trained on")


def test_an_older_adapter_is_used_with_a_warning(
    hellora: Command, places: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = places / "adapter" / "hellora.json"
    table = json.loads(file.read_text())
    assert table["base"].keys() == {"name", "path", "fingerprint", "dtype", "quantization"}
    del table["base"]
    file.write_text(json.dumps(table))
    monkeypatch.chdir(places / "a")
    assert hellora("predict", places / "adapter", places / "texts.csv").status == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "model.name: whether ./m is the base of this adapter is not known: an older hellora wrote it"


def test_a_run_goes_on_and_is_exported_on_its_own_base_alone(
    hellora: Command, small: Path, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(places / "a" / "run", places / "c" / "run")
    (places / "c" / "run" / "summary.json").unlink()
    monkeypatch.chdir(places / "c")
    check_refusal(hellora("export", "run", "--out", "out"), "model.name: ./m is another base than the adapter")
    again = hellora("run", small, "--out", "run", "--resume", "--set", "model.name=./m", "--set", "rounds=1")
    check_refusal(again, "model.name: ./m is another base than the run began with")
    monkeypatch.chdir(places / "b")
    assert hellora("export", places / "a" / "run", "--out", "out").status == 0


def test_what_the_checkpoint_lacks_is_no_part_of_the_base(hellora: Command, small: Path, tmp_path: Path) -> None:
    """A pooler that nobody asks for is drawn anew at every load, by another seed."""
    weights = load_file((tiny_models.save_bert(tmp_path / "m")) / "model.safetensors")
    bare = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    assert len(bare) < len(weights)
    save_file(bare, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "texts.csv").write_text(f"text\n{TEXT}\n")
    settings = ["--set", f"model.name={tmp_path}/m", "--set", "rounds=1", "--set", "seed=3"]
    assert hellora("run", small, "--out", tmp_path / "out", *settings).status == 0
    said(hellora("predict", "--json", tmp_path / "out", tmp_path / "texts.csv"))


def test_the_files_say_where_the_base_is(places: Path) -> None:
    base = str(places / "a" / "m")
    table = json.loads((places / "adapter" / "hellora.json").read_text())
    assert (table["model"]["name"], table["base"]["name"], table["base"]["path"]) == ("./m", "./m", base)
    config = json.loads((places / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base
    code, _, rest = (places / "adapter" / "README.md").read_text().partition("## Training")
    assert f"base = {base!r}" in code
    assert base not in rest
