"""`hellora run`, `plan` and `list`: what they print, and what a run leaves in its folder."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cards import Follow, code_of
from PIL import Image
from safetensors.torch import load_file
from tiny_models import save_pairs
from tiny_models import sentences as tiny_sentences
from transformers import BertModel

import hellora.runs.run as running
from hellora.client.evaluation import fisher_scores
from hellora.client.work import ClientWork
from hellora.core.exchange import ClientTask, ClientUpdate
from hellora.core.seeds import rng_for
from hellora.experiments import registry
from hellora.experiments.catalogue import TABLES
from hellora.experiments.config import presets, read_experiment
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.methods.layer_sampling import probabilities_from_scores, sample_layers
from hellora.record.checkpoint import load_state

Command = Callable[..., Any]
# The tiny BERT: query and value of 4 layers, each A (rank, 32) and B (32, rank); a head of 3 × 32 weights and 3 biases.
VALUES_PER_RANK, HEAD_VALUES, LAYERS, RANK = 2 * (32 + 32), 3 * 32 + 3, 4, 4


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def changed(key: str, value: object) -> tuple[str, str]:
    return ("--set", f"{key}={value}")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ----------------------------------------------------------------------------------------------------------- the folder


def test_a_run_leaves_the_files_that_are_promised(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = hellora("run", small, "--out", out)
    assert (answer.status, answer.err) == (0, "")
    assert sum(line.startswith("round") for line in answer.out.splitlines()) == 3  # one line per round
    assert names_in(out) == {
        "experiment.toml",
        "clients.json",
        "rounds.jsonl",
        "summary.json",
        "run.lock",
        "checkpoint",
        "adapter",
    }
    assert names_in(out / "checkpoint") == {
        f"state-{round:06d}.{kind}" for round in (1, 2, 3) for kind in ("json", "safetensors")
    }
    assert names_in(out / "adapter") == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "labels.json",
        "hellora.json",
        "README.md",
    }
    assert read_experiment(str(out / "experiment.toml")).same_run(read_experiment(str(small)))
    for line in lines_of(out):
        assert line.keys() == {
            "round",
            "sums",
            "cohort",
            "ranks",
            "updated",
            "missing",
            "rejected",
            "dropped",
            "policies",
            "repeated",
            "metrics",
            "sample",
            "per_class",
            "validation",
            "clients",
            "aggregation_error",
            "energy",
            "measured_modules",
            "idle_rounds",
            "layer_scores",
            "left_out",
            "uplink_bytes",
            "downlink_bytes",
            "seconds",
            "simulated_seconds",
            "simulated_clock",
        }
        assert line["metrics"].keys() == {"accuracy", "macro_f1", "micro_f1", "loss"}
        assert list(line["ranks"]) == [str(client) for client in line["cohort"]]
        assert all(len(ranks) == LAYERS for ranks in line["ranks"].values())
        assert 0 < line["aggregation_error"] < 1
        assert len(line["energy"]) == RANK
        assert sum(line["energy"]) == pytest.approx(1, abs=1e-4)
        assert line["energy"] == sorted(line["energy"], reverse=True)
    assert [line["round"] for line in lines_of(out)] == [0, 1, 2]
    idle = [0] * LAYERS
    for line in lines_of(out):
        idle = [0 if any(column) else past + 1 for *column, past in zip(*line["ranks"].values(), idle, strict=True)]
        assert line["idle_rounds"] == idle
    summary = summary_of(out)
    assert summary.keys() >= {"initial", "final", "uplink_bytes", "downlink_bytes", "seconds", "seed", "versions"}
    assert summary["initial"].keys() == summary["final"].keys() == {"accuracy", "macro_f1", "micro_f1", "loss"}
    assert summary["versions"].keys() >= {"hellora", "python", "torch", "transformers", "peft"}
    assert json.loads((out / "adapter" / "labels.json").read_text()) == ["sea", "sky", "soil"]


def test_bytes_are_those_of_the_uploaded_values_and_totals_are_sums(
    hellora: Command, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hellora("run", small, "--out", out)
    lines, summary = lines_of(out), summary_of(out)
    for line in lines:
        values = [sum(ranks) * VALUES_PER_RANK + HEAD_VALUES for ranks in line["ranks"].values()]
        assert line["uplink_bytes"] == 4 * sum(values)
        assert line["downlink_bytes"] == 4 * 3 * (LAYERS * RANK * VALUES_PER_RANK + HEAD_VALUES)
    for name in ("uplink_bytes", "downlink_bytes", "seconds"):
        assert summary[name] == pytest.approx(sum(line[name] for line in lines), abs=1e-3 if name == "seconds" else 0)
    assert summary["final"] == lines[-1]["metrics"]
    assert summary["rounds"] == 3


def test_accuracy_improves(hellora: Command, small: Path, tmp_path: Path) -> None:
    more = [*changed("rounds", 6), *changed("train.epochs", 4), *changed("model.rank", 8)]
    assert hellora("run", small, "--out", tmp_path / "out", *more).status == 0
    summary = summary_of(tmp_path / "out")
    assert summary["initial"]["accuracy"] < 0.5
    assert summary["final"]["accuracy"] > 0.75
    assert summary["final"]["loss"] < summary["initial"]["loss"] - 0.3


def test_metrics_are_measured_when_due_and_at_the_end(hellora: Command, small: Path, tmp_path: Path) -> None:
    hellora("run", small, "--out", tmp_path / "out", *changed("eval_every", 2))
    for measured in ("metrics", "per_class"):
        assert [line[measured] is not None for line in lines_of(tmp_path / "out")] == [False, True, True]


def test_rounds_between_are_evaluated_on_a_sample(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = hellora("run", small, "--out", out, *changed("eval_examples", 12)).out
    assert "(evaluated on 12 of them, first and last on all)" in said
    total, samples = summary_of(out)["data"]["test"], [line["sample"] for line in lines_of(out)]
    assert [(sample["examples"], sample["of"]) for sample in samples[:-1]] == [(12, total)] * 2
    assert samples[-1] is None
    counted = [sum(scores["examples"] for scores in line["per_class"].values()) for line in lines_of(out)]
    assert counted == [12, 12, total]
    for line in lines_of(out)[:-1]:
        for name, (low, high) in line["sample"]["intervals"].items():
            assert low <= line["metrics"][name] <= high


# ----------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("name", registry.names("allocator"))
def test_every_allocator_runs_and_obeys_capacities(hellora: Command, small: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    assert hellora("run", small, "--out", out, *changed("method.allocator", name)).status == 0
    budgets = read_experiment(str(small)).fleet.budgets(6, seed=0)
    trained = 0
    for line in lines_of(out):
        for client, ranks in line["ranks"].items():
            assert np.count_nonzero(ranks) <= (budgets[int(client)].layers or 0)
            assert max(ranks) <= RANK
            trained += int(np.count_nonzero(ranks))
    assert (trained > 0) == (name not in ("nothing", "head_alone"))


def test_the_run_says_who_takes_part(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        hellora("run", small, "--out", out, *changed("rounds", 1), *changed("method.allocator", "everything")).status
        == 0
    )
    setup = prepare(read_experiment(str(small), {"method.allocator": "everything"}))
    clients = json.loads((out / "clients.json").read_text())["clients"]
    assert [client["id"] for client in clients] == list(range(6))
    assert {client["budget"]["layers"] for client in clients} == {1, 2, 4}
    rows = setup.work.data["label"]
    for client, part in zip(clients, setup.work.parts or (), strict=True):
        assert client["examples"] == len(part)
        assert client["labels"] == Counter(setup.corpus.labels[rows[int(row)]] for row in part)
    assert all(line["layer_scores"] is None for line in lines_of(out))


def test_fisher_scores_decide_in_every_round_after_the_warm_up(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def spy(*arguments: Any) -> Any:
        measured.append(fisher_scores(*arguments))
        return measured[-1]

    monkeypatch.setattr("hellora.experiments.setup.fisher_scores", spy)
    settings = [*changed("rounds", 6), *changed("method.warmup", 2), *changed("method.refresh", 2)]
    assert hellora("run", small, "--out", tmp_path / "out", *settings).status == 0
    assert len(measured) == 2  # at rounds 2 and 4, and not during the warm-up
    recorded = {line["round"]: line["layer_scores"] for line in lines_of(tmp_path / "out") if line["layer_scores"]}
    assert recorded == {
        round: pytest.approx(scores.tolist(), rel=1e-5) for round, scores in zip((2, 4), measured, strict=True)
    }
    for round, line in enumerate(lines_of(tmp_path / "out")):
        if round >= 2:
            p = probabilities_from_scores(measured[(round - 2) // 2], 3)
            assert p is not None
            for client, ranks in line["ranks"].items():
                drawn = sample_layers(p, int(np.count_nonzero(ranks)), rng_for(0, "layers", round, int(client)))
                assert np.flatnonzero(ranks).tolist() == drawn.tolist()


def test_scores_of_clients_take_the_place_of_proxy_data(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("a Fisher pass on proxy data that nobody asked for")

    monkeypatch.setattr("hellora.experiments.setup.fisher_scores", forbidden)
    out = tmp_path / "out"
    settings = [*changed("method.scores", "clients"), *changed("data.proxy_examples", 0)]
    assert hellora("run", small, "--out", out, *settings).status == 0
    saved = load_state(out / "checkpoint")
    assert saved is not None
    last = lines_of(out)[-1]
    assert sorted(map(str, saved[0].reports)) == sorted(last["ranks"])
    for client, told in saved[0].reports.items():  # one number for each layer that the client trained
        assert list(told) == ["layer_scores/scores"]
        assert torch.isfinite(told["layer_scores/scores"]).tolist() == [rank > 0 for rank in last["ranks"][str(client)]]
    assert summary_of(out)["data"]["proxy"] == "none"


def test_an_aggregated_head_is_trained_and_a_frozen_one_is_not(hellora: Command, small: Path, tmp_path: Path) -> None:
    first = {name: value.clone() for name, value in prepare(read_experiment(str(small))).base.initial_head().items()}
    for policy in ("aggregate", "frozen"):
        out = tmp_path / policy
        assert hellora("run", small, "--out", out, *changed("method.head", policy)).status == 0
        head = load_file(out / "adapter" / "head.safetensors")
        same = [torch.equal(head[name], first[name]) for name in ("weight", "bias")]
        assert same == [policy == "frozen"] * 2
    for line in lines_of(tmp_path / "frozen"):  # a frozen head does not travel back
        assert line["uplink_bytes"] == 4 * sum(sum(ranks) * VALUES_PER_RANK for ranks in line["ranks"].values())


def test_local_heads_stay_with_their_clients(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [*changed("method.head", "local"), *changed("method.scores", "clients")]
    assert hellora("run", small, "--out", out, *settings).status == 0
    seen = {client for line in lines_of(out) for client in line["updated"]}
    personal = out / "adapter" / "personal"
    assert names_in(personal) == {f"client-{client:05d}" for client in seen}
    heads = [load_file(folder / "head.safetensors")["weight"] for folder in sorted(personal.iterdir())]
    assert not any(torch.equal(heads[0], head) for head in heads[1:])
    met: set[int] = set()
    for line in lines_of(out):
        trained = 4 * sum(sum(ranks) * VALUES_PER_RANK for ranks in line["ranks"].values())
        assert line["uplink_bytes"] == trained + 8 * LAYERS * len(line["updated"])  # each reports a score per layer
        first_heads = 4 * (heads[0].numel() + heads[0].shape[0]) * len({*line["cohort"]} - met)  # with their biases
        assert line["downlink_bytes"] == 4 * 3 * LAYERS * RANK * VALUES_PER_RANK + first_heads
        met |= set(line["updated"])
    assert summary_of(out)["data"]["evaluated_on"] == "the clients' held-out examples"


def test_the_servers_step_has_momentum(hellora: Command, small: Path, tmp_path: Path) -> None:
    hellora("run", small, "--out", tmp_path / "plain")
    momentum = [*changed("server.lr", 0.5), *changed("server.momentum", 0.9)]
    assert hellora("run", small, "--out", tmp_path / "momentum", *momentum).status == 0
    assert adapter_bytes(tmp_path / "plain") != adapter_bytes(tmp_path / "momentum")
    saved = load_state(tmp_path / "momentum" / "checkpoint")
    assert saved is not None
    assert any(name.startswith("server_optimizer/") for name in saved[0].strategies)


# -------------------------------------------------------------------------------------------- workers, threads, repeats


def test_two_workers_give_the_same_bytes_as_one(hellora: Command, small: Path, tmp_path: Path) -> None:
    hellora("run", small, "--out", tmp_path / "one")
    assert hellora("run", small, "--out", tmp_path / "two", *changed("compute.workers", 2)).status == 0
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")
    assert [line["metrics"] for line in lines_of(tmp_path / "one")] == [
        line["metrics"] for line in lines_of(tmp_path / "two")
    ]


def test_the_seed_decides(hellora: Command, small: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        hellora("run", small, "--out", tmp_path / name, *changed("seed", seed), *changed("rounds", 1))
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b") != adapter_bytes(tmp_path / "c")


# --------------------------------------------------------------------------------------------------------------- faults


def raising(client_work: Any, rounds: set[int], clients: set[int] | None = None) -> Any:
    """`ClientWork.train` that raises in some rounds, for some clients or for all."""

    def train(self: ClientWork, task: ClientTask) -> ClientUpdate:
        if task.round in rounds and (clients is None or task.client in clients):
            raise RuntimeError("no [/bold] memory :boom: left")
        update: ClientUpdate = client_work(self, task)
        return update

    return train


def test_a_client_that_raises_is_on_record_and_the_round_goes_on(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(ClientWork, "train", raising(ClientWork.train, {1}, {0, 1, 2, 3}))
    answer = hellora("run", small, "--out", out)
    assert answer.status == 0
    line = lines_of(out)[1]
    assert line["rejected"]
    assert set(line["rejected"].values()) == {"RuntimeError: no [/bold] memory :boom: left"}
    assert sorted([*map(int, line["rejected"]), *line["updated"]]) == line["cohort"]
    assert "RuntimeError: no [/bold] memory :boom: left" in answer.out  # as it is, not read as markup


def test_too_few_updates_stop_the_run_and_it_can_be_resumed(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    settings = changed("min_clients", 2)
    with monkeypatch.context() as broken:
        broken.setattr(ClientWork, "train", raising(ClientWork.train, {1}))
        answer = hellora("run", small, "--out", out, *settings)
    assert answer.status == 1
    assert answer.err.startswith("error: round 1 had 0 usable updates, min_clients is 2")
    assert answer.err == f"error: {(out / 'error.log').read_text()}"
    assert answer.err.count("\n") == 1
    assert [line["round"] for line in lines_of(out)] == [0]
    saved = load_state(out / "checkpoint")
    assert saved is not None
    assert saved[0].round == 1
    assert not (out / "summary.json").exists()
    assert hellora("run", small, "--out", out, "--resume", *settings).status == 0
    assert hellora("run", small, "--out", undisturbed, *settings).status == 0
    assert adapter_bytes(out) == adapter_bytes(undisturbed)


def test_a_stopped_run_goes_on_with_fewer_clients(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of a round may change from one resume to the next; failed attempts stay on record."""
    out = tmp_path / "out"
    worked = ClientWork.train
    tries = dict.fromkeys(range(6), 0)

    def train_rarely(self: ClientWork, task: ClientTask) -> ClientUpdate:
        tries[task.client] += 1
        if task.client != 0 and tries[task.client] < 3:
            raise RuntimeError("out of memory")
        return worked(self, task)

    monkeypatch.setattr(ClientWork, "train", train_rarely)
    one = (*changed("rounds", 1), *changed("cohort", 6))
    assert hellora("run", small, "--out", out, *one, *changed("min_clients", 6), *changed("attempts", 1)).status == 1
    assert hellora("run", small, "--out", out, *one, *changed("min_clients", 2), "--resume").status == 0
    (line,) = lines_of(out)
    assert line["updated"] == line["cohort"] == [0, 1, 2, 3, 4, 5]
    (repeated,) = line["repeated"]
    assert repeated["updated"] == [0]
    assert repeated["rejected"] == {str(client): "RuntimeError: out of memory" for client in range(1, 6)}
    model = LAYERS * RANK * VALUES_PER_RANK + HEAD_VALUES
    assert line["downlink_bytes"] == 4 * 2 * 6 * model
    trained = [sum(ranks) * VALUES_PER_RANK + HEAD_VALUES for ranks in line["ranks"].values()]
    assert line["uplink_bytes"] > 4 * sum(trained)


