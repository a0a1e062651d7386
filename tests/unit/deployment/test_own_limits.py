"""A client's own limits bind at the client: a task, a column or a model beyond them is refused, and the limit named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from hellora.backends.wire import pack_task, read_answer
from hellora.budgets.cost import Cost
from hellora.budgets.planner import Estimate
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, Policy, TrainSettings
from hellora.core.types import Adapter, Budget
from hellora.data.settings import DataSettings
from hellora.data.sides import Classes, own_split
from hellora.deployment.own_limits import OwnLimits, check_columns, check_model, columns_read, contradiction
from hellora.deployment.own_settings import OwnSettings
from hellora.deployment.participant import Contract, WithOwnData
from hellora.experiments.config import check

TOPICS = tuple(sorted(tiny_models.TOPICS))


def task(layers: int = 2, rank: int = 3, **train: Any) -> ClientTask:
    """A task that trains the first ranks of the last layers, of 4 layers and rank 4."""
    row = np.zeros((4, 4), dtype=bool)
    row[4 - layers :, :rank] = True
    return ClientTask(0, 0, 0, Adapter({}), row, TrainSettings(**{"batch_size": 8, "steps": 5, **train}))


def never(_: ClientTask) -> Estimate:
    raise AssertionError("nothing has to be predicted")


@pytest.mark.parametrize(
    ("limits", "asked", "why"),
    [
        (OwnLimits(Budget(layers=1)), task(), "the task trains 2 layers, and --layers is 1"),
        (OwnLimits(Budget(layers=2)), task(), None),
        (OwnLimits(Budget(rank=2)), task(), "the task trains rank 3, and --rank is 2"),
        (OwnLimits(Budget(rank=3)), task(), None),
        (OwnLimits(Budget(), max_steps=4), task(), "the task has 5 steps, and --max-steps is 4"),
        (OwnLimits(Budget(), max_steps=5), task(), None),
        # 20 examples in batches of 8 are 3 steps an epoch.
        (OwnLimits(Budget(), max_steps=5), task(steps=None, epochs=2), "the task has 6 steps, and --max-steps is 5"),
        (OwnLimits(Budget(), max_steps=6), task(steps=None, epochs=2), None),
        (OwnLimits(Budget(), max_batch=7), task(), "the task has batches of 8 examples, and --max-batch is 7"),
    ],
)
def test_what_a_task_says_of_itself_is_held_against_the_limits(limits: OwnLimits, asked: ClientTask, why: Any) -> None:
    assert limits.excess(asked, 20, never) == why


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (Budget(memory_bytes=2**29), "the task takes 1.0 GiB, and --memory is 512.0 MiB"),
        (Budget(memory_bytes=2**30), None),
        (Budget(uplink_bytes=2**19), "the task sends 1.0 MiB, and --uplink is 512.0 KiB"),
        (Budget(uplink_bytes=2**20), None),
        (Budget(seconds=59.0), "the task takes 60 s, and --seconds is 59"),
        (Budget(seconds=60.0), None),
    ],
)
def test_what_it_is_predicted_to_cost_is_held_against_the_budget(budget: Budget, why: str | None) -> None:
    predicted = Estimate(Policy(), Cost(2**30, 6e9, 2**20), 60.0)
    assert OwnLimits(budget).excess(task(), 20, lambda _: predicted) == why


def test_columns_are_those_that_settings_and_templates_name() -> None:
    settings = DataSettings(prompt="{q} of {who}: {q}", response="{a}", text_pair="other", label="topic")
    assert columns_read(settings, "text") == {"text": "data.text", "other": "data.text_pair", "topic": "data.label"}
    assert columns_read(settings, "image") == {"image": "data.image", "topic": "data.label"}
    assert columns_read(settings, "text_labels") == columns_read(settings, "text")
    several = DataSettings(labels=("joy", "fear"), label="name")
    assert columns_read(several, "text_numbers") == {"text": "data.text", "joy": "data.labels", "fear": "data.labels"}
    assert columns_read(several, "text") == {"text": "data.text", "name": "data.label"}
    assert list(columns_read(settings, "instruction")) == ["q", "who", "a", "topic"]
    assert "label" in columns_read(DataSettings(prompt="{", response="{a"), "instruction"), "the reader refuses these"


def test_a_server_is_told_tags_and_never_words(tmp_path: Path) -> None:
    """Found by their names, a client that names its columns shows these alone; tags are told, so no other column is."""
    check_columns(DataSettings(), "tokens", {}, ())
    check_columns(DataSettings(), "tokens", {}, ("words", "ner_tags"))
    for column in ("words", "text", "diary"):
        with pytest.raises(InputError, match=rf"^data\.tags: the run reads the column '{column}', "):
            check_columns(DataSettings(tags=column), "tokens", {}, ())
    (tmp_path / "rows.jsonl").write_text('{"words": ["a"], "ner_tags": ["O"], "tags": ["B-SECRET"]}\n')
    own = DataSettings(name=str(tmp_path / "rows.jsonl"), label="tags")
    assert own_split(own, "tokens", ("words", "ner_tags")).data.column_names == ["words", "ner_tags"]


@pytest.mark.parametrize(
    ("settings", "own", "named", "refused"),
    [
        (DataSettings(), {}, [], None),
        (DataSettings(label="name"), {}, [], "data.label: the run reads the column 'name'"),
        (DataSettings(label="text"), {}, [], "data.label: the run reads the column 'text'"),
        (DataSettings(text_pair="diary"), {}, [], "--columns text,label,diary"),
        (DataSettings(label="name"), {}, ["text", "name"], None),
        (DataSettings(), {}, ["text", "name"], "data.label: the run reads the column 'label'"),
        (DataSettings(text="body", label="topic"), {"text": "body", "label": "topic"}, [], None),
        (DataSettings(text="body", label="name"), {"text": "body"}, [], "data.label"),
    ],
)
def test_only_columns_that_the_client_named_are_read(
    settings: DataSettings, own: dict[str, Any], named: list[str], refused: str | None
) -> None:
    if refused is None:
        check_columns(settings, "text", own, named)
    else:
        with pytest.raises(InputError, match=refused):
            check_columns(settings, "text", own, named)


def test_only_models_that_the_client_named_or_was_told_first_are_loaded(tmp_path: Path) -> None:
    told = tmp_path / "state" / "model.txt"
    for name in ("minilm", "minilm"):
        check_model(name, [], told)
    with pytest.raises(InputError, match="--accept-model stranger/model"):
        check_model("stranger/model", [], told)
    check_model("stranger/model", ["stranger/model"], told)
    with pytest.raises(InputError, match="takes 'stranger/model' only"):
        check_model("minilm", ["stranger/model"], told)


# ------------------------------------------------------------------------------------------------ in a client's process


def experiment_table(model: Path, folder: Path) -> dict[str, Any]:
    return {
        "rounds": 1,
        "cohort": 1,
        "model": {"name": str(model), "rank": 4},
        "data": {"name": str(folder), "clients": 1},
        "train": {"lr": 0.1, "batch_size": 8, "steps": 2},
        "compute": {"device": "cpu"},
        "method": {"allocator": "everything"},
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = "".join(f"{text},{label},patient {i}\n" for i, (text, label) in enumerate(tiny_models.sentences(12, seed=3)))
    (tmp_path / "mine.csv").write_text(f"text,label,name\n{rows}")
    return tmp_path


def client_at(place: Path, told: list[str], **own: Any) -> WithOwnData:
    data = {"name": str(place / "mine.csv")}
    settings = {"memory": "none", "device": "cpu", "folder": str(place / "state"), **own}
    return WithOwnData(OwnSettings("clinic", data, **settings), told.append)


def contract_of(table: dict[str, Any]) -> Contract:
    return Contract("strict", check("strict", table, simulated=False).table, Classes(TOPICS, TOPICS, True), run="f00d")


def test_a_task_beyond_a_limit_is_answered_with_its_name(place: Path, tiny_bert: Path) -> None:
    told: list[str] = []
    client, contract = client_at(place, told, speed=1e9), contract_of(experiment_table(tiny_bert, place))
    base = client.ready(contract).base
    row = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    asked = ClientTask(0, 0, 0, new_adapter(base.spec, base.initial_head(), 0), row, contract.experiment.train)
    for limits, name in (
        (OwnLimits(Budget(layers=1)), "--layers"),
        (OwnLimits(Budget(memory_bytes=2**16)), "--memory"),
        (OwnLimits(Budget(uplink_bytes=2**10)), "--uplink"),
        (OwnLimits(Budget(seconds=1e-6)), "--seconds"),
        (OwnLimits(Budget(), max_steps=1), "--max-steps"),
    ):
        client.limits = limits
        answer = read_answer(client.train(contract, pack_task(asked)), asked, base.spec)
        assert isinstance(answer, ClientFailure), name
        assert f", and {name} is " in answer.reason
        assert told[-1] == f"round 0: {answer.reason}", "the client's own log has the same line"
    client.limits = OwnLimits(Budget(4, 4, 2**26, 1e3, 2**20), 2, 8)
    assert isinstance(read_answer(client.train(contract, pack_task(asked)), asked, base.spec), ClientUpdate)


def test_a_server_cannot_have_names_told_as_labels(place: Path, tiny_bert: Path) -> None:
    """Each row's name would be one of 12 classes, few enough to pass for labels."""
    table = experiment_table(tiny_bert, place)
    names = contract_of({**table, "data": {**table["data"], "label": "name"}})
    with pytest.raises(InputError, match="'name', which this client has not named"):
        client_at(place, []).join(names)
    assert len(client_at(place, [], columns=["text", "name"]).join(names)["classes"]["values"]) == 12
    assert client_at(place, []).join(contract_of(table))["classes"]["values"] == TOPICS


