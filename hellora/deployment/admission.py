"""Whose keys a server admits: those in its certificates' folder, one for each name, until they are revoked.

A SuperLink reads keys from no folder: each is registered by a command, once, while it runs. Its database keeps them.
`admitted.json` says whose they are, and a run learns from it which client a node is; `refused.json` has the keys that
are refused for good, each with the reason, which the door tells whoever shows one.
"""

import json
from pathlib import Path
from typing import Any

from hellora.core.errors import HelloraError, InputError, RunError
from hellora.deployment.certificates import key_as_shown, public_key_text
from hellora.deployment.flower_tools import CONNECTION, Flower
from hellora.deployment.supervision import Tell
from hellora.record.atomic import write_atomically


class Admission:
    """Tells the SuperLink of every public key in `certificates`, also of those that come, or are revoked, meanwhile.

    Attributes:
        admitted: by public key: its client's name, its node's id, and "revoked" where it is
        refused: by public key, as a SuperNode shows it, why it is refused
    """

    def __init__(self, certificates: Path, state: Path, flower: Flower, tell: Tell, knows_nobody: bool) -> None:
        self.certificates, self.flower, self.tell = certificates, flower, tell
        self.admitted_file, self.refused_file = state / "admitted.json", state / "refused.json"
        self.admitted: dict[str, dict[str, str]] = {}
        self.refused: dict[str, str] = {}
        if not knows_nobody:
            self.admitted, self.refused = read(self.admitted_file), read(self.refused_file)
        self.said: dict[str, str] = {}  # of a file

    def look(self) -> None:
        """Revoke and admit what has changed since the last look. What cannot be is told once."""
        for act, folder in ((self.revoke, "revoked"), (self.admit, "clients")):
            for path in sorted((self.certificates / folder).glob("*.pub")):
                try:
                    act(path)
                except HelloraError as error:
                    if self.said.get(path.name) != str(error):
                        self.tell(f"cannot {act.__name__} {path.stem}: {error}")
                        self.said[path.name] = str(error)

    def admit(self, path: Path) -> None:
        """Register a client's key, unless that has been done, and note it.

        Raises:
            InputError: it is no key, another client's, one that was revoked, or a second one for its name.
        """
        key, name = public_key_text(path), path.stem
        if (known := self.admitted.get(key)) is not None:
            if "revoked" in known:
                raise InputError("this key was revoked: make the client a new one")
            if known["name"] != name:
                raise InputError(f"{known['name']} has this very key: each client needs one of its own")
            return
        if any(entry["name"] == name and "revoked" not in entry for entry in self.admitted.values()):
            again = f"`hellora certificates {self.certificates} --revoke {name}`, and then --client {name}"
            self.refuse(key, f"{name} is known to it by another key")
            raise InputError(f"it was admitted with another key, and this one is refused; to change it: {again}")
        self.admitted[key] = {"name": name, "node": self.register(path)}
        self.note()
        self.tell(f"admitted {name}")

    def register(self, path: Path) -> str:
        """Register a key, and return its node's id."""
        try:
            answer = self.flower.call("supernode", "register", str(path.resolve()), "--name", path.stem)
            return str(answer["node-id"])
        except RunError as error:
            if "already in use" not in str(error):
                raise
        # It was registered, and we were killed before we could note it; or another server's commands did it.
        nodes = {node["node-id"] for node in self.flower.call("supernode", "list", CONNECTION)["nodes"]}
        unknown = nodes - {entry["node"] for entry in self.admitted.values()}
        if len(unknown) != 1:
            raise InputError("the SuperLink has this key, but for which node cannot be told: make the client a new one")
        return str(unknown.pop())

    def revoke(self, path: Path) -> None:
        """Shut out a key in the folder `revoked`, and whatever else its client was admitted with but the key that it
        has in `clients` now.
        """
        key, name = public_key_text(path), path.stem.partition("-")[2]
        current = self.certificates / "clients" / f"{name}.pub"
        kept = public_key_text(current) if current.is_file() else None
        if key != kept:
            self.admitted.setdefault(key, {"name": name, "node": ""})
        for other, entry in self.admitted.items():
            if entry["name"] == name and other != kept and "revoked" not in entry:
                entry["revoked"] = "yes"
                self.refuse(other, f"{name}'s key was revoked")
                self.note()
                self.tell(f"revoked {name}")
                if entry["node"]:  # for the SuperLink, too; the door refuses it already
                    self.flower.call("supernode", "unregister", entry["node"], CONNECTION)

    def refuse(self, key: str, why: str) -> None:
        """Let the door refuse a key from now on."""
        if self.refused.get(shown := key_as_shown(key)) != why:
            self.refused[shown] = why
            write_atomically(self.refused_file, json.dumps(self.refused, indent=1).encode())

    def note(self) -> None:
        write_atomically(self.admitted_file, json.dumps(self.admitted, indent=1).encode())


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} where there is no such file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
