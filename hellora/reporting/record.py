"""Read what a run's folder tells, at any moment of the run, without torch, and without a lock."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from hellora.core.errors import InputError
from hellora.core.metrics import asked_for, main_metric
from hellora.reporting.fields import (
    OF_ANSWER,
    OF_SUMMARY,
    OF_TABLE,
    check_budget,
    check_classes,
    check_line,
    check_numbers,
    checked,
)

Line = Mapping[str, Any]  # of rounds.jsonl
FILES = ("experiment.toml", "clients.json", "rounds.jsonl", "answers.jsonl", "summary.json")
ERROR = "error.log"  # why the run had to stop, until it goes on


@dataclass(frozen=True)
class Client:
    """Tells of a client as clients.json has it; `labels` is {} where nobody but the client may know them. Only real
    ones, of a deployment, have names of their own.
    """

    id: int
    name: str
    examples: int | None = None
    budget: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    named: bool = False


@dataclass(frozen=True)
class RunRecord:
    """Tells of a run as far as it has come. `initial` are the metrics before round 0, {} where they are unknown yet."""

    name: str
    table: Mapping[str, Any]  # its experiment.toml
    lines: Sequence[Line]
    initial: Mapping[str, float]
    clients: Sequence[Client]  # by id; [] of a run that did not record them
    summary: Mapping[str, Any] | None  # None until it has ended
    answers: Sequence[Line] = ()  # of answers.jsonl
    error: str = ""  # why it had to stop, where it has not gone on since

    @property
    def metric(self) -> str:
        """Return the main metric of the run's task."""
        measured = [line["metrics"] for line in self.lines if line["metrics"]]
        return main_metric(name for metrics in (self.initial, *measured) for name in metrics)

    @property
    def last_evaluated(self) -> Line | None:
        """Return the line of the last round in which the main metric was measured; None before there is one."""
        measured = (line for line in reversed(self.lines) if (line["metrics"] or {}).get(self.metric) is not None)
        return next(measured, None)

    @property
    def per_class(self) -> Mapping[str, Mapping[str, float]] | None:
        """Return how well each class is recognised by name, of the whole test data at the end, before that of the last
        round that was evaluated; None where that is not known."""
        if self.summary is not None:
            return self.summary.get("per_class")
        return self.last_evaluated.get("per_class") if self.last_evaluated else None

    @property
    def asked(self) -> list[str]:
        """Name the metrics that were asked for besides those of the run's task."""
        measured = {name: None for line in self.lines if line["metrics"] for name in line["metrics"]}
        return asked_for(self.table.get("task", {}).get("metrics", ()), measured)

    @cached_property
    def names(self) -> Mapping[int, str]:
        """Say what every client is called that was ever asked, or is on record, by id."""
        asked = {client for line in self.lines for client in line["cohort"]}
        known = {client.id: client.name for client in self.clients}
        return {client: known.get(client, f"client {client}") for client in sorted(asked | known.keys())}

    def total(self, name: str) -> list[float]:
        """Return the running sum of a number of the lines, (rounds,)."""
        return list(accumulate(float(line[name]) for line in self.lines))

    @property
    def timed(self) -> bool:
        """Tell whether every round has its simulated time."""
        return bool(self.lines) and all(line.get("simulated_clock") is not None for line in self.lines)

    @property
    def real(self) -> bool:
        """Tell whether its clients are real, so that the time of its rounds is, too."""
        return bool(self.clients) and all(client.named for client in self.clients)

    def of_clients(self, name: str) -> dict[int, list[float]]:
        """Collect a number that counted clients report, or that was predicted for them, of all rounds, by id."""
        found: dict[int, list[float]] = {}
        for line in self.lines:
            for client, values in line["clients"].items():
                if values.get(name) is not None:
                    found.setdefault(int(client), []).append(values[name])
        return dict(sorted(found.items()))


