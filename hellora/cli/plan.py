"""`hellora plan` shows who would train what in a round of an experiment, or what one client's budget allows."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click.core import ParameterSource
from rich.table import Table

from hellora.cli.arguments import Allow, AsJson, Overrides, sources
from hellora.core.errors import InputError
from hellora.runs.terminal import Voice, quieten

if TYPE_CHECKING:
    from hellora.budgets.planner import Estimate
    from hellora.core.types import Ranks
    from hellora.experiments.budget_plan import BudgetPlan, Choice, Measured
    from hellora.experiments.experiment import Experiment
    from hellora.experiments.tables import Table as Settings
    from hellora.server.federation import Federation

app = typer.Typer(rich_markup_mode=None)
BARE, PLANNED = 26, 76  # columns that the table of a round takes besides the ranks, without and with a budget's

Planned = Annotated[
    str | None,
    typer.Argument(metavar="PRESET_OR_FILE", help="whose rounds to plan; or name a --model", autocompletion=sources),
]


@app.command()
def plan(
    context: typer.Context,
    source: Planned = None,
    overrides: Overrides = None,
    allow: Allow = None,
    round: Annotated[int, typer.Option(help="which round")] = 0,
    model: Annotated[str | None, typer.Option(help="hub id or folder: plan for one client with a budget")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="its memory, such as 6GiB")] = None,
    seconds: Annotated[float | None, typer.Option(help="its time per round; needs --speed")] = None,
    uplink: Annotated[str | None, typer.Option(metavar="SIZE", help="what it can send per round")] = None,
    speed: Annotated[float | None, typer.Option(help="operations per second of its device, such as 5e11")] = None,
    examples: Annotated[int | None, typer.Option(help="it trains on per round [default: one batch]")] = None,
    batch: Annotated[int, typer.Option(help="examples in a step")] = 16,
    tokens: Annotated[int | None, typer.Option(help="of an example [default: the task's limit]")] = None,
    rank: Annotated[int, typer.Option(help="of the adapter")] = 16,
    dtype: Annotated[str, typer.Option(help="of the base weights")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto: whose kernels to assume")] = "auto",
    measure: Annotated[bool, typer.Option("--measure", help="load the weights and run a few steps here")] = False,
    as_json: AsJson = False,
) -> None:
    """Show who would train what, or what a budget allows.

    For an experiment: who would train which layers in a round. With --model: what one client can train within its
    memory, time and uplink.
    """
    quieten()
    check_alternatives(context, source, model)
    if source is not None:
        plan_of_round(source, overrides or [], round, allow or (), Voice(as_json=as_json))
        return
    fleet = {"memory": memory, "seconds": seconds, "uplink": uplink, "speed": speed}
    table = {
        "model": {"name": model, "rank": rank, "dtype": dtype},
        "fleet": {name: [value] for name, value in fleet.items() if value is not None},
        "train": {"batch_size": batch},
        "compute": {"device": device},
    }
    count = batch if examples is None else examples
    plan_of_budget(table, overrides or [], count, tokens, measure, Voice(as_json=as_json))


def check_alternatives(context: typer.Context, source: str | None, model: str | None) -> None:
    """Raise InputError where the command line mixes a plan of an experiment with that of one client's budget."""
    if (source is None) == (model is None):
        raise InputError("plan: name a preset or experiment file, or a --model with its --memory, not both")
    if source is not None:
        if given := given_options(context, but=("source", "overrides", "round", "allow", "as_json")):
            raise InputError(f"plan: --{given[0]} is of a plan with --model: for {source} write --set SECTION.KEY=…")
    elif given := given_options(context, but=[name for name in context.params if name not in ("round", "allow")]):
        raise InputError(f"plan: --{given[0]} is of an experiment's plan: leave it out, or --model")


