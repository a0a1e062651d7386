"""A client of a network with a part of the model of its own: the training of a simulation, and nothing of it leaves."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from factories import bits, dispatched
from torch import Tensor

from hellora.backends.wire import from_bytes, pack_task, read_answer, to_bytes
from hellora.client.evaluation import evaluate
from hellora.client.train import train_encoded
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, TrainSettings
from hellora.core.held_out import HeldOut
from hellora.core.seeds import seed_for
from hellora.core.state import owned, select
from hellora.core.types import Adapter, AdapterSpec
from hellora.data.sides import Classes
from hellora.deployment.kept import KeptTensors
from hellora.deployment.own_model import export_own
from hellora.deployment.own_settings import OwnSettings
from hellora.deployment.participant import Contract, WithOwnData
from hellora.experiments.config import check
from hellora.experiments.holding_out import draw_held_out
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.sharing import private_part, with_private
from hellora.methods.strategies import Dispatcher
from hellora.record.sealed import sealed_bytes, unsealed_bytes
from hellora.results.adapter_folder import load_adapter, read_usage
from hellora.results.prediction import predict_file

TOPICS = tuple(sorted(tiny_models.TOPICS))
CLIENT, EXAMPLES, SEED = 2, 22, 5
FEDSA = {"head": "local", "shares": "A", "dispatcher": "truncate"}
WAYS: dict[str, dict[str, Any]] = {
    "FedSA-LoRA": FEDSA,
    "its mirror image": {"shares": "B", "dispatcher": "whole"},
    "a head, with blocks left out": {"head": "local", "dispatcher": "bypass"},
}
DISPATCHERS: dict[str, Dispatcher] = {"truncate": Truncate(), "whole": Whole(), "bypass": Bypass()}


class Site:
    """A client's folder and data, and the server's side of the seam."""

    def __init__(self, folder: Path, model: Path, **method: Any) -> None:
        with (folder / "mine.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *tiny_models.sentences(EXAMPLES, seed=3)])
        table = {
            "rounds": 6,
            "cohort": 1,
            "keep": 1,
            "seed": SEED,
            "eval_every": 2,
            "model": {"name": str(model), "rank": 4},
            "data": {"name": str(folder), "clients": 3},
            "train": {"lr": 0.02, "batch_size": 8},
            "compute": {"threads": 1, "device": "cpu"},
            "method": {"allocator": "everything", **method},
        }
        self.folder, self.experiment = folder, check("own", table, simulated=False)
        self.contract = Contract("own", self.experiment.table, Classes(TOPICS, TOPICS, True), run="f00d")
        self.said: list[str] = []

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def store(self) -> KeptTensors:
        return KeptTensors(self.state / "kept" / "f00d")

    def client(self, **settings: Any) -> WithOwnData:
        """A new process of the client."""
        data = {"name": str(self.folder / "mine.csv")}
        chosen: dict[str, Any] = {"memory": "none", "device": "cpu", "folder": str(self.state), **settings}
        return WithOwnData(OwnSettings("clinic", data, **chosen), self.said.append)

    def task(self, client: WithOwnData, round: int, version: int | None, **changes: Any) -> ClientTask:
        """Round `round` of the client, as the server makes it; its row and what is shared are others in each."""
        base, method = client.ready(self.contract).base, self.experiment.method
        row = np.zeros((4, 4), dtype=bool)
        row[round % 3 :, : 2 + round % 3] = True
        given = self.given(base.spec, base.initial_head(), round)
        dispatcher = DISPATCHERS[method.dispatcher.name]
        sent = dispatcher.sends(row, base.spec)
        task = ClientTask(
            round, CLIENT, round, dispatched(dispatcher, given, row, base.spec), row,
            TrainSettings(lr=0.02, batch_size=8), method.head, "both", method.shares, True, sent.cut, sent.bypass,
            kept_version=version,
        )  # fmt: skip
        return replace(task, **changes)

    def given(self, spec: AdapterSpec, head: dict[str, Tensor], round: int) -> Adapter:
        """What is shared moves from round to round; what is not stays as everybody's begins, at the server."""
        start, moved = new_adapter(spec, head, seed_for(SEED, "adapter")), new_adapter(spec, head, round)
        shares, pairs = self.experiment.method.shares, dict(start.pairs)
        for name, pair in start.pairs.items():
            rng = torch.Generator().manual_seed(round)
            B = 0.1 * torch.randn(pair.B.shape, generator=rng) if shares != "A" else pair.B
            pairs[name] = replace(pair, A=moved.pairs[name].A if shares != "B" else pair.A, B=B)
        drawn = torch.Generator().manual_seed(7)  # at the server the head is another than a client's model has
        return Adapter(pairs, {n: torch.randn(t.shape, generator=drawn) for n, t in head.items()})

    def answer(self, client: WithOwnData, task: ClientTask) -> tuple[ClientUpdate | ClientFailure, bytes]:
        data = client.train(self.contract, pack_task(task))
        return read_answer(data, task, client.ready(self.contract).base.spec), data

    def told(self, client: WithOwnData, task: ClientTask) -> ClientUpdate:
        found, _ = self.answer(client, task)
        assert isinstance(found, ClientUpdate), found
        return found

    def simulated(self, client: WithOwnData, task: ClientTask, own: dict[str, Tensor]) -> tuple[ClientUpdate, Any]:
        """The same training where the server keeps what is the client's own, and that afterwards."""
        work, row = client.ready(self.contract), task.trained
        given = self.given(work.base.spec, work.base.initial_head(), task.round)
        mine = with_private(given, own)
        adapter = dispatched(DISPATCHERS[self.experiment.method.dispatcher.name], mine, row, work.base.spec)
        rows, _ = draw_held_out(np.arange(EXAMPLES), SEED, CLIENT)
        update = train_encoded(
            replace(task, adapter=adapter, private=False), work.base, work.kind, work.encoded.select(rows)
        )
        return update, {**own, **private_part(task, update, mine, work.base.spec)}


