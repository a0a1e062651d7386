"""The same run on this machine, on a grid of simulated clients, and on clients with their own files: the same bits."""

import csv
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import bits
from fake_grid import FakeGrid, Spoil
from federation_site import METHODS, Silent, write
from flwr.app import ConfigRecord, Message, RecordDict
from rich.console import Console
from safetensors.torch import load, load_file

from hellora.backends.records import fields_of, note
from hellora.core.errors import InputError, RunError
from hellora.deployment.flower_setup import Deployed, SimulatedOnFlower
from hellora.deployment.own_settings import OwnSettings
from hellora.deployment.participant import WithOwnData
from hellora.deployment.trainer import serve
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.record.sealed import unsealed_bytes
from hellora.runs.progress import TerminalProgress
from hellora.runs.run import Prepare, run_experiment
from hellora.tasks.sequence_classification import SequenceClassification

CLIENTS = {"clinic": (2, 2), "hospital": (4, 4), "phone": (1, 1), "ward": (3, 4)}  # layers and rank, in order of ids

RIDGE = {"ridge": {"allocator": "everything", "start": "ridge", "head": "closed_form"}}
PERSONAL: dict[str, dict[str, Any]] = {
    "fedsa": {"allocator": "everything", "dispatcher": "truncate", "shares": "A", "head": "local"},
    "fed_alora": {"allocator": "random_layers", "dispatcher": "whole", "shares": "B", "head": "local"},
    "heads": {"allocator": "random_layers", "dispatcher": "bypass", "head": "local"},
}


@pytest.fixture
def rows(sentences: Path) -> list[dict[str, str]]:
    """Training rows, each with the client that owns it."""
    with (sentences / "train.csv").open() as file:
        found = list(csv.DictReader(file))
    names = list(CLIENTS)
    return [{**row, "owner": names[i % 3] if i % 5 else names[3]} for i, row in enumerate(found)]


def experiment(model: Path, data: Path, method: str, **changes: Any) -> Experiment:
    layers, ranks = zip(*CLIENTS.values(), strict=True)
    table = {
        "rounds": 3,
        "cohort": 3,
        "model": {"name": str(model), "rank": 4},
        "data": {"name": str(data), "clients": 4, "partitioner": "column", "column": "owner"},
        "fleet": {"layers": layers, "ranks": ranks},
        "train": {"lr": 0.03, "batch_size": 8},
        "compute": {"threads": 1},
        "method": {**METHODS, **PERSONAL, **RIDGE}[method],
    }
    return check("parity", {**table, **changes})


def with_files(rows: list[dict[str, str]], sentences: Path, folder: Path) -> tuple[Path, Path]:
    """The data of all in one folder, and what the server alone has."""
    whole, server = folder / "whole", folder / "server"
    write(whole / "train.csv", rows)
    for at in (whole, server):
        at.mkdir(exist_ok=True)
        (at / "test.csv").write_bytes((sentences / "test.csv").read_bytes())
    for name in CLIENTS:
        write(folder / f"{name}.csv", [row for row in rows if row["owner"] == name])
    return whole, server


@pytest.fixture
def trainers(rows: list[dict[str, str]], sentences: Path, tmp_path: Path) -> Iterator[FakeGrid]:
    """A grid whose nodes have resident trainers, behind real sockets, with their own files and budgets."""
    with_files(rows, sentences, tmp_path)
    configs = {}
    for node, (name, (layers, rank)) in enumerate(CLIENTS.items(), 70):
        own = OwnSettings(
            name, {"name": str(tmp_path / f"{name}.csv")}, "none", layers, rank, device="cpu",
            folder=str(tmp_path / "states" / name),
        )  # fmt: skip
        socket = str(tmp_path / f"{node}.sock")
        threading.Thread(target=serve, args=(socket, WithOwnData(own, lambda _: None)), daemon=True).start()
        configs[node] = {"trainer": socket}
    return FakeGrid(dict(reversed(configs.items())))


def adapter_after(experiment: Experiment, out: Path, preparing: Prepare | None = None) -> dict[str, torch.Tensor]:
    run_experiment(experiment, out, Silent(), **({"preparing": preparing} if preparing else {}))
    return load_file(out / "adapter" / "adapter_model.safetensors") | load_file(
        max((out / "checkpoint").glob("*.safetensors"))
    )


