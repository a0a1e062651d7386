"""What clients say of themselves: taken in only where it can be."""

import json
from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import InputError
from hellora.core.number_sums import NumberSums
from hellora.core.types import Budget, ClientProfile
from hellora.core.version import __version__
from hellora.data.sides import Classes
from hellora.deployment.joining import owner_of, understood_join
from hellora.deployment.own_limits import columns_read
from hellora.deployment.own_settings import OwnSettings
from hellora.deployment.participant import Contract, WithOwnData
from hellora.experiments.config import presets, read_experiment

GOOD: dict[str, Any] = {
    "name": "clinic",
    "version": __version__,
    "examples": 120,
    "classes": {"values": ["sea", "sky"], "present": ["sea"], "declared": False},
    "budget": {"layers": 2, "rank": None, "memory_bytes": 10**9, "seconds": 60.5, "uplink_bytes": None},
    "speed": 5e11,
    "link": None,
}


def test_a_good_client_is_taken_as_it_says() -> None:
    said = understood_join(json.loads(json.dumps(GOOD)))
    budget = Budget(layers=2, rank=None, memory_bytes=10**9, seconds=60.5, uplink_bytes=None)
    assert said.profile(3) == ClientProfile(3, 120, budget, 5e11, None, 1.0)
    assert said.own_classes() == Classes(("sea", "sky"), ("sea",), False)
    assert understood_join({**GOOD, "classes": None}).own_classes() is None
    assert said.number_sums() is None
    assert understood_join({**GOOD, **numbers()}).number_sums() == NumberSums(2, (2.0,), (4.0,))


def classes(**changes: Any) -> dict[str, Any]:
    return {"classes": {**GOOD["classes"], **changes}}


def numbers(**changes: Any) -> dict[str, Any]:
    return {"numbers": {"examples": 2, "sums": [2.0], "squares": [4.0], **changes}}


def budget(**changes: Any) -> dict[str, Any]:
    return {"budget": {**GOOD["budget"], **changes}}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"name": "../up"}, "name"),
        ({"name": "a\nINFO: forged"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"version": "0.0.1"}, "it has hellora 0.0.1, and this server"),
        ({"version": "x" * 41}, "version"),
        ({"version": 1}, "version"),
        ({"examples": 0}, "examples"),
        ({"examples": -5}, "examples"),
        ({"examples": 10**40}, "examples"),
        ({"examples": 1.5}, "examples"),
        ({"examples": "9"}, "examples"),
        ({"examples": True}, "examples"),
        ({"classes": ["sea"]}, "classes"),
        (classes(values=[["x"]]), "classes"),
        (classes(values=["x" * 201], present=[]), "classes"),
        (classes(values=["sea", None]), "classes"),
        (classes(values=["sea", 3]), "classes"),
        (classes(declared="yes"), "classes"),
        (classes(values=["sea", "sea"]), "contradict"),
        (classes(present=["soil"]), "contradict"),
        (classes(values=list(map(str, range(1001))), present=[]), "1001 classes, at most 1000"),
        (numbers(examples=0), "numbers.examples"),
        (numbers(sums=[float("nan")]), "numbers.sums"),
        (numbers(squares=[]), "no numbers have the sums"),
        (numbers(squares=[1.0]), "no numbers have the sums"),  # of two that add up to 2, it is 2 at least
        ({"budget": None}, "budget"),
        (budget(layers="three"), "budget.layers"),
        (budget(layers=-1), "budget.layers"),
        (budget(rank=[4, 4]), "budget.rank"),
        (budget(memory_bytes=-1), "budget.memory_bytes"),
        (budget(seconds=0), "budget.seconds"),
        (budget(uplink_bytes=1e9), "budget.uplink_bytes"),
        ({"speed": "fast"}, "speed"),
        ({"speed": -1.0}, "speed"),
        ({"link": float("inf")}, "link"),
        ({"link": float("nan")}, "link"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_with_where(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=where):
        understood_join({**GOOD, **changes})


@pytest.mark.parametrize("name", GOOD)
def test_what_is_absent_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        understood_join({key: value for key, value in GOOD.items() if key != name})


def test_more_classes_are_taken_where_the_head_has_room() -> None:
    many = classes(values=list(map(str, range(1500))), present=[])
    assert understood_join({**GOOD, **many}, most_classes=1500).classes is not None


def test_a_node_is_known_by_the_key_that_was_admitted(tmp_path: Path) -> None:
    record = tmp_path / "admitted.json"
    assert owner_of(7, record) is None
    gone = {"name": "ward", "node": "9", "revoked": "yes"}
    record.write_text(json.dumps({"a": {"name": "clinic", "node": "7"}, "b": gone}))
    assert [owner_of(node, record) for node in (7, 8, 9)] == ["clinic", None, None]


@pytest.mark.parametrize("preset", presets())
def test_a_client_can_settle_what_every_preset_asks_of_it(preset: str, tmp_path: Path) -> None:
    """With its own data in place of the server's, whose public data it never reads."""
    experiment = read_experiment(preset, {"data.public": "server-public"} if preset == "helora_kd" else {})
    data = {"name": str(tmp_path / "mine.csv"), "text": "body"}
    columns = list(columns_read(experiment.data, experiment.task.columns))
    own = OwnSettings("clinic", data, "none", device="cpu", folder=str(tmp_path), columns=columns)
    settled = WithOwnData(own, lambda _: None).settled(Contract(preset, experiment.table))
    assert (settled.data.name, settled.data.text) == (str(tmp_path / "mine.csv"), "body")
    assert settled.table["method"] == experiment.table["method"]


@pytest.mark.parametrize("pinned", [False, True])
def test_what_may_be_no_labels_is_not_told(pinned: bool, tmp_path: Path) -> None:
    """A run whose data.label names the texts by mistake does not get them."""
    rows = "".join(f'"text {i}","said {i}",{"ab"[i % 2]}\n' for i in range(1001))
    (tmp_path / "mine.csv").write_text(f"text,said,label\n{rows}")
    experiment = read_experiment("quickstart", {"data.label": "said"})
    own = {"name": str(tmp_path / "mine.csv"), **({"label": "label"} if pinned else {})}
    columns = ["text", "said", "label"]
    settings = OwnSettings("clinic", own, "none", device="cpu", folder=str(tmp_path), columns=columns)
    client = WithOwnData(settings, lambda _: None)
    contract = Contract("quickstart", experiment.table)
    if pinned:
        assert client.join(contract)["classes"]["values"] == ("a", "b")
    else:
        with pytest.raises(InputError, match="may be no labels") as refusal:
            client.join(contract)
        assert "said 7" not in str(refusal.value)
