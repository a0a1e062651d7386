"""A client's own limits: every task is held against them here, before anything trains, whatever the server says.

They are the budget that the client told when it joined (memory, layers, rank, seconds, uplink), and bounds on what a
server may choose for it: the examples and steps of a round, the columns that are read, the models that are loaded.
"""

import math
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hellora.budgets.planner import Estimate
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask
from hellora.core.types import Budget, Ranks
from hellora.core.units import in_bytes
from hellora.data.forms import USUAL
from hellora.data.settings import LANGUAGE, ONE_CLASS, TEXTS, Columns, DataSettings
from hellora.data.sides import Classes
from hellora.data.tags import TAGS, TOKENS
from hellora.deployment.joining import LONGEST_CLASS, MOST_CLASSES
from hellora.methods.strategies import Method
from hellora.record.atomic import write_atomically

MAX_STEPS = 10_000  # optimizer updates of a round
MAX_BATCH = 1024  # examples of a step

TOLD = ("data.label", "data.tags")  # settings of columns whose values a server is told

Estimating = Callable[[ClientTask], Estimate]  # what a task costs here, as far as it is predicted


@dataclass(frozen=True)
class OwnLimits:
    """Holds what one client's round may cost: its budget, optimizer updates, and examples of a step."""

    budget: Budget
    max_steps: int = MAX_STEPS
    max_batch: int = MAX_BATCH

    def excess(self, task: ClientTask, examples: int, estimate: Estimating) -> str | None:
        """Say in what a task goes beyond these limits, or return None.

        Args:
            task: as it came
            examples: that the client has
            estimate: is called only where a limit is in bytes or seconds, which has to be predicted
        """
        ranks: Ranks = task.trained.sum(axis=1)
        return (
            self.excess_of_row(ranks, task.trained.shape[1])
            or self.excess_of_steps(task, examples)
            or (self.excess_of_cost(estimate(task)) if self.is_predicted else None)
        )

    def excess_of_row(self, ranks: Ranks, max_rank: int) -> str | None:
        """Hold the ranks that are to be trained, (layers,), against layers and rank."""
        layers, most = int((ranks > 0).sum()), self.budget.capacity(len(ranks))
        if layers > most:
            return f"the task trains {layers} layers, and --layers is {most}"
        allowed = self.budget.ranks(len(ranks), max_rank)
        if (ranks > allowed).any():
            place = int(np.argmax(ranks - allowed))
            return f"the task trains rank {ranks[place]}, and --rank is {allowed[place]}"
        return None

    def excess_of_steps(self, task: ClientTask, examples: int) -> str | None:
        """Hold batch size, and steps or epochs, against what a round may be; a sum takes none."""
        if task.sums:
            return None
        train = task.train
        steps = train.steps if train.steps is not None else train.epochs * math.ceil(examples / train.batch_size)
        if train.batch_size > self.max_batch:
            return f"the task has batches of {train.batch_size} examples, and --max-batch is {self.max_batch}"
        if steps > self.max_steps:
            return f"the task has {steps} steps, and --max-steps is {self.max_steps}"
        return None

    def has_time(self, task: ClientTask, examples: int, more: int, estimate: Estimating) -> bool:
        """Tell whether a client that trains on `examples` may look at `more` of them besides, with --seconds for both.

        A forward pass over one takes less than a step on it, by which it is counted.
        """
        if self.budget.seconds is None or (seconds := estimate(task).seconds) is None:
            return True
        train = task.train
        passed = train.epochs * examples if train.steps is None else train.steps * min(train.batch_size, examples)
        return seconds * (1 + more / passed) <= self.budget.seconds

    @property
    def is_predicted(self) -> bool:
        """Tell whether there is a limit in bytes or seconds."""
        limits = (self.budget.memory_bytes, self.budget.seconds, self.budget.uplink_bytes)
        return any(limit is not None for limit in limits)

    def excess_of_cost(self, estimate: Estimate) -> str | None:
        """Hold predicted memory, seconds and uplink against the budget. The server's reserve of memory is not asked
        for: it is what a prediction made for another device may be off by.
        """
        cost, budget = estimate.cost, self.budget
        if budget.memory_bytes is not None and cost.peak_bytes > budget.memory_bytes:
            return f"the task takes {in_bytes(cost.peak_bytes)}, and --memory is {in_bytes(budget.memory_bytes)}"
        if budget.uplink_bytes is not None and cost.uplink_bytes > budget.uplink_bytes:
            return f"the task sends {in_bytes(cost.uplink_bytes)}, and --uplink is {in_bytes(budget.uplink_bytes)}"
        if budget.seconds is not None and estimate.seconds is not None and estimate.seconds > budget.seconds:
            return f"the task takes {estimate.seconds:.0f} s, and --seconds is {budget.seconds:g}"
        return None