@pytest.mark.parametrize("method", METHODS)
def test_three_worlds_end_with_the_same_bits(method: str, tiny_bert: Path, tmp_path: Path, trainers: FakeGrid) -> None:
    in_three_worlds(method, tiny_bert, tmp_path, trainers)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ({"name": "regression"}, {"sea": "-0.5", "sky": "1e0", "soil": " 3 "}),
        ({"name": "multi_label"}, {"sea": '["sea", "wet"]', "sky": "[]", "soil": '["dry"]'}),
    ],
    ids=["regression", "multi_label"],
)
def test_worlds_of_numbers_and_labels(
    task: dict[str, Any], labels: dict[str, str], tiny_bert: Path, tmp_path: Path, trainers: FakeGrid
) -> None:
    """With a head in closed form, for which all of a client's features are summed; of numbers, which are standardised,
    clients tell sums before that."""
    for file in (*tmp_path.glob("*.csv"), *tmp_path.glob("*/*.csv")):
        with file.open() as opened:
            write(file, [{**row, "label": labels[row["label"]]} for row in csv.DictReader(opened)])
    in_three_worlds("ridge", tiny_bert, tmp_path, trainers, task=task, rounds=1)


def in_three_worlds(method: str, tiny_bert: Path, tmp_path: Path, trainers: FakeGrid, **changes: Any) -> None:
    whole, server = tmp_path / "whole", tmp_path / "server"
    budgets = experiment(tiny_bert, whole, method, **changes)
    # The simulation deals groups out to clients; here each client is to have its own.
    groups = budgets.fleet.members(4, budgets.run.seed)
    layers, ranks = ([pair[i] for _, pair in sorted(zip(groups, CLIENTS.values(), strict=True))] for i in (0, 1))
    together = experiment(tiny_bert, whole, method, fleet={"layers": layers, "ranks": ranks}, **changes)
    local = adapter_after(together, tmp_path / "local")
    simulated = FakeGrid({node: {"partition-id": node - 50, "num-partitions": 4} for node in range(50, 54)})
    on_grid = adapter_after(together, tmp_path / "grid", SimulatedOnFlower(simulated, lambda _: None).prepare)
    apart = experiment(tiny_bert, server, method, **changes)
    deployed = adapter_after(apart, tmp_path / "deployed", Deployed(trainers, lambda _: None).prepare)
    for other in (on_grid, deployed):
        assert other.keys() == local.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in local.items())
    lines = [(tmp_path / world / "rounds.jsonl").read_text().splitlines() for world in ("local", "grid", "deployed")]
    for each in zip(*lines, strict=True):
        facts = [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "clients")} for line in each]
        assert facts[0] == facts[1] == facts[2]


@pytest.mark.parametrize(
    ("method", "format"), [("fedsa", "fp32"), ("fed_alora", "bf16"), ("heads", "int8"), ("fedsa", "int8")]
)
def test_parts_of_their_own_stay_with_clients_and_what_is_shared_ends_with_the_same_bits(
    method: str, format: str, tiny_bert: Path, tmp_path: Path, trainers: FakeGrid
) -> None:
    """What each has of its own is what a simulation's server keeps for it, bit for bit, and as many bytes travel."""
    changes: dict[str, Any] = {"wire": {"format": format}, "rounds": 4}
    groups = experiment(tiny_bert, tmp_path / "whole", method, **changes).fleet.members(4, 0)
    layers, ranks = ([pair[i] for _, pair in sorted(zip(groups, CLIENTS.values(), strict=True))] for i in (0, 1))
    fleet = {"layers": layers, "ranks": ranks}
    local = adapter_after(experiment(tiny_bert, tmp_path / "whole", method, fleet=fleet, **changes), tmp_path / "local")
    apart = experiment(tiny_bert, tmp_path / "server", method, **changes)
    deployed = adapter_after(apart, tmp_path / "deployed", Deployed(trainers, lambda _: None).prepare)
    shared = {name: tensor for name, tensor in local.items() if not name.startswith("kept/")}
    assert deployed.keys() == shared.keys()
    assert all(torch.equal(tensor, deployed[name]) for name, tensor in shared.items())
    state = json.loads(max((tmp_path / "deployed" / "checkpoint").glob("*.json")).read_text())
    for client, version in state["kept_versions"].items():
        folder = tmp_path / "states" / list(CLIENTS)[int(client)] / "kept"
        (kept,) = folder.glob(f"*/{version:06d}.safetensors")
        before = f"kept/{client}/"
        own = {name.removeprefix(before): t for name, t in local.items() if name.startswith(before)}
        assert own
        assert bits(load(unsealed_bytes(kept.read_bytes()))) == bits(own)
    measured = ("seconds", "clients", "metrics", "per_class", "aggregation_error", "measured_modules")
    one, other = (
        [
            {key: value for key, value in json.loads(line).items() if key not in measured}
            for line in (tmp_path / world / "rounds.jsonl").read_text().splitlines()
        ]
        for world in ("local", "deployed")
    )
    assert one == other


