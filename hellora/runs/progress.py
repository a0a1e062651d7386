"""A terminal shows how a run goes: bars for rounds and clients with the time left, one line per round."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.core.units import in_bytes
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import arithmetic
from hellora.experiments.setup import Setup
from hellora.record.answers import AnswerLine
from hellora.record.round_line import Line
from hellora.runs.answering import shown_answers
from hellora.runs.terminal import say
from hellora.runs.tracking import train_loss
from hellora.server.simulation import in_seconds

UNDER = 11  # columns before what a line of a round says


class TimeLeft(ProgressColumn):
    """Says how long the rounds to come take, if they take as long as those that are done, however long that is."""

    def render(self, task: Task) -> Text:
        ended, first = task.fields.get("ended"), task.fields.get("first", 0)
        if ended is None or task.start_time is None or task.remaining is None:
            return Text("")
        each = (ended - task.start_time) / (task.completed - first)
        left = max(0.0, each * task.remaining - (task.get_time() - ended))
        return Text(f"{timedelta(seconds=round(left))} left", style="progress.remaining")


class TerminalProgress:
    """Shows bars where the output is a terminal; the lines, which are what a log file gets, always."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeLeft(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.rounds: TaskID | None = None
        self.clients: TaskID | None = None
        self.names: tuple[str, ...] = ()  # of clients elsewhere, by id

    def __enter__(self) -> "TerminalProgress":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def line(self, text: str, under: int = UNDER, style: str | None = None) -> None:
        say(self.console, text, under, style)

    def loading(self, experiment: Experiment, folder: Path) -> None:
        self.line(f"{experiment.name} → {folder}", 2)
        if experiment.found:
            self.line(f"task: {experiment.found}", 2)
        self.line(f"loading {experiment.model.name} and {experiment.data.name} …", 2)

    def noted(self, note: str) -> None:
        self.line(note, 2, "yellow")

    def started(self, setup: Setup, metrics: Mapping[str, float], first_round: int) -> None:
        run = setup.federation
        self.names = tuple(setup.clients)
        for text in what_trains(setup):
            self.line(text, 2)
        for notice in setup.base.notices:
            self.line(notice, 2, "yellow")
        if run.planner is not None:
            if run.planner.model.measured:
                self.line("this model's costs need values: measured in real steps on this machine", 2)
            for clients in run.left_out.values():
                why = run.planner.explain(clients[0])
                self.line(f"{len(clients)} of the clients train nothing: {why}", 2)
        if first_round:
            self.line(resumed(setup, metrics, first_round))
        else:
            self.line(f"{'start':>9}  {shown(metrics)}")
        self.rounds = self.bars.add_task("rounds", total=run.rounds, completed=first_round, first=first_round)
        self.clients = self.bars.add_task("clients", total=None)

    def head_solved(self, metrics: Mapping[str, float]) -> None:
        self.line(f"{'solved':>9}  {shown(metrics)}")

    def round_started(self, clients: int) -> None:
        if self.clients is not None:
            self.bars.reset(self.clients, total=clients)

    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None:
        if self.clients is not None:
            self.bars.advance(self.clients)

    def answered(self, round: int | None, answers: Sequence[AnswerLine]) -> None:
        for line in shown_answers(self.console, round, answers):
            self.line(line)

    def round_finished(self, line: Line) -> None:
        if self.rounds is not None:
            self.bars.update(self.rounds, advance=1, ended=self.bars.get_time())
        self.line(round_in_words(line, self.console.width if self.console.is_terminal else None))
        if line["left_out"] is not None:
            first, last = line["left_out"]
            self.line(
                f"{'head':>9}  right about {first:.3f} of the examples without each, {last:.3f} with what was trained: "
                f"the run ends with the better"
            )
        for kind in ("missing", "rejected"):
            failed = [*line[kind].items(), *(item for wave in line["sums"] for item in wave[kind].items())]
            for client, reason in dict.fromkeys(failed):
                name = f" ({self.names[int(client)]})" if self.names else ""
                self.line(f"{'':{UNDER}}client {client}{name} {kind}: {reason}", UNDER + 2, "yellow")


def resumed(setup: Setup, metrics: Mapping[str, float], first_round: int) -> str:
    """Say after which round a run goes on, and what was measured last: after that round, or after which other one."""
    ended, every = first_round - 1, setup.experiment.run.eval_every
    measured = first_round // every * every - 1
    said = f"resuming after round {ended}"
    if not metrics:
        return said
    if measured == ended or setup.measured_by_clients:  # of these, who told anything is not known
        return f"{said}, {shown(metrics)}"
    return f"{said}; after round {measured}, the last that was evaluated: {shown(metrics)}"


def what_trains(setup: Setup) -> list[str]:
    """Say which clients train, on what data, in which arithmetic."""
    spec, run, corpus = setup.base.spec, setup.federation, setup.corpus
    capacities = sorted({p.budget.capacity(spec.num_layers) for p in run.fleet})
    ranks = sorted({int(p.budget.ranks(spec.num_layers, spec.max_rank).max()) for p in run.fleet})
    clients = (
        f"{len(run.fleet)} clients of capacity {'/'.join(map(str, capacities))} of {spec.num_layers} layers, "
        f"rank {'/'.join(map(str, ranks))}; "
        f"{setup.training_examples} training, {len(corpus.test)} {setup.experiment.data.evaluate_on} examples"
        f"{sampled(setup)}; proxy data: {corpus.proxy_source}"
    )
    said = arithmetic(setup.experiment)
    return [clients, *([said] if said else []), *(f"data: {note}" for note in setup.notes)]


def round_in_words(line: Line, width: int | None) -> str:
    """Sum up a round in one line. Where that is wider than a terminal, what matters less is left out: the bytes, that
    all clients answered, metrics but the first and the loss, the loss in training; rounds.jsonl has everything."""
    metrics = distinct(line["metrics"] or {})
    loss, trained, asked = train_loss(line), len(line["updated"]), len(line["cohort"])
    parts = {
        "round": f"round {line['round']:3d}",
        **{f"metric {name}": shown({name: value}) for name, value in metrics.items()},
        "train": "" if loss is None else f"train loss {loss:.3f}",
        "clients": f"{trained}/{asked} clients",
        "bytes": f"up {in_bytes(line['uplink_bytes'])}, down {in_bytes(line['downlink_bytes'])}",
        "seconds": f"{line['seconds']:.1f} s",
        "clock": "" if line["simulated_clock"] is None else f"simulated {in_seconds(line['simulated_clock'])}",
    }
    others = [f"metric {name}" for name in list(metrics)[:0:-1] if name != "loss"]
    for less in ("bytes", *(["clients"] if trained == asked else []), *others, "train"):
        if width is None or len(joined(parts)) <= width:
            break
        del parts[less]
    return joined(parts)


def joined(parts: Mapping[str, str]) -> str:
    return "  ".join(part for part in parts.values() if part)


def sampled(setup: Setup) -> str:
    """Say how many examples evaluations between the first and the last are of, where these are not all."""
    return "" if setup.sample is None else f" (evaluated on {len(setup.sample)} of them, first and last on all)"


def shown(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in distinct(metrics).items())


def distinct(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out the micro F1 that is an accuracy by another name, where examples have a class each."""
    return {name: value for name, value in metrics.items() if name != "micro_f1" or "accuracy" not in metrics}
