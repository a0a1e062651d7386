"""HeLoRA-KD as a person runs it: a prototype per rank, which teach each other on public data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from factories import bits, state_bits
from peft import PeftModel
from safetensors.torch import load_file
from transformers import BertModel

from hellora.core.state import ServerState
from hellora.experiments.config import read_experiment
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.record.checkpoint import load_state

Command = Callable[..., Any]
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 13, 3]])


@pytest.fixture
def helora(small: Path, tmp_path: Path) -> list[str]:
    """The small experiment with clients of rank 1, 2 and 4, and 40 public texts without labels."""
    data = tiny_models.save_sentences(tmp_path / "data")
    texts = [text for text, _ in tiny_models.sentences(40, seed=9)]
    (data / "public.csv").write_text("\n".join(["text", *texts]) + "\n")
    settings = {
        "data.name": data,
        "data.public": "public",
        "fleet.layers": [],
        "fleet.ranks": [1, 2, 4],
        "method.allocator": "everything",
        "method.aggregator": "mutual_distillation",
        "method.dispatcher": "prototype",
        "method.kd_steps": 2,
        "cohort": 4,
    }
    return ["run", str(small), *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def final_state(out: Path) -> ServerState:
    found = load_state(out / "checkpoint")
    assert found is not None
    return found[0]


def test_a_run_keeps_evaluates_and_exports_a_prototype_per_rank(
    hellora: Command, helora: list[str], tmp_path: Path, tiny_bert: Path
) -> None:
    out = tmp_path / "out"
    answer = hellora(*helora, "--out", out)
    assert (answer.status, answer.err) == (0, "")
    adapter = final_state(out).adapter
    assert list(adapter.prototypes) == [1, 2]
    summary = summary_of(out)
    assert list(summary["prototypes"]) == ["1", "2", "4"]
    assert summary["prototypes"]["4"] == summary["final"], "the run's metrics are the largest prototype's"
    assert summary["ensemble"].keys() == summary["final"].keys()
    assert len({metrics["loss"] for metrics in (*summary["prototypes"].values(), summary["ensemble"])}) == 4
    assert summary["data"]["public"] == "40 examples, 40 without a label: data/public.csv"
    printed = [line.split()[:-6] for line in answer.out.splitlines()[-5:-1]]
    assert printed == [["rank", "1"], ["rank", "2"], ["rank", "4"], ["ensemble"]]

    base = prepare(read_experiment(str(out / "experiment.toml"))).base
    folders = {1: out / "adapter/prototypes/rank-1", 2: out / "adapter/prototypes/rank-2", 4: out / "adapter"}
    logits = []
    for rank, folder in folders.items():
        prototype = adapter.prototypes.get(rank, adapter)
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        with torch.no_grad():
            with base.adapted(prototype):
                expected = base.net(input_ids=IDS).last_hidden_state
            loaded = PeftModel.from_pretrained(BertModel.from_pretrained(str(tiny_bert)), str(folder)).eval()
            logits.append(loaded(input_ids=IDS).last_hidden_state)
        torch.testing.assert_close(logits[-1], expected, atol=1e-5, rtol=1e-5)
        head = load_file(folder / "head.safetensors")
        assert all(torch.equal(head[name], tensor) for name, tensor in prototype.head.items())
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    readme = (out / "adapter" / "README.md").read_text()
    assert "the one of rank 4" in readme
    assert "each smaller rank (1, 2)" in readme


def test_resuming_is_bit_identical(
    hellora: Command, helora: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the second round has been distilled and is not yet saved."""
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert hellora(*helora, "--out", undisturbed).status == 0
    distil, rounds = Setup.distil, []

    def stop_in_round_2(self: Setup, *arguments: Any) -> Any:
        rounds.append(distil(self, *arguments))
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return rounds[-1]

    with monkeypatch.context() as stopping:
        stopping.setattr(Setup, "distil", stop_in_round_2)
        assert hellora(*helora, "--out", out).status == 130
    assert final_state(out).round == 1
    assert final_state(out).adapter.prototypes
    assert hellora(*helora, "--out", out, "--resume").status == 0
    assert state_bits(final_state(out)) == state_bits(final_state(undisturbed))
    assert summary_of(out)["prototypes"] == summary_of(undisturbed)["prototypes"]
    assert summary_of(out)["ensemble"] == summary_of(undisturbed)["ensemble"]


def test_a_frozen_head_is_the_same_in_every_prototype(hellora: Command, helora: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert hellora(*helora, "--out", out, "--set", "method.head=frozen", "--set", "rounds=1").status == 0
    adapter = final_state(out).adapter
    first = prepare(read_experiment(str(out / "experiment.toml"))).initial_state().adapter
    for prototype in (adapter, *adapter.prototypes.values()):
        assert bits(prototype.head) == bits(first.head)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["data.public="],
            "error: method.aggregator = 'mutual_distillation' needs public data to distil on: set data.public",
        ),
        (["data.public=copy"], "error: data.public: 40 of the 40 examples in 'copy' are the clients' own training"),
        (["data.public=test"], "error: data.public: 60 of the 60 examples in 'test' are the test examples"),
        (
            ["method.dispatcher=whole"],
            "error: method.aggregator = 'mutual_distillation' needs clients that receive the prototype of",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    hellora: Command, helora: list[str], tmp_path: Path, settings: list[str], words: str
) -> None:
    lines = (tmp_path / "data" / "train.csv").read_text().splitlines()
    (tmp_path / "data" / "copy.csv").write_text("\n".join(lines[:41]) + "\n")
    answer = hellora(*helora, "--out", tmp_path / "out", *(w for setting in settings for w in ("--set", setting)))
    assert answer.status == 2
    assert answer.err.startswith(words)
    assert answer.err.count("\n") == 1


def test_a_language_model_distils(hellora: Command, small: Path, tmp_path: Path, tiny_llama: Path) -> None:
    data = tmp_path / "instructions"
    data.mkdir()
    for name, count, seed in (("train", 24, 3), ("test", 8, 4), ("public", 12, 5)):
        rows = [{"instruction": text, "response": text.split()[-1]} for text, _ in tiny_models.sentences(count, seed)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task.name": "causal_lm",
        "model.name": tiny_llama,
        "data.name": data,
        "data.public": "public",
        "data.partitioner": "iid",
        "data.clients": 3,
        "fleet.layers": [],
        "fleet.ranks": [1, 2, 4],
        "method.allocator": "everything",
        "method.aggregator": "mutual_distillation",
        "method.dispatcher": "prototype",
        "method.top_k": 8,
        "rounds": 1,
    }
    more = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    answer = hellora("run", small, "--out", tmp_path / "out", *more)
    assert (answer.status, answer.err) == (0, "")
    summary = summary_of(tmp_path / "out")
    assert list(summary["prototypes"]) == ["1", "2", "4"]
    assert summary["ensemble"].keys() == {"loss", "perplexity"}
