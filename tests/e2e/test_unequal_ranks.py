"""`hellora run` with clients of unequal rank: what is trained, what travels, and what is left at the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TOPICS
from transformers import AutoModel

from hellora.experiments import registry
from hellora.experiments.config import read_experiment
from hellora.record.checkpoint import load_state

Command = Callable[..., Any]
# The tiny BERT: query and value of 4 layers, each A (rank, 32) and B (32, rank); a head of 3 × 32 weights and 3 biases.
PER_RANK, HEAD = 2 * (32 + 32), 3 * 32 + 3


def run(hellora: Command, small: Path, out: Path, *settings: str) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl after a run with these settings."""
    answer = hellora("run", small, "--out", out, *(word for text in settings for word in ("--set", text)))
    assert answer.status == 0, answer.err
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def budgets_of(out: Path) -> dict[str, list[int]]:
    experiment = read_experiment(str(out / "experiment.toml"))
    budgets = experiment.fleet.budgets(6, experiment.run.seed)
    return {str(client): budget.ranks(4, experiment.model.rank).tolist() for client, budget in enumerate(budgets)}


def assert_peft_loads(out: Path, tiny_bert: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # what peft does with transformers is not ours
        model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), out / "adapter")
    ids = torch.tensor([[2, 7, 8, 9, 3]])
    with torch.no_grad():
        trained = model(input_ids=ids).last_hidden_state
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=ids).last_hidden_state, trained, atol=1e-4)


@pytest.mark.parametrize("ranks", ["[1, 2, 4]", "[[1, 1, 2, 2], [4, 4, 4, 4], [0, 0, 0, 3]]"])
def test_rank_budgets_are_obeyed_and_the_adapter_loads(
    hellora: Command, small: Path, tmp_path: Path, tiny_bert: Path, ranks: str
) -> None:
    out = tmp_path / "out"
    lines = run(
        hellora, small, out, "method.allocator=everything", "fleet.layers=[]", f"fleet.ranks={ranks}",
        "method.dispatcher=truncate", "cohort=6",
    )  # fmt: skip
    budgets = budgets_of(out)
    assert len(set(map(tuple, budgets.values()))) == 3
    for line in lines:
        assert line["ranks"] == budgets
        assert line["updated"] == list(range(6))
        values = sum(sum(row) * PER_RANK + HEAD for row in budgets.values())
        whole = sum(sum(rank or 4 for rank in row) * PER_RANK + HEAD for row in budgets.values())
        assert (line["uplink_bytes"], line["downlink_bytes"]) == (4 * values, 4 * whole)
    assert_peft_loads(out, tiny_bert)


@pytest.mark.parametrize("aggregator", registry.names("aggregator"))
def test_every_aggregator_serves_unequal_ranks_and_layers(
    hellora: Command, small: Path, tmp_path: Path, tiny_bert: Path, aggregator: str
) -> None:
    out, settings = tmp_path / "out", [f"method.aggregator={aggregator}", "method.dispatcher=truncate"]
    if aggregator == "mutual_distillation":
        settings = [
            f"method.aggregator={aggregator}",
            "method.dispatcher=prototype",
            f"data.public={public_texts(tmp_path)}",
        ]
    if aggregator == "fed_svd":
        settings.append("method.trains=B")
    run(hellora, small, out, "fleet.ranks=[2, 4, 3]", *settings)
    assert_peft_loads(out, tiny_bert)


def public_texts(folder: Path) -> Path:
    rows = [{"text": f"the {a} near a {b}"} for a in TOPICS["sea"] for b in TOPICS["sky"]]
    path = folder / "public.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_fedra_sends_and_trains_some_blocks_only(
    hellora: Command, small: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    lines = run(hellora, small, tmp_path / "out", "method.allocator=random_layers", "method.dispatcher=bypass")
    for line in lines:
        assert line["updated"] == line["cohort"]
        values = sum(sum(row) * PER_RANK + HEAD for row in line["ranks"].values())
        assert line["uplink_bytes"] == line["downlink_bytes"] == 4 * values
    assert_peft_loads(tmp_path / "out", tiny_bert)


def test_hetlora_clients_prune_themselves(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ["method.allocator=self_pruning", "method.dispatcher=truncate", "method.aggregator=sparsity_weighted"]
    settings += ["method.local_training=['hetlora']", "method.tail_penalty=10.0", "method.tail_share=0.7"]
    settings += ["fleet.ranks=[2, 4, 4]", "fleet.layers=[]"]
    lines = run(hellora, small, out, *settings, "cohort=6", "rounds=4")
    ranks = {client: [max(line["ranks"][client]) for line in lines] for client in lines[0]["ranks"]}
    assert any(row[-1] < row[0] for row in ranks.values())
    for row in ranks.values():
        assert row == sorted(row, reverse=True)
        assert row[-1] >= 1
    saved = load_state(out / "checkpoint")
    assert saved is not None
    assert "allocator/ranks" in saved[0].strategies


def test_fedsa_keeps_a_factor_of_each_client(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = ["method.shares=A", "method.dispatcher=truncate", "fleet.ranks=[2, 4, 3]"]
    lines = run(hellora, small, out, *settings, "method.allocator=random_layers", "cohort=6")
    for line in lines:
        values = sum(sum(row) * PER_RANK // 2 + HEAD for row in line["ranks"].values())
        assert line["uplink_bytes"] == 4 * values
    shared = load_file(out / "adapter" / "adapter_model.safetensors")
    assert all(not value.any() for name, value in shared.items() if "lora_B" in name), "the server's B is as it began"
    mine = [load_file(folder / "adapter_model.safetensors") for folder in sorted((out / "adapter/personal").iterdir())]
    assert len(mine) == 6
    for tensors in mine:
        assert tensors.keys() == shared.keys()
        assert any(value.any() for name, value in tensors.items() if "lora_B" in name)
        assert all(torch.equal(value, shared[name]) for name, value in tensors.items() if "lora_A" in name)


def test_a_rank_per_layer_of_another_model_is_refused_in_one_line_before_data_are_loaded(
    hellora: Command, small: Path, tmp_path: Path
) -> None:
    changes = ["--set", "fleet.ranks=[1, 2, [1, 2]]", "--set", "data.name=/nowhere/data"]
    answer = hellora("run", small, "--out", tmp_path / "out", *changes)
    assert answer.status == 2
    assert answer.err == "error: a group of fleet.ranks has 2 ranks for 4 layers: give one each\n"
