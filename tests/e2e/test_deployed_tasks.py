"""Every task between machines, over TLS: one running federation takes a run of each in turn, and each ends with the
bits that it has on one machine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import every_task
import pytest
from every_task import CASES, COLUMNS
from federation_site import Site, running, same_bits, tensors

from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment

pytestmark = [pytest.mark.slow, pytest.mark.flower, pytest.mark.xdist_group("deployed tasks")]
CLIENTS = {"clinic": (1, 2), "hospital": (2, 4)}  # layers and rank


class EveryTask(Site):
    """A site whose clients let a server read the columns of every task."""

    kind = "parquet"

    def start_client(self, name: str, *more: object) -> None:
        super().start_client(name, "--columns", ",".join(COLUMNS), *more)

    def experiment(self, at: Path, **changes: Any) -> Experiment:  # type: ignore[override]  # `data` is a table here
        own = changes.pop("data", {})
        table = super().experiment(at, **changes).table
        return check("tasks", {**table, "data": {**table["data"], **own}}, simulated=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("tasks")
    training = every_task.rows_of(40, 3, list(CLIENTS))
    every_task.write(folder / "whole" / "train.parquet", training)
    for at in ("whole", "server"):
        every_task.write(folder / at / "test.parquet", every_task.rows_of(12, 4, ["server"]))
    for name in CLIENTS:
        every_task.write(folder / f"{name}.parquet", [row for row in training if row["owner"] == name])
    with running(EveryTask(folder, folder, CLIENTS)) as begun:
        yield begun


@pytest.mark.parametrize("case", CASES)
def test_every_task_ends_with_the_same_bits(case: str, site: Site) -> None:
    kind, task, data = CASES[case]
    changes = {
        "rounds": 1,
        "model": {"name": str(every_task.save_model(kind, site.folder)), "rank": 4},
        "task": task,
        "data": data,
        "method": {"allocator": "random_layers", "dispatcher": "truncate"},
        "train": {"lr": 0.03, "batch_size": 4, "steps": 3},
    }
    run = site.submit(case, **changes)
    assert run.wait() == 0, run.log
    assert not any(line["missing"] or line["rejected"] for line in run.lines())
    assert same_bits(tensors(run.folder), site.replay(case, run.lost(), **changes))