@pytest.fixture(params=WAYS)
def site(request: pytest.FixtureRequest, tmp_path: Path, tiny_bert: Path) -> Site:
    return Site(tmp_path, tiny_bert, **WAYS[request.param])


@pytest.fixture
def fedsa(tmp_path: Path, tiny_bert: Path) -> Site:
    return Site(tmp_path, tiny_bert, **FEDSA)


def shared(update: ClientUpdate, task: ClientTask) -> dict[str, Any]:
    kinds = {"A": ("lora_A",), "B": ("lora_B",), "both": ("lora_A", "lora_B")}[task.shares]
    found = {n: t for n, t in update.adapter.tensors().items() if n.endswith(kinds)}
    return bits(found if task.head == "local" else found | {f"head.{n}": t for n, t in update.adapter.head.items()})


def test_it_trains_as_in_a_simulation_and_a_new_process_goes_on(site: Site) -> None:
    """Layers, components and dispatched shapes change from round to round; a layer comes for the first time later."""
    own: dict[str, Tensor] = {}
    for round, version in ((2, None), (3, 2), (4, 3)):
        client = site.client()  # with another head in its model than the server's
        task = site.task(client, round, version)
        expected, own = site.simulated(client, task, own)
        answer = site.told(client, task)
        assert shared(answer, task) == shared(expected, task)
        assert answer.num_examples == 18
        assert bits(site.store.load(round)) == bits(owned(own, "private"))
    assert site.store.versions() == [3, 4]


def test_no_byte_of_an_answer_is_of_what_stays(site: Site) -> None:
    client = site.client()
    for round, version in ((0, None), (1, 0)):
        answer, data = site.answer(client, site.task(client, round, version))
        assert isinstance(answer, ClientUpdate)
        assert answer.kept == {}
        kept = select(site.store.load(round), "private")
        assert kept
        for name, tensor in kept.items():
            assert name.encode() not in data
            for piece in (tensor, tensor.T) if tensor.ndim == 2 else (tensor,):
                assert piece.contiguous().numpy().tobytes()[:16] not in data, name


@pytest.mark.parametrize(
    "changes",
    [
        {"private": False},
        {"private": False, "head": "aggregate", "shares": "both"},
        {"head": "aggregate"},
        {"shares": "both"},
        {"shares": "B"},
    ],
    ids=str,
)
def test_a_task_that_would_send_away_what_is_to_stay_is_refused(changes: dict[str, Any], fedsa: Site) -> None:
    client = fedsa.client()
    fedsa.told(client, fedsa.task(client, 0, None))
    answer, data = fedsa.answer(client, fedsa.task(client, 1, 0, **changes))
    assert isinstance(answer, ClientFailure)
    assert answer.kind == "rejected"
    assert "shares other parts of the model than method.head and method.shares of its run say" in answer.reason
    assert len(data) < 1000
    assert isinstance(fedsa.told(client, fedsa.task(client, 1, 0)), ClientUpdate), "it is still there"