def test_the_record_has_the_means_of_what_clients_tell_of_their_models(
    tiny_bert: Path, tmp_path: Path, trainers: FakeGrid
) -> None:
    run = experiment(tiny_bert, tmp_path / "server", "fedsa", eval_every=2)
    out = tmp_path / "out"
    summary = run_experiment(run, out, Silent(), preparing=Deployed(trainers, lambda _: None).prepare)
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["metrics"] is None for line in lines] == [True, False, False]
    for line in lines[1:]:
        sums = {
            name: sum(client[f"held_out_{name}"] for client in line["clients"].values())
            for name in ("examples", "right", "loss")
        }
        means = {"accuracy": sums["right"] / sums["examples"], "loss": sums["loss"] / sums["examples"]}
        assert line["metrics"] == pytest.approx(means)
    assert summary["final"] == lines[-1]["metrics"]
    assert summary["initial"] == {}
    assert summary["data"]["evaluated_on"] == "the clients' held-out examples"
    last = {client: values for line in lines[1:] for client, values in line["clients"].items()}
    assert summary["clients"] == {
        client: values["held_out_right"] / values["held_out_examples"] for client, values in sorted(last.items())
    }
    assert summary["worst_client"] == min(summary["clients"].values())
    of_all = sum(values["held_out_examples"] for values in last.values())
    assert sum(scores["examples"] for scores in summary["per_class"].values()) == of_all
    right = sum(scores["recall"] * scores["examples"] for scores in summary["per_class"].values())
    assert right == pytest.approx(sum(values["held_out_right"] for values in last.values()), abs=0.01)
    assert lines[0]["per_class"] is None
    assert lines[-1]["per_class"].keys() <= summary["per_class"].keys() <= {"sea", "sky", "soil"}
    assert "confusion" not in summary, "clients tell how many are right of each class, not what they are taken for"
    assert sum(group["clients"] for group in summary["groups"]) == 4
    assert any(group["metrics"].keys() == {"accuracy", "loss"} for group in summary["groups"])
    for client in json.loads((out / "clients.json").read_text())["clients"]:
        rows = len((tmp_path / f"{client['name']}.csv").read_text().splitlines()) - 1
        assert client["examples"] == rows - round(0.2 * rows)
    card = (out / "adapter" / "README.md").read_text()
    assert "Each has its own (`hellora client export`)." in card
    assert not (out / "adapter" / "personal").exists()


def saying(changes: Mapping[str, Any], kind: str, client: str) -> Spoil:
    """The client's answers of this kind with other fields."""

    def spoil(asked: Message, answer: Message) -> Message:
        if asked.metadata.message_type == kind and client in str(fields_of(answer.content)):
            return Message(note({**fields_of(answer.content), **changes}), reply_to=asked)
        return answer

    return spoil


