"""A client with its own data goes on from what it kept of the last round in which it counted."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from factories import bits

from hellora.backends.wire import pack_task, read_answer
from hellora.client.rules import shapes_of
from hellora.client.train import train_client
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, Named, TrainSettings
from hellora.core.state import owned
from hellora.data.sides import Classes
from hellora.deployment.kept import KeptTensors
from hellora.deployment.own_settings import OwnSettings
from hellora.deployment.participant import Contract, WithOwnData
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.methods.local_training.scaffold import Scaffold

TOPICS = tuple(sorted(tiny_models.TOPICS))
TRAP = """
from pathlib import Path
from hellora.methods.local_training.plain import Plain

Path(__file__).with_name("ran").touch()

class Rule(Plain):
    pass
"""
SGD = TrainSettings(optimizer="sgd", lr=0.1, weight_decay=0.0, batch_size=8, steps=2)


@dataclass(frozen=True, eq=False)
class Site:
    """A client's folder and data, and the server's side of the seam."""

    folder: Path
    experiment: Experiment
    contract: Contract

    def client(self, allow: Sequence[str] = ()) -> WithOwnData:
        """A new process of the client."""
        data = {"name": str(self.folder / "mine.csv")}
        own = OwnSettings("clinic", data, "none", device="cpu", folder=str(self.folder / "state"), allow=allow)
        return WithOwnData(own, lambda _: None)

    @property
    def store(self) -> KeptTensors:
        return KeptTensors(self.folder / "state" / "kept" / self.contract.run)

    def task(self, client: WithOwnData, round: int, version: int | None, **changes: Any) -> ClientTask:
        """Round `round` of the client, as the server makes it; its row and its variates are others in each."""
        base = client.ready(self.contract).base
        trained = np.zeros((4, 4), dtype=bool)
        trained[round % 3 :, : 2 + round % 3] = True
        adapter = new_adapter(base.spec, base.initial_head(), 0)
        task = ClientTask(round, 0, round, adapter, trained, SGD, kept_version=version)
        rng = torch.Generator().manual_seed(round)
        specs = Scaffold().declares(shapes_of(task, base)).brief
        brief = {name: 0.1 * torch.randn(spec.shape, generator=rng) for name, spec in specs.items()}
        return replace(task, brief=owned(brief, "scaffold"), **changes)

    def told(self, client: WithOwnData, task: ClientTask) -> ClientUpdate | ClientFailure:
        """What the server reads of the client's answer."""
        work = client.ready(self.contract)
        declared = Scaffold().declares(shapes_of(task, work.base))
        task = replace(task, declared=replace(declared, report=owned(declared.report, "scaffold")))
        return read_answer(client.train(self.contract, pack_task(task)), task, work.base.spec)

    def alone(self, client: WithOwnData, task: ClientTask, kept: Named) -> ClientUpdate:
        """The same training, from tensors that are handed over."""
        work = client.ready(self.contract)
        return train_client(replace(task, kept=kept), work.base, work.kind, work.data, (Scaffold(),))


def site_in(folder: Path, model: Path, **method: Any) -> Site:
    with (folder / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(tiny_models.sentences(12, seed=3))
    table = {
        "rounds": 9,
        "cohort": 1,
        "keep": 1,  # state at the server, so that a client keeps the last two versions
        "model": {"name": str(model), "rank": 4},
        "data": {"name": str(folder), "clients": 1},
        "train": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "batch_size": 8},
        "compute": {"threads": 1, "device": "cpu"},
        "method": {"allocator": "everything", "local_training": ["scaffold"], **method},
    }
    experiment = check("kept", table, simulated=False)
    return Site(folder, experiment, Contract("kept", experiment.table, Classes(TOPICS, TOPICS, True), run="f00d"))


@pytest.fixture
def site(tmp_path: Path, tiny_bert: Path) -> Site:
    return site_in(tmp_path, tiny_bert)