def test_an_answer_that_did_not_count_leaves_nothing(fedsa: Site) -> None:
    client = fedsa.client()
    fedsa.told(client, fedsa.task(client, 0, None))
    kept = fedsa.store.load(0)
    fedsa.told(client, fedsa.task(client, 1, 0))
    task = fedsa.task(client, 2, 0)  # round 1 was not taken
    expected, own = fedsa.simulated(client, task, select(kept, "private"))
    assert shared(fedsa.told(client, task), task) == shared(expected, task)
    assert bits(fedsa.store.load(2)) == bits(owned(own, "private"))
    assert fedsa.store.versions() == [0, 2]


def test_what_is_lost_is_a_line_and_no_fresh_start(fedsa: Site) -> None:
    client = fedsa.client()
    fedsa.told(client, fedsa.task(client, 0, None))
    fedsa.store.file(0).unlink()
    answer, _ = fedsa.answer(client, fedsa.task(client, 1, 0))
    assert isinstance(answer, ClientFailure)
    assert answer.reason.startswith("what this client kept in round 0 is not in ")


def test_tensors_of_a_run_that_left_no_part_with_a_client_are_no_head(fedsa: Site) -> None:
    """Of an older hellora, or of rules alone."""
    client = fedsa.client()
    fedsa.store.save(0, {"scaffold/head.bias": torch.zeros(3)})
    answer, _ = fedsa.answer(client, fedsa.task(client, 1, 0))
    assert isinstance(answer, ClientFailure)
    assert answer.reason == (
        "what this client kept does not fit the task: it has no head of its own, and none came along"
    )


def test_it_says_that_it_has_what_it_trains_on(fedsa: Site, tiny_bert: Path) -> None:
    assert fedsa.client().join(fedsa.contract)["examples"] == 18
    whole = Site(fedsa.folder, tiny_bert)
    assert whole.client().join(whole.contract)["examples"] == EXAMPLES


def test_its_limits_are_held_against_what_it_trains_on(fedsa: Site) -> None:
    """18 examples are 4 steps of batches of 5, and 22 would be 5."""
    client = fedsa.client(max_steps=4)
    small = TrainSettings(lr=0.02, batch_size=5)
    assert isinstance(fedsa.told(client, fedsa.task(client, 0, None, train=small)), ClientUpdate)
    answer, _ = fedsa.answer(client, fedsa.task(client, 0, None, train=replace(small, batch_size=4)))
    assert isinstance(answer, ClientFailure)
    assert answer.reason == "the task has 5 steps, and --max-steps is 4"


def test_it_measures_its_model_on_what_it_held_out_in_rounds_that_are_due(site: Site) -> None:
    client = site.client()
    assert HeldOut.of(site.told(client, site.task(client, 0, None)).metrics) is None, "every second round is"
    task = site.task(client, 1, 0)
    own = select(site.store.load(0), "private")
    told = HeldOut.of(site.told(client, task).metrics)
    assert told is not None
    work = client.ready(site.contract)
    update, after = site.simulated(client, task, own)
    mine = with_private(site.given(work.base.spec, work.base.initial_head(), 1), after)
    dispatcher = DISPATCHERS[site.experiment.method.dispatcher.name]
    pairs = dict(dispatched(dispatcher, mine, task.trained, work.base.spec).pairs)
    for name, trained in update.adapter.pairs.items():  # all components of these rows come first
        rank = trained.rank
        A, B = pairs[name].A.clone(), pairs[name].B.clone()
        A[:rank], B[:, :rank] = trained.A, trained.B
        pairs[name] = replace(trained, A=A, B=B)
    rows = np.sort(draw_held_out(np.arange(EXAMPLES), SEED, CLIENT)[1])
    found = evaluate(Adapter(pairs, update.adapter.head), work.base, work.kind, work.data.select(rows), 8)
    expected = found.metrics
    assert told.classes == {str(label): counts for label, counts in found.per_class.counts.items()}
    assert told.examples == len(rows) == 4
    assert told.right == round(4 * expected["accuracy"])
    assert told.loss == pytest.approx(4 * expected["loss"], rel=1e-4)


def test_the_last_round_is_measured(fedsa: Site) -> None:
    client = fedsa.client()
    assert HeldOut.of(fedsa.told(client, fedsa.task(client, 5, None)).metrics) is not None


def test_seconds_hold_for_training_and_measuring_together(fedsa: Site) -> None:
    """4 examples are measured beside 18 that train: a limit of 1.1 times the training alone is too little."""
    free = fedsa.client(seconds=1e9, speed=1e9)
    task = fedsa.task(free, 1, None)
    work = free.ready(fedsa.contract)
    alone = free.estimate(work, fedsa.contract, task).seconds
    assert alone is not None
    for limit, is_measured in ((1.1 * alone, False), (1.3 * alone, True)):
        client = fedsa.client(seconds=limit, speed=1e9)
        found = HeldOut.of(fedsa.told(client, task).metrics)
        assert (found is not None) == is_measured
    assert [line for line in fedsa.said if "no time by --seconds" in line] == [
        "round 1: not measured on its 4 held-out examples: no time by --seconds"
    ]