def test_the_threads_of_a_run_are_settled_when_it_begins(hellora: Command, small: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", torch.get_num_threads()
    try:
        assert hellora("run", small, "--out", out, *changed("compute.threads", 2)).status == 0
        assert read_experiment(str(out / "experiment.toml")).compute.threads == 2
        (out / "summary.json").unlink()
        assert hellora("run", small, "--out", out, "--resume", *changed("compute.threads", 0)).status == 0
        assert torch.get_num_threads() == 2, "automatic is what it was at first, whatever this machine has"
    finally:
        torch.set_num_threads(before)


def test_a_run_that_ended_before_it_had_a_state_does_not_block_its_folder(
    hellora: Command, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wrong = hellora("run", small, "--out", out, *changed("data.label", "topic"))
    assert wrong.status == 2
    assert hellora("run", small, "--out", out).status == 0  # mended: the same command goes through
    assert hellora("run", small, "--out", out).status == 2  # now there is something to lose


# ------------------------------------------------------------------------------------------------- other kinds of model


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class>/*.png and test/<class>/*.png: 8 × 8, each class a colour with noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for channel, colour in enumerate(("blue", "green", "red")):
            (folder / split / colour).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[:, :, channel] += 130
                Image.fromarray(pixels).save(folder / split / colour / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl and test.jsonl: a text, and its topic as the answer."""
    folder = tmp_path_factory.mktemp("instructions")
    for name, count, seed in (("train", 36, 3), ("test", 12, 4)):
        rows = [{"instruction": text, "response": topic_words(text)} for text, _ in tiny_sentences(count, seed)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def topic_words(text: str) -> str:
    return " ".join(text.split()[-2:])


@pytest.fixture
def vit_run(small: Path, tiny_vit: Path, pictures: Path) -> list[str]:
    return [
        "run",
        str(small),
        *changed("task.name", "image_classification"),
        *changed("model.name", tiny_vit),
        *changed("data.name", pictures),
        *changed("data.partitioner", "iid"),
        *changed("fleet.layers", [1, 2, 3]),
        *changed("train.epochs", 3),
    ]


@pytest.fixture
def llama_run(small: Path, tiny_llama: Path, instructions: Path) -> list[str]:
    return [
        "run",
        str(small),
        *changed("task.name", "causal_lm"),
        *changed("task.answers", 2),
        *changed("task.answer_tokens", 4),
        *changed("model.name", tiny_llama),
        *changed("data.name", instructions),
        *changed("data.partitioner", "iid"),
        *changed("fleet.layers", [1, 2, 3]),
    ]


def test_a_vision_transformer_learns_from_a_folder_of_images(
    hellora: Command, vit_run: list[str], tmp_path: Path
) -> None:
    assert hellora(*vit_run, "--out", tmp_path / "out").status == 0
    summary = summary_of(tmp_path / "out")
    assert summary["data"]["classes"] == 3
    assert summary["final"]["loss"] < summary["initial"]["loss"]
    assert not (tmp_path / "out" / "adapter" / "head.safetensors").exists()  # the model's own head is inside


def test_a_language_model_learns_from_instructions(hellora: Command, llama_run: list[str], tmp_path: Path) -> None:
    assert hellora(*llama_run, "--out", tmp_path / "out").status == 0
    summary = summary_of(tmp_path / "out")
    assert summary["final"].keys() == {"loss", "perplexity", "rouge_l"}
    assert [group["metrics"]["loss"] for group in summary["groups"]] == [summary["final"]["loss"]] * 3
    assert (summary["clients"], summary["worst_client"]) == ({}, None)
    assert summary["final"]["loss"] < summary["initial"]["loss"]


def test_packed_rows_in_worker_processes_and_within_budgets(
    hellora: Command, llama_run: list[str], tmp_path: Path
) -> None:
    """The same bits as in one process; clients stay within the memory that the plan gave rows."""
    asked = [*llama_run, *changed("task.packing", "true"), *changed("task.max_length", 32), *changed("task.answers", 0)]
    asked += [*changed("fleet.memory", ["40MB", "50MB", "60MB"]), *changed("train.batch_size", 2)]
    for name, workers in (("one", 1), ("two", 2)):
        assert hellora(*asked, *changed("compute.workers", workers), "--out", tmp_path / name).status == 0
    one, two = ((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    summary = summary_of(tmp_path / "one")
    assert summary["final"]["loss"] < summary["initial"]["loss"]


def test_answers_are_kept_shown_and_never_twice(
    hellora: Command, llama_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds 0 to 3, evaluated after the last; answers every 2 rounds; killed before round 1 is saved."""
    often = [*changed("rounds", 4), *changed("eval_every", 4), *changed("task.answers_every", 2)]
    out = tmp_path / "out"
    command = [*llama_run, *often, *changed("data.validation", 0.2), "--out", str(out)]
    save, rounds = running.save_state, iter(range(3))

    def killed(*args: Any) -> None:
        if next(rounds) == 1:
            raise KeyboardInterrupt
        save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(running, "save_state", killed)
        assert hellora(*command).status != 0
    before = (out / "answers.jsonl").read_bytes()
    told = hellora(*command, "--resume")
    assert told.status == 0
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [(line["round"], line["row"]) for line in lines] == [(r, row) for r in (None, 1, 3) for row in (0, 1)]
    assert (out / "answers.jsonl").read_bytes().startswith(before[: len(before) // 2])
    assert "  answers  after round 3, 2 of 2 (all are in answers.jsonl)" in told.out
    assert "before training" not in told.out, "that was shown when it began"
    assert [line["metrics"] is None for line in lines_of(out)] == [True, True, True, False]
    setup = prepare(read_experiment(str(out / "experiment.toml")))
    assert setup.corpus.validation is not None
    assert [line["prompt"] for line in lines[:2]] == setup.corpus.validation["prompt"][:2], "no test example is shown"
    assert (
        "On the test split (rouge_l: of answers to prompts of the validation split):"
        in (out / "adapter" / "README.md").read_text()
    )
    hellora(*command, "--resume", "--from-round", "2")
    assert [json.loads(line)["round"] for line in (out / "answers-after-2.jsonl").read_text().splitlines()] == [3, 3]
    assert (out / "answers.jsonl").read_text().count("\n") == 6


# -------------------------------------------------------------------------------------------- the README of the adapter


def code_in(out: Path) -> str:
    return code_of(out / "adapter" / "README.md")


def logits_of_hellora(setup: Setup, out: Path, batch: dict[str, torch.Tensor], trained: bool = True) -> torch.Tensor:
    """What the run's own model makes of a batch, with the trained adapter or with the initial one."""
    saved = load_state(out / "checkpoint")
    assert saved is not None
    adapter = saved[0].adapter if trained else setup.initial_state().adapter
    base = setup.base
    with torch.no_grad(), base.adapted(adapter):
        output = base.net(**batch)
        if base.head is None:
            logits: torch.Tensor = output.logits
            return logits
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled: torch.Tensor = base.head((output.last_hidden_state * mask).sum(1) / mask.sum(1))
        return pooled


def check_readme(out: Path, inputs: Callable[[dict[str, Any]], Any]) -> None:
    """Run the README's code as it stands and hold its logits against hellora's own."""
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what peft does with transformers is not ours
        exec(code_in(out), names)
    setup = prepare(read_experiment(str(out / "experiment.toml")))
    expected = logits_of_hellora(setup, out, inputs(names))
    torch.testing.assert_close(names["logits"], expected, atol=1e-5, rtol=0)
    untrained = logits_of_hellora(setup, out, inputs(names), trained=False)
    assert (untrained - expected).abs().max() > 1e-3  # so the adapter matters here


@pytest.mark.parametrize("head", ["mean_pooling", "own", "own_of_checkpoint"])
def test_the_readme_gives_the_same_logits_for_texts(
    hellora: Command, small: Path, tmp_path: Path, tiny_bert_with_head: Path, head: str
) -> None:
    out = tmp_path / "out"
    settings: tuple[str, ...] = changed("task.head_type", "mean_pooling" if head == "mean_pooling" else "own")
    if head == "own_of_checkpoint":
        settings = (*settings, *changed("model.name", tiny_bert_with_head))
    assert hellora("run", small, "--out", out, *settings).status == 0
    check_readme(out, lambda names: dict(names["batch"]))


def test_the_readme_gives_the_same_logits_where_the_weights_on_disk_have_half_precision(
    hellora: Command, small: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    half, out = tmp_path / "half", tmp_path / "out"
    BertModel.from_pretrained(tiny_bert).to(torch.bfloat16).save_pretrained(half)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (half / name).write_bytes((tiny_bert / name).read_bytes())
    assert hellora("run", small, "--out", out, *changed("model.name", half)).status == 0
    check_readme(out, lambda names: dict(names["batch"]))


def test_the_readme_gives_the_same_logits_for_images(hellora: Command, vit_run: list[str], tmp_path: Path) -> None:
    hellora(*vit_run, "--out", tmp_path / "out")
    check_readme(tmp_path / "out", lambda names: dict(names["processor"](names["images"], return_tensors="pt")))


def test_the_readme_gives_the_same_logits_for_a_language_model(
    hellora: Command, llama_run: list[str], tmp_path: Path
) -> None:
    template = changed("data.prompt", "we saw {instruction}: the {response} is")
    hellora(*llama_run, *template, "--out", tmp_path / "out")
    check_readme(tmp_path / "out", lambda names: dict(names["batch"]))
    assert "'we saw {instruction}: the {response} is'.format(" in code_in(tmp_path / "out")


@pytest.mark.parametrize("head", ["mean_pooling", "own"])
def test_the_readme_gives_the_same_logits_for_pairs_and_without_a_padding_token(
    hellora: Command, small: Path, tmp_path: Path, tiny_llama: Path, head: str
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_llama, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"pad_token": None, "eos_token": "[SEP]"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    pairs = (*changed("data.name", save_pairs(tmp_path / "pairs")), *changed("data.text_pair", "other"))
    changes = (*changed("model.name", model), *changed("task.head_type", head), *pairs)
    assert hellora("run", small, "--out", out, *changes, *changed("fleet.layers", [1, 2, 3])).status == 0
    check_readme(out, lambda names: dict(names["batch"]))
    assert "texts, pairs, padding=True" in code_in(out)
    assert "tokenizer.pad_token = " in code_in(out)


# -------------------------------------------------------------------------------------------------------- plan and list


def test_plan_prints_what_the_run_then_does(hellora: Command, small: Path, tmp_path: Path) -> None:
    geometric = changed("method.allocator", "geometric")
    hellora("run", small, "--out", tmp_path / "out", *geometric)
    for round, line in enumerate(lines_of(tmp_path / "out")):
        grid = hellora("plan", small, "--round", round, *geometric).out
        rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in grid.splitlines() if "│" in row]
        expected = []
        for client, ranks in line["ranks"].items():
            capacity = read_experiment(str(small)).fleet.budgets(6, seed=0)[int(client)].layers
            cells = " ".join(f"{rank:>2}" if rank else " ·" for rank in ranks).strip()
            expected.append([client, f"{np.count_nonzero(ranks)} of {capacity}", cells])
        assert rows == expected


def test_plan_needs_neither_data_nor_weights(
    hellora: Command, small: Path, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny_bert / "config.json").read_bytes())
    answer = hellora("plan", small, *changed("model.name", bare), *changed("data.name", "nobody/has-this"))
    assert answer.status == 0
    assert "Layer scores need weights and data" in answer.out
    assert not (tmp_path / "runs").exists()


def test_plan_says_that_ranks_pruned_later_are_unknown(hellora: Command, small: Path) -> None:
    settings = [*changed("method.allocator", "self_pruning"), *changed("method.local_training", ["hetlora"])]
    note = "To what rank clients prune themselves, only training shows"
    assert note in hellora("plan", small, "--round", 1, *settings).out
    assert note not in hellora("plan", small, *settings).out  # nobody has pruned before round 0
    assert note not in hellora("plan", small, "--round", 1, *settings, *changed("method.tail_penalty", 0.0)).out
    assert note not in hellora("plan", small, "--round", 1, *settings[:2]).out  # nor where nobody reports a rank
    assert note not in hellora("plan", small, "--round", 1, *settings[2:]).out


def test_list_has_a_line_for_everything(hellora: Command) -> None:
    answer = hellora("list")
    assert answer.status == 0
    lines = {
        line[2:32].strip(): line[32:] for line in answer.out.splitlines() if line.startswith("  ") and line[2] != " "
    }
    expected = {name for kind in registry.FOLDERS for name in registry.names(kind)} | set(presets()) | set(TABLES)
    assert lines.keys() == expected
    assert all(len(text) > 15 for text in lines.values())
    headings = [line for line in answer.out.splitlines() if line and not line.startswith(" ")]
    kinds = ["starts", "samplers", "allocators", "dispatchers", "local training", "aggregators", "server optimizers"]
    assert headings == ["tables", *kinds, "tasks", "partitioners", "presets"]


# ------------------------------------------------------------------------------------------------ folders and the shell


def test_runs_without_a_folder_are_numbered(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_round = changed("rounds", 1)
    assert hellora("run", small, *one_round).status == 0
    assert hellora("run", small, *one_round).status == 0
    assert names_in(tmp_path / "runs") == {"small", "small-2"}
    before = (tmp_path / "runs" / "small-2" / "summary.json").read_bytes()
    assert hellora("run", small, "--resume", *one_round).status == 0  # the latest, which is finished
    assert names_in(tmp_path / "runs") == {"small", "small-2"}
    assert (tmp_path / "runs" / "small-2" / "summary.json").read_bytes() == before


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hellora", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


AT_ONCE = """
import sys
from hellora.cli.app import app
from hellora.cli.ending import run_command
for line in sys.argv[1:]:
    sys.argv = ["hellora", *line.split()]
    print("status", run_command(app))
print("imported", *{"torch", "transformers", "peft", "datasets", "pandas", "flwr", "sklearn"} & set(sys.modules))
"""


def test_help_a_list_and_what_is_refused_by_name_need_no_torch() -> None:
    good = ["--help", "run --help", "list"]
    refused = {
        "run quickstrt": "there is no preset or file 'quickstrt': did you mean 'quickstart'?",
        "run quickstart --set trian.lr=1": "unknown setting trian: did you mean 'train'?",
        "run quickstart --set method.warm_up=3": "unknown setting method.warm_up: did you mean 'warmup'?",
        "plan quickstart --set data.partitioner=idd": (
            "data.partitioner: there is no partitioner 'idd': did you mean 'iid'?"
        ),
    }
    command = [sys.executable, "-c", AT_ONCE, *good, *refused]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = answer.stdout.splitlines()
    assert [line for line in lines if line.startswith("status")] == ["status 0"] * 3 + ["status 2"] * 4
    assert lines[-1] == "imported"
    assert all(f"error: {why}\n" in answer.stderr for why in refused.values())
    assert {"run", "plan", "fed_hello", "dirichlet", "quickstart"} <= {
        line.split()[0] for line in lines if line.split()
    }


def test_exit_status_and_streams_as_a_shell_sees_them(small: Path, tmp_path: Path, follow: Follow) -> None:
    bad = shell("run", small, "--set", "train.learning=1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: unknown setting train.learning")
    assert bad.stderr.count("\n") == 1
    good = shell("run", small, "--out", tmp_path / "out", "--set", "rounds=1")
    assert (good.returncode, good.stderr) == (0, "")
    assert follow(code_in(tmp_path / "out") + "\nprint(logits.shape)\n") == "torch.Size([2, 3])\n"


FAULTY = """
from pathlib import Path

from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local_training.plain import Plain
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.server_optimizers.average import Average


def fail(when):
    if when and not Path("mended").exists():
        raise ValueError("two\\nlines")


class Aggregates(ParticipantMean):
    def aggregate(self, context, answers):
        fail(context.round == 1)
        return super().aggregate(context, answers)


class Allocates(Everything):
    def allocate(self, context):
        fail(context.round == 1)
        return super().allocate(context)


class Dispatches(Whole):
    def dispatch(self, context, adapter, trained):
        fail(any(pair.B.any() for pair in adapter.pairs.values()))  # from round 1 on
        return super().dispatch(context, adapter, trained)


class Samples(Uniform):
    def sample(self, context):
        fail(context.round == 1)
        return super().sample(context)


class Briefs(Plain):
    def brief(self, context, client, shapes):
        fail(context.round == 1)
        return {}


class Steps(Average):
    def step(self, context, aggregated, trained, factors):
        fail(context.round == 1)
        return super().step(context, aggregated, trained, factors)
"""


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("method.sampler", "faulty.py:Samples"),
        ("method.allocator", "faulty.py:Allocates"),
        ("method.dispatcher", "faulty.py:Dispatches"),
        ("method.local_training", "faulty.py:Briefs"),
        ("method.aggregator", "faulty.py:Aggregates"),
        ("server.optimizer", "faulty.py:Steps"),
    ],
)
def test_a_strategy_that_raises_stops_the_run_in_one_line_and_it_goes_on_when_mended(
    hellora: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, name: str
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    value = [name] if setting == "method.local_training" else name
    arguments = ["run", small, "--out", out, *changed(setting, value), "--resume"]
    stopped = hellora(*arguments)
    assert stopped.status == 1
    why = f"{name.replace('.py', '')} raised ValueError: two lines"
    expected = f"error: round 1: {why}: mend it and --resume (traceback: {out}/error.log)"
    assert stopped.err == f"{expected}\n"
    assert 'raise ValueError("two' in (out / "error.log").read_text()
    kept = (out / "rounds.jsonl").read_text()
    assert kept.count("\n") == 1
    (tmp_path / "mended").touch()
    assert hellora(*arguments).status == 0
    assert (out / "rounds.jsonl").read_text().startswith(kept)
    assert not (out / "error.log").exists()


def test_numbers_travel_as_the_file_says(hellora: Command, small: Path, tmp_path: Path) -> None:
    """As int8 one byte per number, and four for each of A's rows, B's columns, the head's rows and its bias."""
    exact, rounded = tmp_path / "fp32", tmp_path / "int8"
    for out, settings in ((exact, ()), (rounded, changed("wire.format", "int8"))):
        assert hellora("run", small, "--out", out, *changed("rounds", 1), *settings).status == 0
    (before,), (after,) = lines_of(exact), lines_of(rounded)
    components = [sum(before["ranks"][str(client)]) for client in before["updated"]]
    assert after["ranks"] == before["ranks"]
    assert before["uplink_bytes"] == 4 * sum(VALUES_PER_RANK * count + HEAD_VALUES for count in components)
    assert after["uplink_bytes"] == sum((VALUES_PER_RANK + 4 * 4) * count + HEAD_VALUES + 4 * 4 for count in components)
    assert after["downlink_bytes"] == 3 * ((VALUES_PER_RANK + 4 * 4) * LAYERS * RANK + HEAD_VALUES + 4 * 4)
    assert adapter_bytes(rounded) != adapter_bytes(exact), "a simulation rounds, too"
    assert abs(after["metrics"]["loss"] - before["metrics"]["loss"]) < 0.1
    refused = hellora("run", small, "--out", rounded, "--resume")
    assert refused.status == 2
    assert "holds a run of another experiment, with another rounds, wire.format: choose" in refused.err


def test_updates_that_moved_too_far_are_rejected(hellora: Command, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = hellora("run", small, "--out", out, *changed("guard.max_norm", 1e-6), *changed("attempts", 1))
    assert answer.status != 0
    assert "its delta has a norm of" in answer.err
    assert "guard.max_norm is 1e-06" in answer.err