def given_options(context: typer.Context, but: Collection[str]) -> list[str]:
    """Return the parameters that are on the command line, less those in `but`."""
    return [
        name
        for name in context.params
        if name not in but and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


# ---------------------------------------------------------------------------------------------------- of an experiment


def plan_of_round(source: str, overrides: list[str], round: int, allow: Collection[str], say: Voice) -> None:
    """Print a round's allocation."""
    from hellora.experiments.config import read_experiment
    from hellora.experiments.overrides import parse_settings

    experiment = read_experiment(source, parse_settings(overrides), allow=allow)
    from hellora.experiments.planning import plan as plan_round  # after what may be wrong: this imports torch

    federation, allocation = plan_round(experiment, round)
    rows = [row_of_client(federation, *each) for each in zip(allocation.clients, allocation.ranks, strict=True)]
    notes = list(remarks(experiment, federation, round))
    if say.as_json:
        say.end("", {"round": round, "layers": federation.spec.num_layers, "clients": rows, "notes": notes})
        return
    planned = federation.planner is not None
    table = Table("client", "layers", "allocation", title=title(federation, round))
    for column in table.columns[:2]:
        column.justify, column.no_wrap = "right", True
    for name in ("budget", "policy", "peak") if planned else ():
        table.add_column(name, justify="right")
    room = say.console.width - (PLANNED if planned else BARE)
    for row in rows:
        table.add_row(*in_cells(row, planned, room))
    say.console.print(table)
    for line in notes:
        say(line)


def title(federation: "Federation", round: int) -> str:
    return f"round {round}: trained rank per client and layer ({federation.spec.num_layers} layers, 0 to the left)"


def row_of_client(federation: "Federation", client: int, ranks: "Ranks") -> dict[str, Any]:
    """Return what a client trains in a round and, where that is planned, what it is predicted to take."""
    from hellora.budgets.planner import in_words

    profile = federation.fleet[client]
    row = {"client": int(client), "capacity": profile.budget.capacity(len(ranks)), "ranks": ranks.tolist()}
    if federation.planner is not None:
        found = federation.planner.estimate(profile, ranks) if ranks.any() else None
        row |= {"budget": in_words(profile.budget), **({} if found is None else of_estimate(found))}
    return row


def of_estimate(estimate: "Estimate") -> dict[str, Any]:
    """Return a prediction as JSON has it."""
    cost = estimate.cost
    known = {"policy": estimate.policy.in_words, "peak_bytes": cost.peak_bytes, "uplink_bytes": cost.uplink_bytes}
    return known | {"seconds": estimate.seconds}


def in_cells(row: Mapping[str, Any], planned: bool, room: int) -> list[str]:
    """Write a client's row of the table, with runs of equal ranks where there is no room for all."""
    from hellora.core.units import in_bytes

    layers = sum(rank > 0 for rank in row["ranks"])
    ranks = ranks_in_words(row["ranks"])
    ranks = ranks if len(ranks) <= room else shortened(row["ranks"])
    cells = [str(row["client"]), f"{layers} of {row['capacity']}", ranks]
    if planned and "policy" in row:
        cells += [row["budget"], row["policy"], in_bytes(row["peak_bytes"])]
    elif planned:
        cells += [row["budget"], "–", "–"]
    return cells


def remarks(experiment: "Experiment", federation: "Federation", round: int) -> Iterator[str]:
    """Yield what else there is to know of a planned round."""
    from hellora.methods.demands import LAYER_SCORES_REPORTED, PROXY_DATA, RANKS_PRUNED, RANKS_REPORTED

    demands, rules = federation.method.allocator.demands, federation.method.local_training
    if experiment.found:
        yield f"task: {experiment.found}"
    if federation.planner is not None:
        yield "Each client is taken to have one batch of examples as long as the task allows; a run counts its own."
    if federation.method.start.passes:
        yield head_in_words(experiment, federation)
    if demands.needs & {PROXY_DATA, LAYER_SCORES_REPORTED}:
        yield "Layer scores need weights and data. Here all layers score alike, so this is the pattern without scores."
    if RANKS_PRUNED in demands.promises and any(RANKS_REPORTED in r.demands.promises for r in rules) and round:
        yield "To what rank clients prune themselves, only training shows. Here all train up to their budget."


def head_in_words(experiment: "Experiment", federation: "Federation") -> str:
    """Say when the head is solved, and what a client sends and holds for it."""
    from hellora.core.units import in_bytes
    from hellora.experiments.planning import plan_head

    method, head = experiment.method, plan_head(experiment, federation)
    when = ["before round 0"] if method.solves_first else []
    when += [f"after every {method.head_rounds} rounds"] if method.head_rounds else []
    when += ["at the end"] if method.solves_after(federation.rounds - 1, federation.rounds) else []
    peak = f"; peak {in_bytes(head.peak_bytes)}" if head.peak_bytes is not None else ""
    sent = f"{in_bytes(head.uplink_bytes)}, and {in_bytes(head.uplink_bytes_per_class)} for each class{peak}"
    return (
        f"The head is solved ({method.start.name}) {', '.join(when)}: every client makes forward passes "
        f"({', '.join(head.passes)}) and sends {sent}."
    )


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Write the ranks of all layers, the shallowest to the left; a dot is a frozen layer."""
    return " ".join(f"{rank:>2}" if rank else " ·" for rank in ranks)


# -------------------------------------------------------------------------------------------------------- of a budget


def plan_of_budget(
    table: "Settings", overrides: list[str], examples: int, tokens: int | None, measure: bool, say: Voice
) -> None:
    """Print what one client can train within its budget."""
    from hellora.budgets.planner import in_words
    from hellora.experiments.budget_plan import measure as measure_plan
    from hellora.experiments.budget_plan import plan_budget
    from hellora.experiments.overrides import parse_settings
    from hellora.experiments.sections import override

    found = plan_budget(override(table, parse_settings(overrides)), examples, tokens, here=measure)
    measured = measure_plan(found) if measure else None
    name, budget = found.experiment.model.name, in_words(found.client.budget)
    if say.as_json:
        choices = {choice.name: of_choice(choice, measured) for choice in found.choices}
        say.end("", {"model": name, "budget": budget, "choices": choices, "notes": found.assumptions})
        return
    deepest = found.planner.model.spec.num_layers - 1
    headings = ["", "layers", "ranks", "policy", "peak", "up", "time"]
    headings += [] if measured is None else ["measured peak", "error", "operations/s"]
    shown = Table(*headings, title=f"{name}, {budget}: ranks of layers 0 … {deepest}")
    for column in (shown.columns[0], *shown.columns[4:7]):
        column.no_wrap = True
    for choice in found.choices:
        row = row_of_choice(found, choice)
        if measured is not None and choice.estimate is not None:
            row += measured_in_words(measured[choice.name], choice.estimate)
        shown.add_row(*row, *[""] * (len(headings) - len(row)))
    say.console.print(shown)
    for line in found.assumptions:
        say(line)


def of_choice(choice: "Choice", measured: "Mapping[str, Measured] | None") -> dict[str, Any]:
    """Return what an allocator gives the client, as JSON has it; nothing is predicted where nothing of it fits."""
    found = {"ranks": choice.ranks.tolist(), **({} if choice.estimate is None else of_estimate(choice.estimate))}
    return found | ({"measured": asdict(measured[choice.name])} if measured and choice.name in measured else {})


def row_of_choice(plan: "BudgetPlan", choice: "Choice") -> list[str]:
    """Write what an allocator gives the client, and what that is predicted to take."""
    from hellora.core.units import in_bytes

    if choice.estimate is None:
        return [choice.name, "0", "nothing of this pattern fits"]
    policy, cost, took = choice.estimate.policy, choice.estimate.cost, choice.estimate.seconds
    time = f"{plan.relative_time(choice.ranks, policy):.2f} ×" if took is None else f"{took:.3g} s"
    row = [choice.name, str((choice.ranks > 0).sum()), shortened(choice.ranks.tolist()), policy.in_words]
    return [*row, in_bytes(cost.peak_bytes), in_bytes(cost.uplink_bytes), time]


def measured_in_words(measured: "Measured", estimate: "Estimate") -> list[str]:
    """Write the measured peak, by how much the predicted one is off, and the speed."""
    from hellora.core.units import in_bytes

    peak = measured.peak_bytes
    found = ["–", "–"] if peak is None else [in_bytes(peak), f"{estimate.cost.peak_bytes / peak - 1:+.1%}"]
    return [*found, f"{measured.speed:.3g}"]


def shortened(ranks: Sequence[int]) -> str:
    """Shorten runs of equal ranks: "·×24 16×8"."""
    runs = [(rank, len(list(same))) for rank, same in groupby(ranks)]
    return " ".join(f"{rank or '·'}" + (f"×{count}" if count > 1 else "") for rank, count in runs)
