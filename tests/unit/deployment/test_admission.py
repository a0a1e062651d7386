"""Whose keys a server admits: one for a name, until it is revoked; the SuperLink is one that only notes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hellora.core.errors import RunError
from hellora.deployment import certificates
from hellora.deployment.admission import Admission
from hellora.deployment.joining import owner_of
from hellora.deployment.renewal import revoke

pytestmark = pytest.mark.flower


class Flower:
    """Gives every key that is registered a node, from 1."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}  # by key file's content

    def call(self, *arguments: str) -> dict[str, Any]:
        match arguments:
            case ("supernode", "register", path, "--name", _):
                if (key := Path(path).read_text()) in self.nodes:
                    raise RunError("this public key is already in use")
                self.nodes[key] = str(len(self.nodes) + 1)
                return {"node-id": self.nodes[key]}
            case ("supernode", "unregister", node, _):
                self.nodes = {key: known for key, known in self.nodes.items() if known != node}
                return {}
            case ("supernode", "list", _):
                return {"nodes": [{"node-id": node} for node in self.nodes.values()]}
        raise AssertionError(arguments)


class Place:
    def __init__(self, folder: Path) -> None:
        self.keys, self.state, self.flower, self.said = folder / "keys", folder / "state", Flower(), list[str]()
        self.state.mkdir()
        certificates.make(self.keys, [], ["clinic", "ward"])

    def start(self, knows_nobody: bool = False) -> Admission:
        return Admission(self.keys, self.state, self.flower, self.said.append, knows_nobody)  # type: ignore[arg-type]

    def public(self, name: str) -> Path:
        return self.keys / "clients" / f"{name}.pub"

    def shown(self, name: str) -> str:
        return certificates.key_as_shown(certificates.public_key_text(self.public(name)))

    def owner(self, node: int) -> str | None:
        return owner_of(node, self.state / "admitted.json")

    @property
    def refused(self) -> dict[str, str]:
        path = self.state / "refused.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_every_key_is_admitted_once_also_after_a_restart(place: Place) -> None:
    for _ in range(2):
        admission = place.start()
        admission.look()
        admission.look()
    assert place.said == ["admitted clinic", "admitted ward"]
    assert [place.owner(node) for node in (1, 2, 3)] == ["clinic", "ward", None]
    assert place.refused == {}


def test_a_second_key_for_a_name_is_refused(place: Place, tmp_path: Path) -> None:
    admission = place.start()
    admission.look()
    certificates.make(tmp_path / "other", [], ["ward"])
    shutil.copy(tmp_path / "other" / "clients" / "ward.pub", place.public("ward"))
    admission.look()
    admission.look()
    assert place.said[2:] == [
        f"cannot admit ward: it was admitted with another key, and this one is refused; to change it: `hellora "
        f"certificates {place.keys} --revoke ward`, and then --client ward"
    ]
    assert place.refused == {place.shown("ward"): "ward is known to it by another key"}
    assert [place.owner(node) for node in (2, 3)] == ["ward", None]


def test_a_key_has_one_name(place: Place) -> None:
    admission = place.start()
    admission.look()
    shutil.copy(place.public("ward"), place.public("spy"))
    admission.look()
    assert place.said[2:] == ["cannot admit spy: ward has this very key: each client needs one of its own"]
    assert place.owner(3) is None


def test_a_revoked_key_never_comes_back_and_a_new_one_has_the_name(place: Place) -> None:
    admission = place.start()
    admission.look()
    old, shown = place.public("ward").read_text(), place.shown("ward")
    revoke(place.keys, ["ward"])
    admission.look()
    assert place.said[2:] == ["revoked ward"]
    assert place.refused == {shown: "ward's key was revoked"}
    assert place.owner(2) is None
    assert set(place.flower.nodes.values()) == {"1"}
    place.public("ward").write_text(old)
    admission.look()
    assert place.said[3:] == ["cannot admit ward: this key was revoked: make the client a new one"]
    place.public("ward").unlink()
    certificates.make(place.keys, [], ["ward"])
    for each in (admission, place.start(), place.start(knows_nobody=True)):
        each.look()
    assert place.shown("ward") not in place.refused
    assert place.refused == {shown: "ward's key was revoked"}


def test_who_revokes_a_name_shuts_out_each_of_its_keys(place: Place, tmp_path: Path) -> None:
    """Also the one that was admitted, where another had taken its place in the folder since."""
    admission = place.start()
    admission.look()
    first = place.shown("ward")
    certificates.make(tmp_path / "other", [], ["ward"])
    shutil.copy(tmp_path / "other" / "clients" / "ward.pub", place.public("ward"))
    second = place.shown("ward")
    admission.look()
    revoke(place.keys, ["ward"])
    admission.look()
    assert place.refused == dict.fromkeys((first, second), "ward's key was revoked")
    assert place.owner(2) is None


def test_a_node_that_was_registered_just_before_a_kill_is_found(place: Place) -> None:
    place.start().look()
    (place.state / "admitted.json").write_text(json.dumps({}))
    certificates.make(place.keys, [], ["phone"])
    admission = place.start()
    place.flower.nodes = {place.public("phone").read_text(): "7"}
    place.public("clinic").unlink()
    place.public("ward").unlink()
    admission.look()
    assert place.owner(7) == "phone"