def contradiction(task: ClientTask, method: Method) -> str | None:
    """Say in what a task would not keep here what its run's settings say stays with a client, or return None. A sum
    sends no part of the model.
    """
    if task.sums or (
        task.private == method.personal and (task.head, task.shares) == (method.trained_head, method.shares)
    ):
        return None
    return "the task shares other parts of the model than method.head and method.shares of its run say"


# ----------------------------------------------------------------------------------------------- what a server may name


def columns_read(settings: DataSettings, columns: Columns) -> dict[str, str]:
    """Return the columns that these settings read of a client's data, each with the setting that names it."""
    if columns in TEXTS:
        named = {settings.text: "text", settings.text_pair: "text_pair"}
    elif columns == "image":
        named = {settings.image: "image"}
    elif columns == "preference":
        named = {settings.chosen: "chosen", settings.rejected: "rejected"}
        named |= dict.fromkeys([*in_template(settings.prompt)] or ["prompt"], "prompt")
    elif columns == "tokens":
        tokens, tags = (settings.tokens,) * bool(settings.tokens), (settings.tags,) * bool(settings.tags)
        named = dict.fromkeys(tokens or (*TOKENS, settings.text), "tokens") | dict.fromkeys(tags or TAGS, "tags")
    elif settings.found_by_name:
        named = dict.fromkeys((*USUAL, settings.text), "prompt")
    else:
        templates = {which: getattr(settings, which) for which in ("prompt", "response") if not settings.messages}
        named = {name: which for which, template in templates.items() for name in in_template(template)}
        named |= {settings.messages: "messages"}
    if columns in LANGUAGE:
        named |= dict.fromkeys(in_template(settings.system), "system")
    if settings.labels and columns in TEXTS and columns not in ONE_CLASS:
        named |= dict.fromkeys(settings.labels, "labels")
    elif columns != "tokens":
        named[settings.label] = "label"  # also where it has another place: its values are told
    return {name: f"data.{setting}" for name, setting in named.items() if name}


def in_template(template: str) -> Iterable[str]:
    """Yield the columns that a template names; none where it is no template, which its reader says."""
    try:
        yield from (column for _, column, _, _ in string.Formatter().parse(template) if column)
    except ValueError:
        return


def check_columns(settings: DataSettings, columns: Columns, own: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise InputError where the run names a column that this client has not named.

    Args:
        settings: of the run, with the client's own put in
        columns: what the run's task reads
        own: the client's own settings of [data]; to set one is to name its columns
        allowed: the columns of --columns; where there are none, those that [data] has by default, in their places
    """
    named, usual = frozenset(allowed), columns_read(DataSettings(), columns)
    for name, setting in columns_read(settings, columns).items():
        by_name = columns == "tokens" and not getattr(settings, setting.removeprefix("data."))
        by_name |= columns == "instruction" and settings.found_by_name and setting == "data.prompt"
        if by_name and named:
            continue  # of those that have a known name, only what it named is looked at: see data/sides.own_split
        is_usual = name in usual and (usual[name] in TOLD) == (setting in TOLD)
        if (name in named if named else is_usual) or setting.removeprefix("data.") in own:
            continue
        raise InputError(
            f"{setting}: the run reads the column {name!r}, which this client has not named: start it with --columns "
            f"{','.join([*(sorted(named) or usual), name])}, or with --set {setting}=… to say which it is"
        )


def check_labels(settings: DataSettings, columns: Columns, own: Mapping[str, Any], classes: Classes) -> None:
    """Raise InputError where what the run calls labels may well be texts, which nobody is to see.

    Args:
        settings: of the run, with the client's own put in
        columns: what the run's task reads
        own: the client's own settings of [data]
        classes: what the run reads as the client's labels
    """
    which = "tags" if columns == "tokens" else "label"
    odd = len(classes.values) > MOST_CLASSES or any(len(label) > LONGEST_CLASS for label in classes.values)
    if odd and which not in own:
        raise InputError(
            f"data.{which} = {getattr(settings, which)!r} of the run names a column here with more than {MOST_CLASSES} "
            f"values, or with longer ones than {LONGEST_CLASS} characters, which may be no labels: they are not told, "
            f"unless this client sets data.{which} itself"
        )


def check_model(name: str, allowed: Iterable[str], told: Path) -> None:
    """Raise InputError unless a server may name this model here: one of `allowed` or, where there are none, the one
    that the client was told first, which the file `told` keeps.
    """
    known = list(allowed)
    if not known:
        if not told.exists():
            told.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(told, name.encode())
        known = [told.read_text()]
    if name not in known:
        raise InputError(
            f"model.name: the run trains {name!r}, and this client takes {', '.join(map(repr, known))} only: start it "
            f"with --accept-model {name}, for each that it may load, or with --model and the folder of its own"
        )
