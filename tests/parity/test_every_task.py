"""A run of every task on this machine, on a grid of simulated clients, and on clients with their own files: the same
bits."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import every_task
import pytest
import torch
from every_task import CASES, COLUMNS
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


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[FakeGrid]:
    """A grid whose nodes have resident trainers, with their own files; beside it the data of all, and the server's."""
    names = list(CLIENTS)
    rows = every_task.rows_of(36, 3, names)
    every_task.write(tmp_path / "whole" / "train.parquet", rows)
    for at in ("whole", "server"):
        every_task.write(tmp_path / at / "test.parquet", every_task.rows_of(8, 4, ["server"]))
    configs = {}
    for node, (name, layers) in enumerate(CLIENTS.items(), 70):
        every_task.write(tmp_path / f"{name}.parquet", [each for each in rows if each["owner"] == name])
        own = OwnSettings(
            name, {"name": str(tmp_path / f"{name}.parquet")}, "none", layers, device="cpu",
            folder=str(tmp_path / "states" / name), columns=COLUMNS,
        )  # fmt: skip
        socket = str(tmp_path / f"{node}.sock")
        threading.Thread(target=serve, args=(socket, WithOwnData(own, lambda _: None)), daemon=True).start()
        configs[node] = {"trainer": socket}
    return FakeGrid(dict(reversed(configs.items())))


def experiment(model: Path, data: Path, case: str, **changes: Any) -> Experiment:
    _, task, columns = CASES[case]
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


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"chat"}))  # "packed" is a chat
def test_three_worlds_end_with_the_same_bits(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, trainers: FakeGrid
) -> None:
    model: Path = request.getfixturevalue(f"tiny_{CASES[case][0]}")
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
    case = "packed"
    deployed = Deployed(trainers, lambda _: None).prepare(experiment(tiny_llama, tmp_path / "server", case), {})
    together = prepare(experiment(tiny_llama, tmp_path / "whole", case, fleet={"layers": [1, 2, 3]}))
    rows = [client.num_rows for client in deployed.federation.fleet]
    assert rows == [client.num_rows for client in together.federation.fleet]
    assert all(found < 12 for found in rows)