def same(one: ClientUpdate | ClientFailure, other: ClientUpdate) -> bool:
    assert isinstance(one, ClientUpdate), one
    return bits(one.adapter.tensors()) == bits(other.adapter.tensors()) and bits(one.report) == bits(other.report)


def test_a_client_goes_on_from_what_it_kept_and_keeps_it_for_itself(site: Site) -> None:
    client = site.client()
    kept: Named = {}
    for round, version in ((0, None), (1, 0), (5, 1)):
        task = site.task(client, round, version)
        answer, expected = site.told(client, task), site.alone(client, task, kept)
        assert same(answer, expected)
        assert answer.kept == {}, "it never leaves the machine"  # type: ignore[union-attr]
        if kept:
            assert not same(answer, site.alone(client, task, {})), "what is kept matters"
        kept = expected.kept
        assert bits(site.store.load(round)) == bits(kept)
    assert site.store.versions() == [1, 5]


def named(site: Site, **method: Any) -> Contract:
    """A contract whose server names code."""
    table = {**site.contract.table, "method": {**site.contract.table["method"], **method}}
    return replace(site.contract, table=table)


def test_code_that_a_server_names_runs_only_if_the_client_allows_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.folder)
    (site.folder / "trap.py").write_text(TRAP)
    contract = named(site, local_training=["trap.py:Rule"])
    client = site.client()
    for ask in (client.join, client.prepare, lambda contract: client.train(contract, b"")):
        with pytest.raises(InputError, match=r"the server names code .*\(trap.py:Rule\): .* --allow trap.py:Rule$"):
            ask(contract)
    assert not (site.folder / "ran").exists()
    allowing = site.client(allow=["trap.py:Rule"])
    assert allowing.join(contract)["examples"] == 12
    assert (site.folder / "ran").exists()


def test_a_server_cannot_have_a_model_run_code_of_its_own_here(site: Site) -> None:
    model = {**site.contract.table["model"], "trust_remote_code": True}
    contract = replace(site.contract, table={**site.contract.table, "model": model})
    with pytest.raises(InputError, match=r"add --allow remote-code$"):
        site.client().join(contract)


def test_not_even_the_bytes_of_an_answer_have_it(site: Site) -> None:
    client = site.client()
    assert b"/kept/" not in client.train(site.contract, pack_task(site.task(client, 0, None)))
    assert site.store.versions() == [0]


def test_what_a_server_sends_as_kept_is_not_believed(site: Site) -> None:
    client = site.client()
    task = site.task(client, 0, None)
    forged = {
        name: torch.ones(4, 32) for name in owned({"encoder.layer.3.attention.self.query.lora_A": None}, "scaffold")
    }
    assert same(site.told(client, replace(task, kept=forged)), site.alone(client, task, {}))


def test_an_answer_that_did_not_count_leaves_nothing(site: Site) -> None:
    """Round 1 was rejected, or came too late: round 2 begins from what there was after round 0."""
    client = site.client()
    first = site.alone(client, site.task(client, 0, None), {})
    site.told(client, site.task(client, 0, None))
    site.told(client, site.task(client, 1, 0))
    assert site.store.versions() == [0, 1]
    task = site.task(client, 2, 0)
    answer = site.told(client, task)
    assert same(answer, site.alone(client, task, first.kept))
    assert site.store.versions() == [0, 2]
    again = site.told(client, site.task(client, 0, None))  # and if not even round 0 did
    assert same(again, first)
    assert site.store.versions() == [0]


def test_a_second_attempt_at_a_round_is_the_first(site: Site) -> None:
    client = site.client()
    site.told(client, site.task(client, 0, None))
    once, twice = (site.told(client, site.task(client, 1, 0)) for _ in range(2))
    assert isinstance(twice, ClientUpdate)
    assert same(once, twice)


