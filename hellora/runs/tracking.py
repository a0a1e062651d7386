"""Tell experiment trackers of every round: TensorBoard, Weights & Biases, MLflow, whatever accelerate knows.

Only this file imports accelerate. What trackers write goes to `tracking/` in the run's folder, if they let us choose;
`tracking/state.json` says of each how many rounds it has been told of, so that a resumed run goes on where it was.
"""

import importlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellora.core.errors import InputError, nearest, one_line
from hellora.experiments.own_code import is_code, load
from hellora.experiments.settings import TrackingSettings
from hellora.record.atomic import write_atomically
from hellora.record.sealed import sealed_json, unsealed_json

if TYPE_CHECKING:
    from hellora.experiments.experiment import Experiment

Line = Mapping[str, Any]  # of rounds.jsonl
State = dict[str, Any]  # of one tracker: rounds it was told of, and the id of its run
log = logging.getLogger(__name__)


def values_of(line: Line, split: str) -> dict[str, float]:
    """Return the numbers of a round, by the names that trackers show. `split` is what the metrics were measured on."""
    values = {f"{split}/{name}": value for name, value in (line["metrics"] or {}).items()}
    values |= {f"validation/{name}": value for name, value in (line.get("validation") or {}).items()}
    if (loss := train_loss(line)) is not None:
        values["train/loss"] = loss
    values |= {
        "bytes/up": line["uplink_bytes"],
        "bytes/down": line["downlink_bytes"],
        "time/seconds": line["seconds"],
        "clients/asked": len(line["cohort"]),
        "clients/updated": len(line["updated"]),
        "clients/missing": len(line["missing"]),
        "clients/rejected": len(line["rejected"]),
    }
    more = {"time/simulated": "simulated_seconds", "time/simulated_clock": "simulated_clock"}
    more["aggregation_error"] = "aggregation_error"
    return values | {name: line[key] for name, key in more.items() if line[key] is not None}


def train_loss(line: Line) -> float | None:
    """Compute the mean loss of a round's clients over their examples; None where nobody trained."""
    told = [client for client in line["clients"].values() if "loss" in client]  # clients elsewhere tell what they like
    examples = sum(client["examples"] for client in told)
    return sum(client["loss"] * client["examples"] for client in told) / examples if examples else None


def config_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's table as trackers take it: flat, with a text for a list."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return {key: json.dumps(value) if isinstance(value, list) else value for key, value in flat.items()}


# ------------------------------------------------------------------------------------------------- finding and opening


