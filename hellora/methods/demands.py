"""State what a strategy needs of a run and what it promises, in one value; one check covers all combinations.

A `Fact` is something that is true of a run or not. Every strategy, and the settings beside them, say which facts they
promise and which they need; a need that nobody promises is refused, in a sentence made from the fact. The tests in
tests/laws hold promises to the code.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hellora.core.errors import InputError


@dataclass(frozen=True)
class Fact:
    """A fact is true of a run or not, and reads in words: "<who> needs <text>: <mend>"."""

    text: str
    mend: str


@dataclass(frozen=True)
class Demands:
    """Demands say what a strategy needs and promises; rules of local training in `brings` come with it, by name.

    What it `takes`, nobody else of the run may take.
    """

    needs: frozenset[Fact] = field(default_factory=frozenset)
    promises: frozenset[Fact] = field(default_factory=frozenset)
    brings: tuple[str, ...] = ()
    takes: frozenset[Fact] = field(default_factory=frozenset)

    def also(self, *, needs: Iterable[Fact] = (), promises: Iterable[Fact] = ()) -> "Demands":
        """Return the same with more."""
        return replace(self, needs=self.needs.union(needs), promises=self.promises.union(promises))

    def less(self, *facts: Fact) -> "Demands":
        """Return the same without these needs and promises."""
        return replace(self, needs=self.needs.difference(facts), promises=self.promises.difference(facts))


def check_demands(parties: Iterable[tuple[str, Demands]]) -> None:
    """Raise InputError for the first need that nobody promises, or what two take. Each of `parties` says who it is,
    such as "method.allocator = 'fisher'", and what it needs and promises.
    """
    known = list(parties)
    promised = frozenset[Fact]().union(*(demands.promises for _, demands in known))
    for who, demands in known:
        for fact in sorted(demands.needs - promised, key=lambda fact: fact.text):
            raise InputError(f"{who} needs {fact.text}: {fact.mend}")
    taken: dict[Fact, str] = {}
    for who, demands in known:
        for fact in sorted(demands.takes, key=lambda fact: fact.text):
            if fact in taken:
                raise InputError(f"{taken[fact]} and {who} both {fact.text}: {fact.mend}")
            taken[fact] = who


# ------------------------------------------------------------------------------------------------------ of dispatchers

OWN_COMPONENTS = Fact(
    "clients that receive the global adapter's own rank components",
    "choose another dispatcher, such as whole, or an aggregator of products, such as product_update",
)
ONLY_TRAINED = Fact(
    "clients that receive only what they train, for it pads what a client lacks",
    "set method.dispatcher = 'truncate'",
)
PROTOTYPES_SENT = Fact(
    "clients that receive the prototype of their rank",
    "set method.dispatcher = 'prototype', or choose another aggregator",
)

# ------------------------------------------------------------------------------------------------------ of aggregators

LASTING_COMPONENTS = Fact(
    "rank components that stay themselves from round to round, which the aggregator makes anew",
    "remove it and its settings, or choose an aggregator that averages components, such as participant_mean",
)
BOUNDED_ADAPTER = Fact(
    "an adapter that does not grow, and the aggregator's residual grows with every round",
    "remove it, or choose an aggregator without a residual",
)
PROTOTYPES_KEPT = Fact(
    "a global adapter for every rank",
    "set method.aggregator = 'mutual_distillation', or choose another dispatcher",
)
LONE_ADAPTER = Fact(
    "one global adapter, and the aggregator keeps one for every rank and trains them on the server",
    "remove it and its settings, or choose another aggregator",
)
AGGREGATES_HEAD = Fact(  # otherwise than as a mean that one client may move
    "aggregate the head in a way of their own", "set method.head_mean = 'by_client', or choose another aggregator"
)
MEAN_OF_EQUALS = Fact("an aggregator that gives clients of equal rank and weight their plain mean", "choose another")
RETURNS_THE_ONLY_ONE = Fact("an aggregator that gives one full client its own adapter back", "choose another")

# --------------------------------------------------------------------------------------------------- of local training

LAYER_SCORES_REPORTED = Fact("clients that report layer scores", "add 'layer_scores' to method.local_training")
RANKS_REPORTED = Fact("clients that report a rank", "add 'hetlora' to method.local_training")
LOSS_REPORTED = Fact("clients that report their loss", "add 'local_loss' to method.local_training")
REPLACES_LOSS = Fact("put another loss in the place of the task's", "keep one of them")  # only one can
DRIFT_KEPT = Fact(
    "clients that remember their drift", "add 'fed_dyn' to method.local_training, with method.alpha above 0"
)
RANKS_PRUNED = Fact(
    "an allocator that gives clients the rank that they reported", "set method.allocator = 'self_pruning'"
)

# ------------------------------------------------------------------------------------------------ of server optimizers

DRIFT_TAKEN_BACK = Fact("a server that takes the drift of clients back", "set server.optimizer = 'fed_dyn'")

# ---------------------------------------------------------------------------------------------- of settings and the
# data

SHARED_MODEL = Fact(
    "one model for all clients, but with method.head = 'local' or method.shares they train models of their own",
    "remove these, or choose something else in its place",
)
SCORED_MODEL = Fact(
    "a model of the server's to score layers on, but with method.head = 'local' or method.shares clients train models "
    "of their own",
    "remove these, or set method.scores = 'clients' where the allocator has it",
)
ALL_SHARED = Fact("both factors shared", "remove method.shares")
TRAINS_B = Fact(
    "clients that train B, for A has no gradient as long as B is 0", "set method.trains = 'both', 'B' or 'alternate'"
)
TRAINS_BOTH = Fact("both factors trained in every round", "remove method.trains")
TRAINS_B_EVERY_ROUND = Fact("B trained in every round", "set method.trains = 'both' or 'B'")
TRAINS_ONLY_B = Fact("clients that train B alone", "set method.trains = 'B'")
PROXY_DATA = Fact(
    "proxy data to score layers on",
    "raise data.proxy_examples, or set method.scores = 'clients' where the allocator has it",
)
PUBLIC_DATA = Fact("public data to distil on", "set data.public to a source or a split of the data")
PLAIN_SGD = Fact(
    "SGD without momentum, for it computes gradients from what a client trained",
    "set train.optimizer = 'sgd' and train.momentum = 0",
)
CLASSES = Fact("examples with a class each", "choose a task of classification")
TARGETS = Fact(
    "examples with a class, labels or numbers each, which a head on pooled features says",
    "choose a task of classification or regression",
)
PROBABILITIES = Fact("a model that says probabilities, which teach more than its answer", "choose another aggregator")
HEAD_TRAINED = Fact(
    "a head that clients train, and with method.head they do not", "set method.head = 'aggregate' or 'local'"
)
HEAD_ALONE = Fact("clients that train the head and no layer", "set method.allocator = 'head_alone'")
HEAD = Fact("a model with a head of its own, which a language model has not", "remove it")
REPEATED_BATCHES = Fact("batches that come again in the next epoch", "set train.same_batches = true")
PLANNER = Fact("a planner", "give the clients budgets")  # every run has one that a strategy needs

# ------------------------------------------------------------------------------------ what most aggregators have in
# common

AVERAGES_COMPONENTS = Demands(
    needs=frozenset({OWN_COMPONENTS, TRAINS_B}),
    promises=frozenset({LASTING_COMPONENTS, BOUNDED_ADAPTER, LONE_ADAPTER}),
)
FACTORISES_ANEW = Demands(needs=frozenset({TRAINS_B}), promises=frozenset({BOUNDED_ADAPTER, LONE_ADAPTER}))