def test_a_new_process_goes_on(site: Site) -> None:
    first = site.client()
    site.told(first, site.task(first, 0, None))
    kept = site.store.load(0)
    second = site.client()
    task = site.task(second, 1, 0)
    assert same(site.told(second, task), site.alone(second, task, kept))


@pytest.mark.parametrize("damage", ["gone", "never there", "damaged", "a version before the last two"])
def test_a_version_that_is_not_there_is_a_failure_and_no_exception(damage: str, site: Site) -> None:
    client = site.client()
    if damage != "never there":
        for round, version in ((0, None), (1, 0), (2, 1)):
            site.told(client, site.task(client, round, version))
    named = 0 if damage == "a version before the last two" else 2
    if damage == "gone":
        site.store.file(2).unlink()
    if damage == "damaged":
        site.store.file(2).write_bytes(b"\0" * 100)
    answer = site.told(client, site.task(client, 3, named))
    assert isinstance(answer, ClientFailure)
    assert answer.kind == "rejected"
    assert answer.reason.startswith(f"what this client kept in round {named} is not in {site.store.folder} (")
    assert answer.reason.endswith("put it back, or start the run again")
    assert isinstance(site.told(client, site.task(client, 3, None)), ClientUpdate), "the client is still there"


def test_training_that_fails_keeps_what_there_was(site: Site) -> None:
    client = site.client()
    site.told(client, site.task(client, 0, None))
    kept = site.store.load(0)
    hopeless = site.task(client, 1, 0, train=replace(SGD, lr=1e30, steps=4))
    answer = site.told(client, hopeless)
    assert isinstance(answer, ClientFailure)
    assert "the loss became" in answer.reason
    assert site.store.versions() == [0]
    assert bits(site.store.load(0)) == bits(kept)


def test_a_brief_that_was_not_declared_is_a_failure(site: Site) -> None:
    client = site.client()
    task = site.task(client, 0, None)
    for brief in ({}, {**task.brief, "scaffold/more": torch.zeros(1)}, {**task.brief, "other/x": torch.zeros(1)}):
        answer = site.told(client, replace(task, brief=brief))
        assert isinstance(answer, ClientFailure)
        assert "ValueError: the server's brief " in answer.reason
    assert site.store.versions() == []


def test_rules_that_keep_nothing_leave_no_folder(tmp_path: Path, tiny_bert: Path) -> None:
    site = site_in(tmp_path, tiny_bert, local_training=["layer_scores"])
    client = site.client()
    for version in (None, 3):  # whatever the server says
        data = client.train(site.contract, pack_task(replace(site.task(client, 4, version), brief={})))
        assert b"/report/layer_scores/scores" in data
    assert not site.store.folder.exists()
    assert not (tmp_path / "state" / "kept").exists()


def test_other_data_than_the_client_began_with(site: Site) -> None:
    """Each client checks its own, and nothing of it leaves; another run may have other data."""
    site.client().ready(site.contract)
    site.client().ready(site.contract)  # a new process, with the same data
    lines = (site.folder / "mine.csv").read_text().splitlines()
    (site.folder / "mine.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    with pytest.raises(InputError, match="are not those with which this client began the run: bring them back"):
        site.client().ready(site.contract)
    site.client().ready(replace(site.contract, run="f00e"))


def test_rows_that_cannot_be_used_are_left_out_by_the_client_alone(site: Site) -> None:
    """The server is told how many are left, and nothing of the others."""
    with (site.folder / "mine.csv").open("a") as file:
        file.writelines(f'"","{label}"\n' for label in TOPICS[:1])
        file.writelines(f"more of it {i},{TOPICS[i % len(TOPICS)]}\n" for i in range(30))
    said: list[str] = []
    client = site.client()
    client.log = said.append
    told = client.join(site.contract)
    usable = told["examples"]
    assert len(client.ready(site.contract).data) == usable
    assert any(note.startswith("data: left out: 1 of the ") and "its text is empty" in note for note in said)
    assert "left out" not in json.dumps(told)
