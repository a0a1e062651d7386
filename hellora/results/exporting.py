"""Export what a run has come to, from its checkpoint: finished or not, and without its data."""

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.core.state import ServerState
from hellora.experiments.config import read_begun
from hellora.experiments.experiment import Experiment
from hellora.experiments.tables import build
from hellora.methods.sharing import with_private
from hellora.model.origin import Origin
from hellora.record.checkpoint import load_state
from hellora.record.run_folder import RunFolder
from hellora.results.adapter_folder import save_adapter, save_one
from hellora.results.trained import Trained

LOOKS = 5  # at a checkpoint that a run may be replacing


@dataclass(frozen=True, eq=False)
class Saved:
    """Holds what is in the folder of a run."""

    folder: RunFolder
    experiment: Experiment
    state: ServerState
    record: dict[str, Any]

    @staticmethod
    def read(path: Path, allow: Collection[str] = ()) -> "Saved":
        """Read it. Raise InputError where the folder has no run, or none that has begun to train, or names code that is
        not in `allow`."""
        folder = RunFolder(path)
        if not folder.experiment.is_file():
            raise InputError(f"{path} is not the folder of a run: it has no {folder.experiment.name}")
        folder.check_experiment()
        experiment = read_begun(folder.experiment, allow)
        found = load_settled(folder)
        if found is None or "labels" not in found[1]:
            raise InputError(f"{path} has no state yet: wait for its first evaluation, or start the run again")
        state, record = found
        if "task" in record:  # an older run has none
            experiment = experiment.with_task(build(type(experiment.task), record["task"], "task"))
        return Saved(folder, experiment, state, record)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.record["labels"])

    def trained(self) -> Trained:
        """Load the base model, and return what the run has come to."""
        experiment = self.experiment
        model = self.origin.found_by(experiment.model)
        base = experiment.task.load(model, self.labels, seed=0)
        self.origin.check(base, model, lambda settings: experiment.task.load(settings, self.labels, seed=0))
        origin = self.origin if self.origin.fingerprint else Origin.of(base, model)
        lines = self.folder.read_lines(self.state.round, self.record.get("lines"))
        name = self.folder.path.resolve().name  # the file is experiment.toml in every run's folder
        initial = self.record["initial"]
        return Trained(
            replace(experiment, name=name),
            base,
            self.labels,
            self.state,
            initial,
            lines,
            self.clients,
            origin,
            self.turns,
        )

    @property
    def turns(self) -> bool:
        """Return True if conversations were learned."""
        return bool(self.record.get("turns", False))

    @property
    def origin(self) -> Origin:
        """Return which base the run began with, as far as it says."""
        return Origin.from_json(self.record.get("base"))

    @property
    def clients(self) -> tuple[str, ...]:
        """Return the names of clients of a network, by id."""
        return tuple(self.record["clients"])

    def client(self, name: str) -> int:
        """Return the id of a client that is named by its name or its id, and has an adapter of its own."""
        if self.clients and self.experiment.method.personal:
            raise InputError(
                "--client: clients of a network keep adapters of their own: `hellora client export FOLDER OUT` there"
            )
        if not self.state.private:
            raise InputError(
                "--client: no client has an adapter of its own in this run; that takes method.head = 'local' or "
                "method.shares"
            )
        found = self.clients.index(name) if name in self.clients else int(name) if name.isdecimal() else -1
        if found not in self.state.private:
            known = ", ".join(str(client) for client in sorted(self.state.private))
            raise InputError(f"--client {name}: it has not taken part: choose among {known}")
        return found


def load_settled(folder: RunFolder) -> tuple[ServerState, dict[str, Any]] | None:
    """Load the checkpoint of a run that may be going on and replace it meanwhile."""
    for look in range(LOOKS):
        try:
            return load_state(folder.checkpoint)
        except InputError as error:
            if look == LOOKS - 1:
                raise InputError(f"{error}: `hellora run --resume` goes back to the last state that is whole") from None
            time.sleep(0.2)
    return None


def export_run(
    run: Path, out: Path | None, merged: bool = False, client: str | None = None, allow: Collection[str] = ()
) -> Path:
    """Write the adapter of a run to the new folder `out`; returns it.

    merged   the whole model with the adapter in its weights, for plain transformers
    client   its own adapter, by id or name, where the method has such
    allow    code that the run's experiment may name

    Raises:
        InputError: there is no such run or client, the folder exists, a quantised base was to be merged, or the run
            names code that is not allowed.
    """
    saved = Saved.read(run, allow)
    whose = None if client is None else saved.client(client)
    folder = out or run / ("merged" if merged else "export" if whose is None else f"client-{whose:05d}")
    check_new(folder)
    trained = saved.trained()
    with drafted(folder) as draft:
        if whose is None and not merged:
            save_adapter(draft, trained, folder)
        else:
            own = saved.state.private[whose] if whose is not None else {}
            save_one(draft, trained, with_private(saved.state.adapter, own), folder, client=whose, merged=merged)
    return folder


def check_new(folder: Path) -> None:
    """Raise InputError where there is something already."""
    if folder.exists():
        raise InputError(f"{folder} exists: choose another --out, or remove it")


@contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Yield where the block is to make a folder, which is then there whole or, where the block raises, not at all.

    Raises:
        InputError: it cannot be written.
    """
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}: choose another --out") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