def tracker_class(name: str) -> Any:
    """Find accelerate's tracker of a name, one that was registered with it, or a user's own, "mine.py:Class".

    Raises:
        InputError: there is none, or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
    from accelerate.utils import LoggerType

    if is_code(name):
        try:
            found = load(name)
        except Exception as error:  # whatever a user's module raises
            raise InputError(f"tracking.trackers: {name!r} cannot be imported: {error}: correct it") from error
        if not (isinstance(found, type) and issubclass(found, GeneralTracker)):
            raise InputError(f"tracking.trackers: {name!r} is no GeneralTracker of accelerate's: make it a subclass")
        return found
    if name not in LOGGER_TYPE_TO_CLASS:
        raise InputError(
            f"tracking.trackers: there is no tracker {name!r}{nearest(name, sorted(LOGGER_TYPE_TO_CLASS))}"
        )
    built_in = name in {kind.value for kind in LoggerType}
    if built_in and name not in {kind.value for kind in get_available_trackers()}:
        raise InputError(f"tracking.trackers: {name} is not installed: pip install {name}")
    return LOGGER_TYPE_TO_CLASS[name]


def check_trackers(settings: TrackingSettings) -> None:
    """Raise InputError where a tracker is unknown or not installed."""
    for name in settings.trackers:
        tracker_class(name)


def arguments(name: str, project: str, title: str, place: Path, state: State) -> tuple[list[Any], dict[str, Any]]:
    """Say how to open a tracker so that it goes on with the run in `state`, and writes below `place`."""
    if name == "tensorboard":  # what it was told of rounds that do not count is purged
        return [name, str(place)], {"purge_step": state["rounds"]}
    if name == "wandb":
        return [project], {"name": title, "id": state["id"], "resume": "allow", "dir": str(place)}
    if name == "mlflow":
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow = importlib.import_module("mlflow")
            mlflow.set_tracking_uri(f"sqlite:///{(place / 'mlflow.db').resolve()}")
        return [project, str((place / "mlflow").resolve())], {"run_name": title, "run_id": state.get("mlflow")}
    return ([project, str(place)] if tracker_class(name).requires_logging_directory else [project]), {}


@dataclass
class Tracking:
    """Holds the open trackers of a run, by name, and what each has been told of."""

    place: Path
    split: str
    trackers: dict[str, Any] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)

    def open(self, experiment: "Experiment", title: str, rounds: int) -> None:
        """Open the trackers of a run of so many rounds until now. Raise InputError where one cannot start."""
        from accelerate import PartialState

        PartialState()  # trackers want to know which of several processes they are in; there is one
        self.place.mkdir(exist_ok=True)
        if self.record.exists():
            self.states = self.read()
        for name in experiment.tracking.trackers:
            begun = name in self.states
            state = self.states.setdefault(name, {"rounds": 0, "id": uuid.uuid4().hex})
            state["rounds"] = min(state["rounds"], rounds)  # the run may have gone back
            try:
                places, named = arguments(name, experiment.tracking.project, title, self.place, state)
                self.trackers[name] = tracker = tracker_class(name)(*places, **named)
                tracker.start()
                if not begun:
                    tracker.store_init_configuration(config_of(experiment.table))
                if name == "mlflow":
                    state["mlflow"] = tracker.tracker.info.run_id
            except Exception as error:  # a service that cannot be reached, a key that is missing
                raise InputError(
                    f"tracking.trackers: {name} cannot start: {named_error(error)}: leave it out?"
                ) from error
        self.save()

    @property
    def record(self) -> Path:
        return self.place / "state.json"

    def read(self) -> dict[str, State]:
        """Read what each tracker has been told of. Raise InputError where the file is damaged."""
        try:
            states: dict[str, State] = unsealed_json(self.record.read_bytes())
            return states
        except ValueError as error:
            raise InputError(
                f"{self.record} is damaged ({error}): remove it, and trackers are told of all rounds anew"
            ) from error

    def save(self) -> None:
        write_atomically(self.record, sealed_json(self.states))

    def tell(self, lines: Sequence[Line]) -> None:
        """Tell each tracker of the rounds that it does not know yet. One that fails is told again after the next."""
        for name, tracker in self.trackers.items():
            state = self.states[name]
            try:
                for line in lines[state["rounds"] :]:
                    tracker.log(values_of(line, self.split), step=line["round"])
                    state["rounds"] = line["round"] + 1
            except Exception as error:  # a run does not end because somebody does not listen
                log.warning("%s was not told of round %d: %s", name, state["rounds"], named_error(error))
        if self.trackers:
            self.save()

    def close(self) -> None:
        for name, tracker in self.trackers.items():
            try:
                tracker.finish()
            except Exception as error:
                log.warning("%s did not finish: %s", name, named_error(error))


@contextmanager
def tracking(experiment: "Experiment", folder: Path, lines: Sequence[Line]) -> Iterator[Tracking]:
    """Yield the trackers of a run in `folder`, told of the rounds in `lines`; none where the experiment names none.

    Raises:
        InputError: a tracker cannot start.
    """
    told = Tracking(folder / "tracking", experiment.data.evaluate_on)
    try:
        if experiment.tracking.trackers:
            told.open(experiment, str(folder), len(lines))
            told.tell(lines)
        yield told
    finally:
        told.close()


def named_error(error: Exception) -> str:
    """Write an error with its type in one line."""
    return one_line(f"{type(error).__name__}: {error}")[:300]
