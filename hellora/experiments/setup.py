"""A prepared experiment lends its model to strategies, and evaluates a state."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hellora.client.distillation import Distillation, evaluate_ensemble
from hellora.client.encoding import encode_rows
from hellora.client.evaluation import Evaluation, answered, evaluate, fisher_scores
from hellora.client.sample import stratified_rows
from hellora.client.train import labels_of
from hellora.client.work import ClientWork
from hellora.core.algebra import prototypes_of, starting_adapter
from hellora.core.state import ServerState
from hellora.core.types import Adapter
from hellora.data.sources import Corpus
from hellora.experiments.experiment import Experiment
from hellora.methods.context import Scores
from hellora.methods.sharing import with_private
from hellora.model.resident import BaseModel
from hellora.server.backend import Backend
from hellora.server.federation import Federation
from hellora.tasks import Answered, Encoded

FISHER_BATCH = 16  # examples with a copy of the adapter each

Parts = list[npt.NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Setup:
    """In a prepared experiment, data and model are loaded, the fleet is known, and nothing has been trained."""

    experiment: Experiment
    corpus: Corpus
    work: ClientWork
    federation: Federation
    held_out: Parts  # each client's evaluation rows where heads are personal, else nothing
    connect: Callable[["Setup"], AbstractContextManager[Backend]]
    clients: Mapping[str, Any] = field(default_factory=dict)  # what those of a network said of themselves, by name
    run_id: str = ""  # under which clients of a network keep tensors of their own

    @cached_property
    def test(self) -> Encoded:
        """Encode the test split, once.

        Raises:
            InputError: nothing of it is left to measure on.
        """
        found = encode_rows(self.experiment.task, self.base, self.corpus.test)
        found.note(f"{self.experiment.data.evaluate_on} ")
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a person should know of the data: as they were read, and as they are encoded."""
        said = "" if self.experiment.method.personal else self.test.note(f"{self.experiment.data.evaluate_on} ")
        return (*self.corpus.notes, said) if said else self.corpus.notes

    @cached_property
    def proxy(self) -> Encoded:
        """Encode the server's proxy data, once."""
        return encode_rows(self.experiment.task, self.base, self.corpus.proxy)

    @cached_property
    def public(self) -> Encoded:
        """Encode the server's public data, once."""
        return encode_rows(self.experiment.task, self.base, self.corpus.public)

    @cached_property
    def sample(self) -> npt.NDArray[np.int64] | None:
        """Draw the rows of the test split that all rounds but the last are evaluated on; None: all of them."""
        run, labels = self.experiment.run, labels_of(self.corpus.test)
        if not run.eval_examples or run.eval_examples >= len(self.corpus.test):
            return None
        classes = np.zeros(len(self.corpus.test), dtype=np.int64) if labels is None else labels.numpy()
        return stratified_rows(classes, run.eval_examples, run.seed)

    @property
    def asked(self) -> Any:
        """Return the rows whose first prompts are answered as the run goes: always the same ones."""
        return self.corpus.test if self.corpus.validation is None else self.corpus.validation

    @property
    def base(self) -> BaseModel:
        """Return the model, resident in this process, whose own weights are never written to."""
        return self.work.base

    def initial_state(self) -> ServerState:
        """Make the state before round 0: a new adapter (A drawn by the experiment's seed, B = 0), the initial head."""
        return ServerState(0, starting_adapter(self.base.spec, self.base.initial_head(), self.experiment.run.seed))

    def distil(self, students: Mapping[int, Adapter], weights: Mapping[int, float], how: Any, seed: int) -> Any:
        """Return the prototypes by rank, after they have taught each other on the server's public data."""
        return Distillation(
            how,
            self.base,
            self.experiment.task,
            self.public,
            self.experiment.train.precision,
            train_head=self.experiment.method.head == "aggregate",
        ).distil(students, weights, seed)

    def layer_scores(self, adapter: Adapter) -> Scores:
        """Compute Fisher scores on the server's proxy data, (layers,)."""
        return fisher_scores(adapter, self.base, self.experiment.task, self.proxy, FISHER_BATCH)

    @property
    def measured_by_clients(self) -> bool:
        """Return True where clients elsewhere have models of their own, which only they can evaluate."""
        return bool(self.clients) and self.experiment.method.personal

    def evaluate(self, state: ServerState, whole: bool = True, asks: bool = True) -> Evaluation:
        """Evaluate on the test split, or on the sample of it that `eval_examples` asks for, if not on the `whole`;
        where clients have models of their own, each on its own held-out rows, and their mean. `asks`: prompts are
        answered, too."""
        asked = self.asked if asks else self.asked.select(())
        if not self.held_out and not whole and self.sample is not None:
            rows, encoded = self.corpus.test.select(self.sample), self.test.select(self.sample)
            found = self.evaluate_adapter(state.adapter, rows, encoded, asked)
            return replace(found, sampled=(len(rows), len(self.test)))
        if not self.held_out:
            return self.evaluate_adapter(state.adapter, self.corpus.test, self.test, asked)
        own_models = {}
        for client, rows in enumerate(self.held_out):
            if len(rows):
                adapter = with_private(state.adapter, state.private.get(client, {}))
                own, encoded = self.work.data.select(rows), self.work.encoded.select(rows)
                asked = own if asks else own.select(())
                own_models[client] = self.evaluate_adapter(adapter, own, encoded, asked)
        clients = {client: each.metrics for client, each in own_models.items()}
        sizes = {client: len(rows) for client, rows in enumerate(self.held_out)}
        return Evaluation.of_clients(clients, sizes, [each.per_class for each in own_models.values()])

    def evaluate_on_test(self, adapter: Adapter) -> Evaluation:
        """Evaluate one adapter on the test split."""
        return self.evaluate_adapter(adapter, self.corpus.test, self.test, self.asked)

    def answered(self, state: ServerState) -> Sequence[Answered]:
        """Answer prompts without an evaluation; none where clients have models of their own."""
        if self.held_out:
            return ()
        return answered(state.adapter, self.base, self.experiment.task, self.asked)

    def evaluate_adapter(
        self, adapter: Adapter, rows: Any, encoded: Encoded | None = None, asked: Any = None
    ) -> Evaluation:
        """Evaluate one adapter on rows of a `datasets.Dataset`; `encoded` are the same rows, where they are already. Of
        `asked`, or else of the rows, the first prompts are answered."""
        run, size = self.experiment, self.experiment.compute.eval_batch_size
        return evaluate(adapter, self.base, run.task, rows, size, run.train.precision, encoded, asked, more=run.metrics)

    def evaluate_prototypes(self, state: ServerState) -> dict[str, Any]:
        """Evaluate every prototype, by its rank, and their ensemble on the test split; return {} for a lone adapter."""
        if not state.adapter.prototypes:
            return {}
        run, prototypes = self.experiment, prototypes_of(state.adapter, self.base.spec)
        size, precision = run.compute.eval_batch_size, run.train.precision
        together = evaluate_ensemble(
            list(prototypes.values()), self.base, run.task, self.test, size, precision, run.metrics
        )
        return {
            "prototypes": {str(rank): self.evaluate_on_test(each).metrics for rank, each in prototypes.items()},
            "ensemble": together.metrics,
        }

    def backend(self) -> AbstractContextManager[Backend]:
        """Connect to the clients, as a context: what it starts ends with it. Move the base to its device."""
        return self.connect(self)

    @property
    def training_examples(self) -> int:
        """Count the training examples of all clients together."""
        return sum(client.num_examples for client in self.federation.fleet)
