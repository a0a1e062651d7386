"""A terminal shows how a run goes: bars for rounds and clients with the time left, one line per round."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hellora.core.exchange import ClientFailure, ClientUpdate
from hellora.core.units import in_bytes
from hellora.experiments.experiment import Experiment
from hellora.experiments.machine import arithmetic
from hellora.experiments.setup import Setup
from hellora.record.answers import AnswerLine
from hellora.record.round_line import Line
from hellora.runs.answering import shown_answers
from hellora.runs.tracking import train_loss
from hellora.server.simulation import in_seconds


class TerminalProgress:
    """Shows bars where the output is a terminal; the lines, which are what a log file gets, always."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
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

    def loading(self, experiment: Experiment, folder: Path) -> None:
        self.console.print(f"{experiment.name} → {folder}", highlight=False)
        if experiment.found:
            self.console.print(f"task: {experiment.found}", highlight=False)
        self.console.print(f"loading {experiment.model.name} and {experiment.data.name} …", highlight=False)

    def noted(self, note: str) -> None:
        self.console.print(note, highlight=False, style="yellow", markup=False)

    def started(self, setup: Setup, initial: Mapping[str, float], first_round: int) -> None:
        spec, run, corpus = setup.base.spec, setup.federation, setup.corpus
        on = setup.experiment.data.evaluate_on
        self.names = tuple(setup.clients)
        capacities = sorted({p.budget.capacity(spec.num_layers) for p in run.fleet})
        ranks = sorted({int(p.budget.ranks(spec.num_layers, spec.max_rank).max()) for p in run.fleet})
        self.console.print(
            f"{len(run.fleet)} clients of capacity {'/'.join(map(str, capacities))} of {spec.num_layers} layers, "
            f"rank {'/'.join(map(str, ranks))}; "
            f"{setup.training_examples} training, {len(corpus.test)} {on} examples{sampled(setup)}; "
            f"proxy data: {corpus.proxy_source}",
            highlight=False,
        )
        if said := arithmetic(setup.experiment):
            self.console.print(said, highlight=False, markup=False)
        for note in setup.notes:
            self.console.print(f"data: {note}", highlight=False, markup=False)
        for notice in setup.base.notices:
            self.console.print(notice, highlight=False, style="yellow", markup=False)
        if run.planner is not None:
            if run.planner.model.measured:
                self.console.print("this model's costs need values: measured in real steps on this machine")
            for clients in run.left_out.values():
                why = run.planner.explain(clients[0])
                self.console.print(f"{len(clients)} of the clients train nothing: {why}", highlight=False)
        self.console.print(f"{'start' if not first_round else 'was':>9}  {shown(initial)}", highlight=False)
        self.rounds = self.bars.add_task("rounds", total=run.rounds, completed=first_round)
        self.clients = self.bars.add_task("clients", total=None)

    def head_solved(self, metrics: Mapping[str, float]) -> None:
        self.console.print(f"{'solved':>9}  {shown(metrics)}", highlight=False)

    def round_started(self, clients: int) -> None:
        if self.clients is not None:
            self.bars.reset(self.clients, total=clients)

    def client_answered(self, answer: ClientUpdate | ClientFailure) -> None:
        if self.clients is not None:
            self.bars.advance(self.clients)

    def answered(self, round: int | None, answers: Sequence[AnswerLine]) -> None:
        for line in shown_answers(self.console, round, answers):
            self.console.print(line, highlight=False, markup=False)

    def round_finished(self, line: Line) -> None:
        if self.rounds is not None:
            self.bars.advance(self.rounds)
        parts = [f"round {line['round']:3d}"]
        if line["metrics"] is not None:
            parts.append(shown(line["metrics"]))
        if (loss := train_loss(line)) is not None:
            parts.append(f"train loss {loss:.3f}")
        parts.append(f"{len(line['updated'])} of {len(line['cohort'])} clients")
        parts.append(f"up {in_bytes(line['uplink_bytes'])}, down {in_bytes(line['downlink_bytes'])}")
        parts.append(f"{line['seconds']:.1f} s")
        if line["simulated_clock"] is not None:
            parts.append(f"simulated {in_seconds(line['simulated_clock'])}")
        self.console.print("  ".join(parts), highlight=False)
        if line["left_out"] is not None:
            first, last = line["left_out"]
            self.console.print(
                f"{'head':>9}  right about {first:.3f} of the examples without each, {last:.3f} with what was trained: "
                f"the run ends with the better",
                highlight=False,
            )
        for kind in ("missing", "rejected"):
            failed = [*line[kind].items(), *(item for wave in line["sums"] for item in wave[kind].items())]
            for client, reason in dict.fromkeys(failed):
                name = f" ({self.names[int(client)]})" if self.names else ""
                self.console.print(
                    f"           client {client}{name} {kind}: {reason}",
                    highlight=False,
                    style="yellow",
                    markup=False,  # a reason may quote a text, and a bracket in it is no tag
                )


def sampled(setup: Setup) -> str:
    """Say how many examples evaluations between the first and the last are of, where these are not all."""
    return "" if setup.sample is None else f" (evaluated on {len(setup.sample)} of them, first and last on all)"


def shown(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name != "micro_f1")
