"""The first screen of a run's page says what was learned, by whom, and at what cost; the sections below show how."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from hellora.core.metrics import in_words
from hellora.core.units import in_bytes
from hellora.reporting.parts import Told
from hellora.reporting.record import RunRecord

MOST_BUDGETS = 4  # kinds of budget that are named


def story(run: RunRecord) -> list[Told]:
    """Tell a run that has finished a round, in three parts."""
    return [learned(run), taught(run), cost(run)]


def learned(run: RunRecord) -> Told:
    """Say how good the model is, after which round, and on what that was measured."""
    title, last = "What was learned", run.last_evaluated
    if last is None:
        return Told(title, "Not measured yet", ["No round that has ended was evaluated."])
    metric = run.metric
    words = in_words(metric)
    before = f"{run.initial[metric]:.3f} → " if metric in run.initial else ""
    headline = f"{words[0].upper()}{words[1:]} {before}{last['metrics'][metric]:.3f}"
    return Told(title, headline, [when(run), *on_what(run), *best_and_worst(run)])


def when(run: RunRecord) -> str:
    """Say after which round the metrics were measured."""
    assert run.last_evaluated is not None
    measured, ended = run.last_evaluated["round"], run.lines[-1]["round"]
    if measured == ended:
        return f"After round {measured}, the last" + (" so far." if run.summary is None else ".")
    return f"After round {measured}, the last that was evaluated; round {ended} has ended, too."


def on_what(run: RunRecord) -> list[str]:
    """Say on which examples the metrics were measured; [] where that is not on record."""
    assert run.last_evaluated is not None
    if sample := run.last_evaluated.get("sample"):
        interval = sample.get("intervals", {}).get(run.metric)
        within = "" if interval is None else f"; 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
        return [f"On {sample['examples']} of {sample['of']} test examples{within}."]
    data: Mapping[str, Any] = {} if run.summary is None else run.summary["data"]
    if "evaluated_on" not in data:
        return []
    count = f", {data['test']} examples" if "test" in data and "split" in data["evaluated_on"] else ""
    return [f"On {data['evaluated_on']}{count}."]


def best_and_worst(run: RunRecord) -> list[str]:
    """Name the classes that are recognised best and worst, of those that occur; [] of fewer than two."""
    there = {name: scores for name, scores in (run.per_class or {}).items() if scores["examples"]}
    if len(there) < 2:
        return []
    best, worst = (extreme(there, key=lambda name: there[name]["f1"]) for extreme in (max, min))
    if best == worst:
        return [f"All classes are recognised alike, F1 {there[best]['f1']:.3f}."]
    return [f"Best recognised: {best}, F1 {there[best]['f1']:.3f}. Worst: {worst}, F1 {there[worst]['f1']:.3f}."]


def taught(run: RunRecord) -> Told:
    """Say how many clients there are, what they can train, who failed, and whom the result serves worst."""
    lines = [*budgets(run)]
    asked = sum(len(line["cohort"]) for line in run.lines)
    failed = sum(len(line.get("missing", {})) + len(line.get("rejected", {})) for line in run.lines)
    if failed:
        lines.append(f"{failed} of {asked} answers were missing or could not be used.")
    served = {} if run.summary is None else run.summary["clients"]
    if served:
        worst = min(served, key=lambda client: (served[client], int(client)))
        name = run.names.get(int(worst), f"client {worst}")
        lines.append(f"Served worst: {name}, accuracy {served[worst]:.3f}.")
    return Told("By whom", f"{len(run.names)} clients, {run.table['cohort']} in a round", lines)


def budgets(run: RunRecord) -> list[str]:
    """Say how many clients have which budget, of many the most frequent ones, the smallest first; [] where nobody has
    one."""
    layers = max((len(row) for line in run.lines for row in line["ranks"].values()), default=0)
    words = {client.id: in_plain_words(client.budget, layers) for client in run.clients}
    found = Counter(budget for budget in words.values() if budget)
    if not found:
        return []
    shown = dict(found.most_common(MOST_BUDGETS))
    smallest = sorted(run.clients, key=lambda client: size_of(client.budget))
    named = [f"{shown[each]} with {each}" for each in dict.fromkeys(words[c.id] for c in smallest) if each in shown]
    others, free = found.total() - sum(shown.values()), len(run.clients) - found.total()
    more = [f"{others} with others"] * (others > 0) + [f"{free} without a limit"] * (free > 0)
    return [f"Budgets: {'; '.join([*named, *more])}."]


def size_of(budget: Mapping[str, Any]) -> tuple[float, ...]:
    """Return what sorts budgets: by layers, then by memory; what is not limited comes last."""
    return tuple(budget.get(name) or math.inf for name in ("layers", "memory_bytes"))


def in_plain_words(budget: Mapping[str, Any], layers: int) -> str:
    """Write a budget for a person; "" where there is none."""
    parts: dict[str, Callable[[Any], str]] = {
        "layers": lambda n: f"{n} of {layers} layers",
        "rank": lambda rank: f"rank {'/'.join(map(str, rank)) if isinstance(rank, list) else rank}",
        "memory_bytes": lambda n: f"{in_bytes(n)} of memory",
        "seconds": lambda n: f"{n:g} s a round",
        "uplink_bytes": lambda n: f"{in_bytes(n)} up a round",
    }
    return ", ".join(write(budget[name]) for name, write in parts.items() if budget.get(name) is not None)


def cost(run: RunRecord) -> Told:
    """Say what travelled, how long it took, and how much memory training took at most."""
    up, down = (in_bytes(int(run.total(name)[-1])) for name in ("uplink_bytes", "downlink_bytes"))
    lines = [f"{duration(run.total('seconds')[-1])}{'' if run.real else ' on the machine that simulated it'}."]
    if run.timed:
        lines.append(f"{duration(run.lines[-1]['simulated_clock'])} on the clients' devices, as simulated.")
    if peaks := run.of_clients("peak_bytes") or run.of_clients("predicted_peak_bytes"):
        how = "measured" if run.of_clients("peak_bytes") else "predicted"
        most = max(max(values) for values in peaks.values())
        lines.append(f"At most {in_bytes(int(most))} of memory at a client, {how}.")
    return Told("At what cost", f"{up} up, {down} down", lines)


def duration(seconds: float) -> str:
    """Write a time for a person."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