# ------------------------------------------------------------------------------------------------ its model, for itself


def test_it_exports_what_it_last_received_with_what_is_its_own(site: Site) -> None:
    client = site.client()
    for round, version in ((3, None), (1, None)):  # all layers in round 3, all but one in round 1
        site.told(client, site.task(client, round, version))
    out = site.folder / "model"
    assert export_own(site.state, out) == f"{out}: the model of clinic after round 1 of run f00d"
    work = client.ready(site.contract)
    given = site.given(work.base.spec, work.base.initial_head(), 1)
    expected = with_private(given, select(site.store.load(1), "private"))
    rows = {"text": [text for text, _ in tiny_models.sentences(9, seed=8)]}
    with (site.folder / "new.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in rows["text"])])
    predictions = predict_file(out, str(site.folder / "new.csv"), {}, None, ())
    assert len(predictions) == 9
    assert {row["label"] for row in predictions} <= set(TOPICS)
    usage = read_usage(out, {})
    found = load_adapter(out, usage, usage.load_base())
    assert bits(found.head) == bits(expected.head)
    left_out = site.experiment.method.dispatcher.name == "bypass"
    before = site.given(work.base.spec, work.base.initial_head(), 3)
    for module in work.base.spec.modules:
        pair, rank = found.pairs[module.name], 3 if site.experiment.method.dispatcher.name == "truncate" else 4
        whole = (before if left_out and module.layer == 0 else expected).pairs[module.name]  # as it came last
        rank = 4 if module.layer == 0 else rank
        assert torch.equal(pair.A[:rank], whole.A[:rank])
        assert torch.equal(pair.B[:, :rank], whole.B[:, :rank])
    card = (out / "README.md").read_text()
    assert "This is the adapter of client clinic; the results are its own." in card
    assert "| after round 1 |" in card
    assert "before training" not in card


def test_it_exports_the_run_that_is_asked_for(fedsa: Site) -> None:
    client = fedsa.client()
    fedsa.told(client, fedsa.task(client, 0, None))
    other = replace(fedsa.contract, run="beef")
    task = fedsa.task(client, 1, None)
    client.train(other, pack_task(task))
    assert "after round 1 of run beef" in export_own(fedsa.state, fedsa.folder / "last")
    assert "after round 0 of run f00d" in export_own(fedsa.state, fedsa.folder / "first", run="f00d")
    with pytest.raises(InputError, match=r"--run nobody: .* has models of the runs f00d, beef: choose one"):
        export_own(fedsa.state, fedsa.folder / "none", run="nobody")
    with pytest.raises(InputError, match="exists: choose another"):
        export_own(fedsa.state, fedsa.folder / "last")


def test_a_damaged_model_is_refused_in_one_line_and_does_not_stop_the_client(fedsa: Site) -> None:
    client = fedsa.client()
    fedsa.told(client, fedsa.task(client, 0, None))
    file = fedsa.state / "own" / "f00d.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"f00d.safetensors is damaged \(.*\): remove it, and the next round"):
        export_own(fedsa.state, fedsa.folder / "out")
    assert not (fedsa.folder / "out").exists()
    fedsa.told(client, fedsa.task(client, 1, 0))
    export_own(fedsa.state, fedsa.folder / "out")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no model of a client's own: it takes a run with"):
        export_own(tmp_path, tmp_path / "out")


def test_what_is_written_names_code_that_runs_only_if_it_is_allowed(
    fedsa: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fedsa.folder)
    (fedsa.folder / "trap.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    client = fedsa.client()
    fedsa.told(client, fedsa.task(client, 0, None))
    file = fedsa.state / "own" / "f00d.safetensors"
    tensors, fields = from_bytes(unsealed_bytes(file.read_bytes()))
    table = json.loads(json.dumps(fields["table"]))
    table["method"]["allocator"] = "trap.py:Trap"
    file.write_bytes(sealed_bytes(to_bytes(tensors, {**fields, "table": table})))
    with pytest.raises(InputError, match=r"f00d.safetensors names code .*\(trap\.py:Trap\)"):
        export_own(fedsa.state, fedsa.folder / "out")
    assert not (fedsa.folder / "ran").exists()