def test_a_server_cannot_have_another_model_loaded(place: Path, tiny_bert: Path) -> None:
    table = experiment_table(tiny_bert, place)
    client_at(place, []).join(contract_of(table))
    other = contract_of({**table, "model": {"name": "/somewhere/else"}})
    with pytest.raises(InputError, match="--accept-model /somewhere/else"):
        client_at(place, []).join(other)
    assert client_at(place, [], model=str(tiny_bert)).settled(other).model.name == str(tiny_bert)


def test_a_server_has_no_more_threads_than_the_client_gives(place: Path, tiny_bert: Path) -> None:
    table = {**experiment_table(tiny_bert, place), "compute": {"device": "cpu", "threads": 64}}
    assert client_at(place, [], threads=1).settled(contract_of(table)).compute.threads == 1
    assert client_at(place, [], threads=64).settled(contract_of(table)).compute.threads == 64


@pytest.mark.parametrize(
    ("method", "changes", "refused"),
    [
        ({}, {}, False),
        ({}, {"head": "local", "private": True}, True),
        ({"head": "local"}, {"head": "local", "private": True}, False),
        ({"head": "local"}, {"head": "aggregate"}, True),
        ({"head": "local", "start": "ridge"}, {"head": "frozen", "sums": "sums"}, False),
        ({"start": "ridge", "head": "closed_form"}, {"head": "frozen"}, False),
        ({"start": "ridge", "head": "closed_form"}, {"head": "aggregate"}, True),
    ],
)
def test_a_task_shares_what_its_runs_settings_say(method: Any, changes: dict[str, Any], refused: bool) -> None:
    run = check(
        "run", {"data": {"clients": 2}, "cohort": 2, "method": {"allocator": "everything", **method}}, simulated=False
    )
    assert (contradiction(replace(task(), **changes), run.method) is not None) == refused
