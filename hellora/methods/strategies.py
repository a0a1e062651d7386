"""A strategy is of one of seven kinds, each with one function or a few; a `Method` is one of each.

    start            how the head is solved in closed form
    sampler          who is asked
    allocator        who trains what
    dispatcher       what a client receives
    local training   how a client trains: a list of rules, in order
    aggregator       unequal updates into one adapter
    server optimizer the step on the aggregated delta

Every strategy is a frozen dataclass whose fields are its settings. It returns a value and its state, which it finds
again in `context.state` next round, and which is part of the checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from hellora.core.errors import RunError
from hellora.core.exchange import ClientTask, ClientUpdate, Declared, Factors, HeadPolicy, Named, Outputs
from hellora.core.state import StrategyState
from hellora.core.sums import Grid
from hellora.core.types import Adapter, AdapterSpec, Allocation, ClientProfile, Mask, Sent
from hellora.methods.closed_form import HeadRows, HeadShape, Sums, summed
from hellora.methods.context import RoundContext
from hellora.methods.demands import AVERAGES_COMPONENTS, CLASSES, OWN_COMPONENTS, Demands
from hellora.methods.local import Local, Shapes, prefixed

Trains = Literal["both", "A", "B", "alternate"]
HeadBegins = Literal["solved", "drawn"]
EndsWith = Literal["last", "better"]
HeadMean = Literal["by_client", "by_class"]  # whose examples weigh a row of the head: a client's, or its of that class
Answers = Sequence[tuple[ClientTask, ClientUpdate]]  # what was sent beside what came back, by client id


class Strategy(ABC):  # noqa: B024  each kind adds its own
    """Every strategy has a name, needs and promises."""

    @property
    def demands(self) -> Demands:
        """Return what it needs of a run, and what it promises."""
        return Demands()

    @property
    def name(self) -> str:
        """Return the name of its file."""
        return type(self).__module__.rpartition(".")[2]


class Start(Strategy):
    """A start solves a linear head from what clients sum of the features that it is given, before anybody trains, and
    again where the method says so.

    Each pass is a round of sums: `brief` goes down, `sums` come up, `gather` adds them.
    """

    passes: ClassVar[tuple[str, ...]] = ()  # in order; none = there is nothing to solve
    leaves_out: ClassVar[bool] = False  # what its head says of an example without it can be told: see `inverse`
    exact: ClassVar[bool] = True  # it sums integers on a grid, so that nothing depends on who has which example

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({CLASSES} if self.passes else ()))

    def declares(self, step: str, shape: HeadShape, examples: int, grid: Grid) -> Declared:
        """Return the named tensors of a pass, of a client with so many examples."""
        return Declared()

    def brief(self, step: str, found: Sums) -> Named:
        """Return what clients are told before a pass; `found` has what the passes before it brought."""
        return {}

    def sums(self, step: str, rows: HeadRows, brief: Named) -> Named:
        """Return what a client reports of its rows in a pass."""
        return {}

    def inverse(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        """Return (G + λ I)⁻¹ (columns, columns), of a head that is a ridge regression."""
        raise TypeError(f"{self.name} is no ridge regression")

    def gather(self, step: str, reports: Mapping[int, Named]) -> Named:
        """Return what a pass brought, of the reports by client."""
        return summed(reports)

    def solve(self, shape: HeadShape, grid: Grid, found: Sums) -> Tensor:
        """Return the head: (classes, columns) in float64.

        Raises:
            RunError: there is none, or the start has passes and does not say what is made of them.
        """
        raise RunError(f"the start {self.name} has no solve(), which makes the head of its sums: write it")


class Sampler(Strategy):
    """A sampler chooses who is asked to train in a round."""

    @abstractmethod
    def sample(self, context: RoundContext) -> tuple[tuple[ClientProfile, ...], StrategyState]:
        """Choose `context.asked` distinct clients of `context.able` (or all, if they are fewer), by id."""


class Allocator(Strategy):
    """An allocator decides who trains which rank components of which layer."""

    @abstractmethod
    def allocate(self, context: RoundContext) -> tuple[Allocation, StrategyState]:
        """Return the allocation of `context.cohort`: a row per client, within its budget."""

    def limits(self, context: RoundContext) -> Mapping[int, int]:
        """Return the rank that limits a client below its budget, by id; {} if budgets alone decide (HetLoRA prunes)."""
        return {}


class Dispatcher(Strategy):
    """A dispatcher decides what of the global adapter one client receives."""

    @property
    def demands(self) -> Demands:
        return Demands(promises=frozenset({OWN_COMPONENTS}))

    def begin(self, context: RoundContext) -> StrategyState:
        """Prepare a round, once, before the first task is made; the state that it returns is there in `dispatch`."""
        return context.state

    @abstractmethod
    def sends(self, trained: Mask, spec: AdapterSpec) -> Sent:
        """Return what a client receives whose allocated row is `trained` (layers, max_rank); `dispatch` holds to it."""

    @abstractmethod
    def dispatch(self, context: RoundContext, adapter: Adapter, trained: Mask) -> Adapter:
        """Return the adapter for that client. `adapter` is the global one, with what the client keeps of its own."""


class LocalTraining(Strategy):
    """One rule says how a client trains. Rules are applied in the order of `method.local_training`.

    The client calls `begin`, then in every step `outputs` (of each micro-batch), `penalty`, `gradients` (after the
    gradients are scaled, before they are clipped), and at last `end`. What `begin` and `gradients` return goes into the
    next call. The server calls `brief` before the round, `remember` after it.
    """

    def declares(self, shapes: Shapes) -> Declared:
        """Return the named tensors of a task. What is not declared is refused, on both sides."""
        return Declared()

    def brief(self, context: RoundContext, client: ClientProfile, shapes: Shapes) -> Named:
        """Return what the server tells a client before it trains `shapes.trained` (layers, max_rank), by the declared
        names.
        """
        return {}

    def begin(self, local: Local) -> Any:
        """Return what the rule wants to find in the first call of `gradients`."""
        return None

    @property
    def rank_shares(self) -> tuple[float, ...]:
        """Return at which shares of its rank the loss is taken besides: of the first components, in a pass each."""
        return ()

    def outputs(self, local: Local, outputs: Outputs) -> Outputs:
        """Return the outputs of a forward pass with other losses; each rule gets those of the rule before it."""
        return outputs

    def penalty(self, local: Local) -> Tensor | None:
        """Return what is added to the loss of a step besides, a scalar; None = nothing. Penalties add up."""
        return None

    def gradients(self, local: Local, carry: Any) -> Any:
        """Change the gradients of `local.parameters` in place, once in a step; return the `carry` of the next call."""
        return carry

    def end(self, local: Local, carry: Any) -> tuple[Named, Named]:
        """Return (report, kept): what the server is told, and what the client keeps for its next task."""
        return {}, {}

    def remember(self, context: RoundContext) -> StrategyState:
        """Return the rule's state after a round. `context.reports` are those of this round's counted clients, under the
        rule's own names, and `context.trained` has their rows.
        """
        return context.state


def rank_shares(rules: Sequence[LocalTraining]) -> tuple[float, ...]:
    """Return the shares of its rank at which a client that follows `rules` takes its loss; the whole comes first."""
    return (1.0, *dict.fromkeys(share for rule in rules for share in rule.rank_shares))


class Aggregator(Strategy):
    """An aggregator makes unequal updates into the next global adapter."""

    @property
    def demands(self) -> Demands:
        """Return those of a mean by rank component: one that nobody trained is bit-identical in the next round."""
        return AVERAGES_COMPONENTS

    def check(self, spec: AdapterSpec) -> None:
        """Raise InputError where this cannot serve adapters of such a shape."""

    @abstractmethod
    def aggregate(self, context: RoundContext, answers: Answers) -> tuple[Adapter, StrategyState]:
        """Return the aggregated adapter; `context.adapter` is the global one until now."""


class ServerOptimizer(Strategy):
    """A server optimizer takes the server's step on the aggregated delta."""

    @abstractmethod
    def step(
        self, context: RoundContext, aggregated: Adapter, trained: Mask, factors: frozenset[str]
    ) -> tuple[Adapter, StrategyState]:
        """Return the next global adapter, from `context.adapter` and what the clients were aggregated to.

        `trained` (layers, max_rank) has the components that any counted client trained, and `factors` (of "A", "B")
        what of them may move. The value and the state of everything else stay as they are. `context.updates` has what
        each of them trained, and `context.trained` their rows.
        """