def read_run(folder: Path) -> RunRecord:
    """Read the run in a folder, which may still be written to: a line that is not whole yet does not count.

    Raises:
        InputError: it is no run's folder, or a file of it is damaged.
    """
    if not (folder / "experiment.toml").is_file():
        raise InputError(f"{folder} is no folder of a run: there is no experiment.toml in it")
    table = read_table(folder / "experiment.toml")
    clients = read_clients(folder / "clients.json")
    lines = read_lines(folder / "rounds.jsonl")
    answers = read_answers(folder / "answers.jsonl")
    summary = read_summary(folder / "summary.json")
    saved = read_initial(last_state(folder))
    with blamed(folder / ERROR):
        error = last_line(folder / ERROR)
    initial = saved if summary is None else summary["initial"]
    return RunRecord(folder.resolve().name, table, lines, initial, clients, summary, answers, error)


@contextmanager
def blamed(file: Path) -> Iterator[None]:
    """Turn whatever keeps the block from reading a file into an InputError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def read_table(file: Path) -> Mapping[str, Any]:
    """Read the settings of the run."""
    with blamed(file):
        table = tomllib.loads(file.read_text())
        checked(table, OF_TABLE)
        for part in ("model", "data"):
            checked(table[part], {"name": str}, f"{part}: ")
        return table


def read_clients(file: Path) -> list[Client]:
    """Read who takes part; [] where that is not on record."""
    with blamed(file):
        known = read(file)
        return [client_of(fields) for fields in ([] if known is None else known["clients"])]


def read_lines(file: Path) -> list[Line]:
    """Read the rounds that have ended."""
    with blamed(file):
        lines: list[Line] = read(file) or []
        for number, line in enumerate(lines, 1):
            check_line(line, f"line {number}: ")
        return lines


def read_answers(file: Path) -> list[Line]:
    """Read what the model answered."""
    with blamed(file):
        lines: list[Line] = read(file) or []
        for number, line in enumerate(lines, 1):
            checked(line, OF_ANSWER, f"line {number}: ")
        return lines


def read_summary(file: Path) -> Mapping[str, Any] | None:
    """Read what came of the run; None until it has ended."""
    with blamed(file):
        summary: Mapping[str, Any] | None = read(file)
        if summary is not None:
            checked(summary, OF_SUMMARY)
            checked(summary["data"], {"evaluated_on": str}, "data: ")
            for group in summary["groups"]:
                checked(group, {"layers": int, "rank": (int, list), "clients": int, "metrics": dict}, "groups: ")
            check_classes(summary)
            for part in ("initial", "final", "clients"):
                check_numbers(summary[part], f"{part}: ")
        return summary


def last_state(folder: Path) -> Path:
    """Return the file of the last state of a run; one that is not there before the first."""
    return max((folder / "checkpoint").glob("state-*.json"), default=folder / "checkpoint" / "state-000000.json")


def read_initial(file: Path) -> Mapping[str, float]:
    """Read the metrics before round 0, as a checkpoint has them; {} before the first one."""
    with blamed(file):
        initial: Mapping[str, float] = (read(file) or {}).get("record", {}).get("initial", {})
        return initial


def last_line(file: Path) -> str:
    """Return the last line of a text that is not empty; "" where there is no file."""
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()] if file.is_file() else []
    return lines[-1].strip() if lines else ""


def read(file: Path) -> Any:
    """Read the JSON value of a file, or of each whole line of one; None where there is no file."""
    if not file.is_file():
        return None
    data = file.read_bytes()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in data.split(b"\n")[:-1]]
    return json.loads(data)


def client_of(fields: Mapping[str, Any]) -> Client:
    """Make a client of its entry in clients.json."""
    name = fields.get("name", f"client {fields['id']}")
    check_budget(fields.get("budget", {}), f"client {fields['id']}: budget: ")
    return Client(
        int(fields["id"]),
        str(name),
        fields.get("examples"),
        fields.get("budget", {}),
        fields.get("labels", {}),
        named="name" in fields,
    )


def stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return the time and size of each file of the run: it changes when one of them does."""
    stats = [file.stat() for name in (*FILES, ERROR, last_state(folder)) if (file := folder / name).is_file()]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