def test_a_client_with_the_key_of_another_does_not_take_part(
    tiny_bert: Path, tmp_path: Path, trainers: FakeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hellora.deployment.flower_setup.JOIN_SECONDS", 1.0)
    lines: list[str] = []
    record = tmp_path / "admitted.json"
    keys = {str(node): {"name": name, "node": str(node)} for node, name in enumerate(CLIENTS, 70)}
    record.write_text(json.dumps(keys))
    deployed = Deployed(trainers, lines.append, record)
    assert list(deployed.prepare(experiment(tiny_bert, tmp_path / "server", "fed_hello"), {}).clients) == list(CLIENTS)
    trainers.spoil = saying({"name": "clinic"}, "query.join", "phone")
    with pytest.raises(RunError, match="only 3 clients joined"):
        deployed.prepare(experiment(tiny_bert, tmp_path / "server", "fed_hello"), {})
    assert "node 72 did not join: it says that it is clinic, with the key of phone" in lines


@pytest.mark.parametrize("longest", [10**9, 0, -3, "9", None, True, 9.5])
def test_a_length_that_cannot_be_names_its_client(
    longest: Any, tiny_bert: Path, tmp_path: Path, trainers: FakeGrid
) -> None:
    trainers.spoil = saying({"longest": longest}, "query.prepare", "longest")
    with pytest.raises(InputError, match=r"client clinic: its longest example has .* tokens, of at most 64"):
        Deployed(trainers, lambda _: None).prepare(experiment(tiny_bert, tmp_path / "server", "fed_hello"), {})


def test_other_classes_than_when_the_run_began_are_refused(tiny_bert: Path, tmp_path: Path, trainers: FakeGrid) -> None:
    lines: list[str] = []
    run, deployed = experiment(tiny_bert, tmp_path / "server", "fed_hello"), Deployed(trainers, lines.append)
    before = json.loads(json.dumps(dict(deployed.prepare(run, {}).clients)))
    with (tmp_path / "ward.csv").open("a") as file:
        file.write("we saw the sea,sea,ward\n")
    deployed.prepare(run, {"clients": before})
    assert lines[-2].startswith("ward had ")
    with (tmp_path / "clinic.csv").open("a") as file:
        file.write("we saw a zebra,zebra,clinic\n")
    with pytest.raises(InputError, match="client clinic: its data has other classes"):
        deployed.prepare(run, {"clients": before})


def test_a_client_that_tells_no_loss_stops_nothing(tiny_bert: Path, tmp_path: Path, trainers: FakeGrid) -> None:
    def spoil(asked: Message, answer: Message) -> Message:
        if asked.metadata.message_type != "train":
            return answer
        fields = {**fields_of(answer.content), "metrics": {"examples": 10**6}}
        records = RecordDict({**answer.content, "message": ConfigRecord({"fields": json.dumps(fields)})})
        return Message(records, reply_to=asked)

    trainers.spoil = spoil
    written = io.StringIO()
    with TerminalProgress(Console(file=written, width=200)) as progress:
        run = experiment(tiny_bert, tmp_path / "server", "fed_hello")
        run_experiment(run, tmp_path / "out", progress, preparing=Deployed(trainers, lambda _: None).prepare)
    assert "round   2" in written.getvalue()
    assert "train loss" not in written.getvalue()
    lines = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert all(client["examples"] < 96 for line in lines for client in line["clients"].values())


def test_a_client_loads_its_model_and_encodes_its_data_once(
    tiny_bert: Path, tmp_path: Path, trainers: FakeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model and the data for all rounds; the server encodes what it evaluates on."""
    encoded, loaded = Counter[int](), Counter[str]()
    encode, load = SequenceClassification.encode, SequenceClassification.load

    def counting_encode(self: Any, base: Any, rows: Any) -> Any:
        encoded[len(rows)] += 1
        return encode(self, base, rows)

    def counting_load(self: Any, *settings: Any, **more: Any) -> Any:
        loaded[threading.current_thread().name] += 1
        return load(self, *settings, **more)

    monkeypatch.setattr(SequenceClassification, "encode", counting_encode)
    monkeypatch.setattr(SequenceClassification, "load", counting_load)
    run_experiment(
        experiment(tiny_bert, tmp_path / "server", "product_update", cohort=4),
        tmp_path / "out",
        Silent(),
        preparing=Deployed(trainers, lambda _: None).prepare,
    )
    lines = (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["updated"]) == 4 for line in lines)
    sizes = [client["examples"] for client in json.loads((tmp_path / "out" / "clients.json").read_text())["clients"]]
    assert {size: encoded[size] for size in sizes} == Counter(sizes)
    assert sorted(loaded.values()) == [1, 1, 1, 1, 1]  # four clients and the server


def test_who_is_who_is_on_record(tiny_bert: Path, tmp_path: Path, trainers: FakeGrid) -> None:
    run_experiment(
        experiment(tiny_bert, tmp_path / "server", "fed_hello"),
        tmp_path / "out",
        Silent(),
        preparing=Deployed(trainers, lambda _: None).prepare,
    )
    clients = json.loads((tmp_path / "out" / "clients.json").read_text())["clients"]
    assert [(client["id"], client["name"]) for client in clients] == list(enumerate(CLIENTS))
    assert [(client["budget"]["layers"], client["budget"]["rank"]) for client in clients] == list(CLIENTS.values())
    assert sum(client["examples"] for client in clients) == 96