@dataclass(frozen=True)
class Method:
    """A method combines strategies under a name, and says what happens to head and factors."""

    sampler: Sampler
    allocator: Allocator
    dispatcher: Dispatcher
    local_training: tuple[LocalTraining, ...]
    aggregator: Aggregator
    server_optimizer: ServerOptimizer
    head: HeadPolicy = "aggregate"
    trains: Trains = "both"
    shares: Factors = "both"  # the factors that are aggregated; the other stays with its client (FedSA-LoRA)
    start: Start = field(default_factory=Start)
    head_begins: HeadBegins = "solved"  # before round 0, where there is a start
    head_rounds: int = 0  # the head is solved again after every so many rounds, and after the last; 0 = after none
    head_mean: HeadMean = "by_client"
    logit_scale: float | Literal["auto"] = "auto"  # of a head that is solved; auto: that of the least loss
    projection: int = 0  # numbers that features are projected to before they are summed; 0 = they are not
    ends_with: EndsWith = "last"  # better: with the adapter, or with none, whichever head is right more often

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Return all strategies."""
        return (
            self.start, self.sampler, self.allocator, self.dispatcher, *self.local_training, self.aggregator,
            self.server_optimizer,
        )  # fmt: skip

    @property
    def trained_head(self) -> HeadPolicy:
        """Say what clients do with the head: one that is solved in closed form stays frozen while they train."""
        return "frozen" if self.head == "closed_form" else self.head

    @property
    def solves_first(self) -> bool:
        """Return True if the head is solved before round 0."""
        return bool(self.start.passes) and self.head_begins == "solved"

    def solves_after(self, round: int, rounds: int) -> bool:
        """Return True if the head is solved again after a round."""
        every = self.head_rounds
        if not self.start.passes or not (every or self.head == "closed_form"):
            return False
        return round + 1 == rounds or (bool(every) and (round + 1) % every == 0)

    @property
    def personal(self) -> bool:
        """Return True if clients keep something of their own, so that each has its own model."""
        return self.head == "local" or self.shares != "both"

    def factors(self, round: int) -> Factors:
        """Return the factors that clients train in a round. Alternating begins with B (RoLoRA)."""
        if self.trains == "alternate":
            return "A" if round % 2 else "B"
        return self.trains

    def moving(self, round: int) -> frozenset[str]:
        """Return which of the server's factors A and B a round may change: those that are trained in it and shared."""
        both = frozenset("AB")
        return both.intersection(*("AB" if which == "both" else which for which in (self.factors(round), self.shares)))

    def declares(self, shapes: Shapes) -> Declared:
        """Return the named tensors of all rules of local training."""
        return prefixed({rule.name: rule.declares(shapes) for rule in self.local_training})
