"""A client keeps a model of its own, to use it where it is: `hellora client export` writes it as a run's adapter is.

What is shared is as it was last received, what is the client's own as it was last trained. It lies in the client's
folder, in own/RUN.safetensors, with all that its use needs besides: the experiment, the classes, which base it was.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hellora.backends.wire import flatten, from_bytes, to_bytes, unflatten
from hellora.client.own_part import TrainedOwn
from hellora.core.errors import InputError
from hellora.core.held_out import HeldOut
from hellora.core.state import ServerState
from hellora.core.types import Adapter, AdapterSpec, LoraPair
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.own_code import refuse_unnamed_code
from hellora.model.origin import Origin
from hellora.record.atomic import write_atomically
from hellora.record.sealed import sealed_bytes, unsealed_bytes
from hellora.results.adapter_folder import save_one
from hellora.results.exporting import check_new, drafted
from hellora.results.trained import Trained

FOLDER = "own"  # in a client's folder


@dataclass(frozen=True)
class Owner:
    """Says of which client and experiment a model is."""

    name: str
    experiment: Experiment  # as this client carries it out
    labels: Sequence[str]  # () where there is no label
    origin: Origin  # of the base
    turns: bool = False  # its data are conversations


@dataclass(frozen=True, eq=False)
class OwnModel:
    """Holds what a client has of one run."""

    path: Path

    @staticmethod
    def of(folder: Path, run: str) -> "OwnModel":
        return OwnModel(folder / FOLDER / f"{run}.safetensors")

    def keep(self, owner: Owner, found: TrainedOwn) -> None:
        """Write the model after a round. A block that did not come this time is as it came last."""
        adapter = found.adapter
        with suppress(InputError):  # there is none yet, or it is damaged
            adapter = replace(adapter, pairs={**self.read()[0].pairs, **adapter.pairs})
        tensors, scales = flatten(adapter)
        measured = HeldOut.of(found.update.metrics)
        fields = {
            "round": found.update.round,
            "scales": scales,
            "measured": measured and measured.means,
            "name": owner.name,
            "experiment": owner.experiment.name,
            "table": owner.experiment.table,
            "labels": list(owner.labels),
            "turns": owner.turns,
            "base": owner.origin.to_json(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, sealed_bytes(to_bytes(tensors, fields)))

    def read(self) -> tuple[Adapter, dict[str, Any]]:
        """Return the adapter, and what is written with it. Raise InputError where the file is not there, whole."""
        try:
            tensors, fields = from_bytes(unsealed_bytes(self.path.read_bytes()))
            return unflatten(tensors, fields.pop("scales")), fields
        except Exception as error:  # whatever can be wrong with bytes
            why = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.path} is damaged ({type(error).__name__}: {why}): remove it, and the next round writes it again"
            ) from error


def export_own(folder: Path, out: Path, run: str | None = None, allow: Collection[str] = ()) -> str:
    """Write the model of its own that the client in `folder` has, of its last run or of `run`, to the new folder `out`.
    Return a line that says what it is.

    Raises:
        InputError: there is no such model, `out` exists, the base is another one, or the run names code that is not in
            `allow`.
    """
    own = chosen(folder, run)
    check_new(out)
    adapter, fields = own.read()
    refuse_unnamed_code(fields["table"], allow, own.path)
    experiment, origin = check(fields["experiment"], fields["table"], simulated=False), Origin.from_json(fields["base"])
    model, labels = origin.found_by(experiment.model), tuple(fields["labels"])
    base = experiment.task.load(model, labels, seed=0)
    origin.check(base, model, lambda settings: experiment.task.load(settings, labels, seed=0))
    whole = with_all_modules(adapter, base.spec)
    done = fields["round"] + 1
    lines = [{"round": round, "metrics": None} for round in range(done - 1)]
    lines.append({"round": fields["round"], "metrics": fields["measured"]})
    state, turns = ServerState(done, whole), bool(fields.get("turns", False))
    trained = Trained(experiment, base, labels, state, {}, lines, (fields["name"],), origin, turns)
    with drafted(out) as draft:
        save_one(draft, trained, whole, out, client=fields["name"])
    return f"{out}: the model of {fields['name']} after round {fields['round']} of run {own.path.stem}"


def chosen(folder: Path, run: str | None) -> OwnModel:
    """Return the model of a run, None for the last one that trained. Raise InputError where there is none."""
    found = sorted((folder / FOLDER).glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        raise InputError(
            f"{folder} has no model of a client's own: it takes a run with method.head = 'local' or method.shares, and "
            f"the --folder of the client that took part"
        )
    names = [file.stem for file in found]
    if run is not None and run not in names:
        raise InputError(f"--run {run}: {folder} has models of the runs {', '.join(names)}: choose one")
    return OwnModel(found[-1] if run is None else found[names.index(run)])


def with_all_modules(adapter: Adapter, spec: AdapterSpec) -> Adapter:
    """Return the adapter with a pair that does nothing for each module that never came."""
    blanks = {
        module.name: LoraPair(torch.zeros(1, module.d_in), torch.zeros(module.d_out, 1), spec.scale)
        for module in spec.modules
    }
    return replace(adapter, pairs={**blanks, **adapter.pairs})
