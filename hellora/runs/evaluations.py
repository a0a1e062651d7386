"""Evaluate a run as it goes: on the test split, or by what clients elsewhere tell of models of their own, in sums."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from hellora.client.evaluation import Evaluation
from hellora.client.per_class import scores_of_round
from hellora.core.errors import InputError, RunError
from hellora.core.held_out import HeldOut
from hellora.core.per_class import Label
from hellora.core.state import RoundReport, ServerState
from hellora.experiments.setup import Setup
from hellora.record.round_line import Line, Measured


@dataclass
class Evaluations:
    """Evaluates the states after the rounds that are due, before a run goes on from them."""

    setup: Setup
    last: Evaluation | None = None  # of the last state, if it was due
    answers: Sequence[Mapping[str, Any]] = ()  # of the last state, if prompts were due to be answered

    def problem_with(self, state: ServerState) -> str:
        """Evaluate a state if it is due; say why a run cannot go on from it, "" where it can."""
        run = self.setup.experiment.run
        if self.setup.measured_by_clients:
            return ""
        due = state.round % run.eval_every == 0 or state.round == run.rounds
        asks = self.setup.experiment.task.asks(state.round, run.rounds, due)
        try:
            self.last = self.setup.evaluate(state, whole=state.round == run.rounds, asks=asks) if due else None
        except InputError as error:  # a metric of the user's own that worked until now
            raise RunError(str(error)) from error
        answers = self.last.answers if self.last else self.setup.answered(state) if asks else ()
        self.answers = [asdict(answer) for answer in answers]
        loss = self.last.metrics.get("loss", 0.0) if self.last else 0.0
        return "" if math.isfinite(loss) else f"the loss on {self.setup.experiment.data.evaluate_on} examples is {loss}"

    @cached_property
    def known(self) -> Mapping[str, Label]:
        """Return the classes that clients elsewhere can tell of, by how they are told: by index or, kinds of entities
        and tags, by name."""
        labels, run = self.setup.corpus.labels, self.setup.experiment
        indices = range(max(len(labels), run.model.classes or 0))
        return {name: name for name in run.task.kinds(labels)} or {str(index): index for index in indices}

    def of(self, report: RoundReport) -> Measured:
        """Return what the line of a finished round says of its evaluation; nothing where none was due, or no client
        told of its own model."""
        found = told([report.client_metrics], self.known) if self.setup.measured_by_clients else self.last
        if found is None:
            return Measured()
        return Measured(found.metrics, found.sample, scores_of_round(found.per_class, self.setup.corpus.labels))

    def final(self, state: ServerState, lines: Sequence[Line]) -> Evaluation:
        """Return the evaluation of a run that has ended; of clients elsewhere the last that each told."""
        if self.setup.measured_by_clients:
            by_round = [{int(client): metrics for client, metrics in line["clients"].items()} for line in lines]
            return told(by_round, self.known) or Evaluation({})
        return self.last or self.setup.evaluate(state)


def told(rounds: Iterable[Mapping[int, Mapping[str, float]]], known: Mapping[str, Label]) -> Evaluation | None:
    """Return the evaluation of the clients that told of their models in these rounds, each by what it told last.

    A round has the metrics of its clients that counted, by id. None where nobody told anything. `known` are the classes
    that clients can tell of; others do not count.
    """
    last: dict[int, HeldOut] = {}
    for metrics in rounds:
        last |= {client: found for client, of_it in metrics.items() if (found := HeldOut.of(of_it)) is not None}
    if not last:
        return None
    last = dict(sorted(last.items()))
    means = {client: found.means for client, found in last.items()}
    sizes = {client: found.examples for client, found in last.items()}
    return Evaluation.of_clients(means, sizes, [found.per_class(known) for found in last.values()])
