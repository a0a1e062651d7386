"""What clients.json says of a simulation and of a deployment."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset

from hellora.core.types import Budget, ClientProfile
from hellora.runs.fleet_record import fleet_record

FLEET = (
    ClientProfile(0, 3, Budget(layers=2, memory_bytes=100)),
    ClientProfile(1, 1, Budget(Fraction(2, 3), rank=(1, 2))),
)


CLASSES = {"label": [1, 0, 1, 1]}


def setup_of(labels: tuple[str, ...], parts: Any, clients: Any = (), data: Any = CLASSES) -> Any:
    return SimpleNamespace(
        federation=SimpleNamespace(fleet=FLEET, spec=SimpleNamespace(num_layers=6)),
        corpus=SimpleNamespace(labels=labels),
        work=SimpleNamespace(data=Dataset.from_dict(data), parts=parts),
        clients=dict(clients),
    )


def test_a_simulation_has_the_count_of_every_class() -> None:
    parts = [np.array([0, 1, 3]), np.array([2])]
    assert fleet_record(setup_of(("sea", "sky"), parts)) == {
        "clients": [
            {"id": 0, "examples": 3, "budget": {"layers": 2, "memory_bytes": 100}, "labels": {"sea": 1, "sky": 2}},
            {"id": 1, "examples": 1, "budget": {"layers": 4, "rank": (1, 2)}, "labels": {"sky": 1}},
        ]
    }


def test_labels_are_counted_and_numbers_are_not() -> None:
    parts = [np.array([0, 1]), np.array([2])]
    for data, counts in (
        ({"targets": [[1, 1], [0, 1], [0, 0]]}, [{"sea": 1, "sky": 2}, {}]),
        ({"targets": [[1.0, 2.0], [0.5, 0.0], [2.0, 1.0]]}, [None, None]),
    ):
        clients = fleet_record(setup_of(("sea", "sky"), parts, data=data))["clients"]
        assert [client.get("labels") for client in clients] == counts


def test_a_deployment_has_names_and_no_labels() -> None:
    clients = fleet_record(setup_of(("sea", "sky"), None, {"clinic": {}, "phone": {}}))["clients"]
    assert [client["name"] for client in clients] == ["clinic", "phone"]
    assert not any("labels" in client for client in clients)


def test_a_language_model_has_no_classes() -> None:
    assert not any("labels" in c for c in fleet_record(setup_of((), [np.array([0]), np.array([1])]))["clients"])
