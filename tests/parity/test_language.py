"""Language runs on this machine, on a grid of simulated clients, and on clients with their own files: the same bits.

So do words with tags.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from fake_grid import FakeGrid
from federation_site import Silent
from safetensors.torch import load_file

from hellora.deployment.flower_setup import Deployed, SimulatedOnFlower
from hellora.deployment.own_settings import OwnSettings
from hellora.deployment.participant import WithOwnData
from hellora.deployment.trainer import serve
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.prepare import prepare
from hellora.runs.run import Prepare, run_experiment

CLIENTS = {"clinic": 1, "hospital": 3, "phone": 2}  # layers, in order of ids
COLUMNS = (
    "messages",
    "story",
    "chosen",
    "rejected",
    "prompt",
    "label",
    "asked",
    "told",
    "words",
    "ner_tags",
)  # that clients let a server read
TEMPLATE = "{% for m in messages %}{{ m.content + ' [SEP] ' }}{% endfor %}"
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # [task] and [data]
    "chat, packed": ({"name": "causal_lm", "chat_template": TEMPLATE, "packing": True, "max_length": 40}, {}),
    "text": ({"name": "causal_lm"}, {"text": "story"}),
    "preference": ({"name": "preference", "chat_template": TEMPLATE}, {}),
    "seq2seq": ({"name": "seq2seq"}, {"prompt": "{asked}", "response": "{told}"}),
    "words": ({"name": "token_classification"}, {}),
}
MODELS = {"seq2seq": "tiny_bart", "words": "tiny_bert"}


def row(text: str, owner: str) -> dict[str, Any]:
    """A row that can be read in every form."""
    *words, last = text.split()
    asked, answer = ({"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": last})
    rejected = [asked, {**answer, "content": "the the"}]
    talk = {"messages": [asked, answer], "chosen": [asked, answer], "rejected": rejected}
    tags = ["B-TALK" if word in tiny_models.COMMON else "O" for word in text.split()]
    named = {"asked": " ".join(words), "told": last, "words": text.split(), "ner_tags": tags}
    return {**talk, **named, "story": text, "owner": owner}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[FakeGrid]:
    """A grid whose nodes have resident trainers, with their own files; beside it the data of all, and the server's."""
    names = list(CLIENTS)
    rows = [row(text, names[i % 3]) for i, (text, _) in enumerate(tiny_models.sentences(36, 3))]
    write(tmp_path / "whole" / "train.jsonl", rows)
    for at in ("whole", "server"):
        write(tmp_path / at / "test.jsonl", [row(text, "x") for text, _ in tiny_models.sentences(8, 4)])
    configs = {}
    for node, (name, layers) in enumerate(CLIENTS.items(), 70):
        write(tmp_path / f"{name}.jsonl", [each for each in rows if each["owner"] == name])
        own = OwnSettings(
            name, {"name": str(tmp_path / f"{name}.jsonl")}, "none", layers, device="cpu",
            folder=str(tmp_path / "states" / name), columns=COLUMNS,
        )  # fmt: skip
        socket = str(tmp_path / f"{node}.sock")
        threading.Thread(target=serve, args=(socket, WithOwnData(own, lambda _: None)), daemon=True).start()
        configs[node] = {"trainer": socket}
    return FakeGrid(dict(reversed(configs.items())))


def experiment(model: Path, data: Path, case: str, **changes: Any) -> Experiment:
    task, columns = CASES[case]
    table = {
        "rounds": 2,
        "cohort": 3,
        "task": task,
        "model": {"name": str(model), "rank": 4},
        "data": {"name": str(data), "clients": 3, "partitioner": "column", "column": "owner", **columns},
        "train": {"lr": 0.03, "batch_size": 4, "steps": 3},
        "compute": {"threads": 1},
        "method": {"allocator": "random_layers"},
    }
    return check("parity", {**table, **changes}, simulated="fleet" in changes)


def tensors_after(experiment: Experiment, out: Path, preparing: Prepare | None = None) -> dict[str, torch.Tensor]:
    run_experiment(experiment, out, Silent(), **({"preparing": preparing} if preparing else {}))
    return load_file(max((out / "checkpoint").glob("*.safetensors")))


@pytest.mark.parametrize("case", CASES)
def test_three_worlds_end_with_the_same_bits(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, trainers: FakeGrid
) -> None:
    model: Path = request.getfixturevalue(MODELS.get(case, "tiny_llama"))
    apart = experiment(model, tmp_path / "server", case)
    order = experiment(model, tmp_path / "whole", case, fleet={"layers": [0, 1, 2]}).fleet.members(3, 0)
    layers = [0] * 3
    for client, group in enumerate(order):
        layers[group] = list(CLIENTS.values())[client]
    together = experiment(model, tmp_path / "whole", case, fleet={"layers": layers})
    local = tensors_after(together, tmp_path / "local")
    simulated = FakeGrid({node: {"partition-id": node - 50, "num-partitions": 3} for node in range(50, 53)})
    on_grid = tensors_after(together, tmp_path / "grid", SimulatedOnFlower(simulated, lambda _: None).prepare)
    deployed = tensors_after(apart, tmp_path / "deployed", Deployed(trainers, lambda _: None).prepare)
    for other in (on_grid, deployed):
        assert other.keys() == local.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in local.items())


def test_a_server_knows_how_many_rows_its_clients_pack(tiny_llama: Path, tmp_path: Path, trainers: FakeGrid) -> None:
    """By which it tells how long they take."""
    case = "chat, packed"
    deployed = Deployed(trainers, lambda _: None).prepare(experiment(tiny_llama, tmp_path / "server", case), {})
    together = prepare(experiment(tiny_llama, tmp_path / "whole", case, fleet={"layers": [1, 2, 3]}))
    rows = [client.num_rows for client in deployed.federation.fleet]
    assert rows == [client.num_rows for client in together.federation.fleet]
    assert all(found < 12 for found in rows)
