"""These sections of one run show whom the result serves how well, what examples clients have, and who of them was
missing. What a run did not record is left out, with a line that says why.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from hellora.comparing.statistics import name_of
from hellora.comparing.table import group_headings
from hellora.reporting.charts import Bars, Curve, bar_chart, heat_map, line_chart
from hellora.reporting.parts import Section, Table, View, missing
from hellora.reporting.record import Line, RunRecord

MOST_REASONS = 200  # rows of a table of reasons


def served(run: RunRecord) -> Section:
    """Show the accuracy of what each capacity group receives, and of each client with the worst."""
    id, title = "served", "Whom the result serves how well"
    if run.summary is None:
        return missing(id, title, "Capacity groups and clients are measured when the run has ended.")
    metric = run.metric
    groups = [group for group in run.summary.get("groups", ()) if metric in group["metrics"]]
    accuracy = run.summary.get("clients", {})
    views, lead = [], "Each capacity group with the model that it receives."
    if groups:
        labels = budget_names(groups)
        values = [group["metrics"][metric] for group in groups]
        rows = [
            [label, str(group["clients"]), f"{value:.4f}"]
            for label, group, value in zip(labels, groups, values, strict=True)
        ]
        chart = bar_chart([Bars(metric, labels, values)], "budget", metric)
        views.append(View("capacity groups", chart, Table(["budget", "clients", metric], rows)))
    if accuracy:
        order = sorted(accuracy, key=lambda client: (accuracy[client], int(client)))
        names = [run.names.get(int(client), f"client {client}") for client in order]
        worst = run.summary["worst_client"]
        lead += " Each client's accuracy is by its own mix of classes."
        bars = [
            Bars("accuracy", names, [accuracy[client] for client in order]),
            Bars("worst client", names[:1], [worst], as_marks=True),
        ]
        rows = [[name, f"{accuracy[c]:.4f}", largest_class(run, int(c))] for name, c in zip(names, order, strict=True)]
        chart = bar_chart(bars, "client, the worst first", "accuracy")
        views.append(View("each client", chart, Table(["client", "accuracy", "its most frequent class"], rows)))
    return Section(id, title, lead, views) if views else missing(id, title, "This run did not measure its groups.")


def largest_class(run: RunRecord, client: int) -> str:
    """Say which class most of a client's examples have, and how many of them; a dash where that is not known."""
    counts = next((found.labels for found in run.clients if found.id == client), None)
    if not counts:
        return "–"
    name = max(counts, key=lambda label: counts[label])
    return f"{name}, {counts[name] / sum(counts.values()):.0%}"


def budget_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name capacity groups by what tells their budgets apart."""
    columns = [f"group {name_of(group)}" for group in groups]
    short = group_headings(columns)
    return [short.get(column, column.removeprefix("group ")) for column in columns]


def labels(run: RunRecord) -> Section:
    """Show how many examples of each class every client has."""
    id, title = "labels", "Classes of each client's examples"
    known = [client for client in run.clients if client.labels]
    if not known:
        why = "Not known: labels stay with the clients of a deployment, and a language model or an older run has none."
        return missing(id, title, why)
    classes = list(dict.fromkeys(name for client in known for name in client.labels))
    classes.sort(key=lambda name: -sum(client.labels.get(name, 0) for client in known))
    counts = np.array([[client.labels.get(name, 0) for name in classes] for client in known], dtype=float)
    names = [client.name for client in known]
    shares = counts / counts.sum(axis=1, keepdims=True)
    rows = [[name, str(int(row.sum())), *(str(int(n)) for n in row)] for name, row in zip(names, counts, strict=True)]
    table = Table(["client", "all", *classes], rows)
    views = [
        View(label, heat_map(values, classes, names, "class", "client", label), table)
        for label, values in (("examples", counts), ("share of the client's", shares))
    ]
    return Section(id, title, "Training examples, the most frequent class to the left.", views, wide=True)


def drift(run: RunRecord) -> Section:
    """Show how far clients moved in each round, and how much in one direction."""
    id, title = "drift", "How clients drift apart"
    views = []
    for name, what in (("delta_cosine", "cosine with the mean"), ("delta_norm", "norm of the delta")):
        found = [(line["round"], [m[name] for m in line["clients"].values() if name in m]) for line in run.lines]
        found = [(round, sorted(values)) for round, values in found if values]
        if not found:
            continue
        rounds = [float(round) for round, _ in found]
        of = {
            "least": [values[0] for _, values in found],
            "median": [median(values) for _, values in found],
            "most": [values[-1] for _, values in found],
        }
        curves = [Curve(label, rounds, values) for label, values in of.items()]
        rows = [[str(round), *(f"{each[i]:.4g}" for each in of.values())] for i, (round, _) in enumerate(found)]
        views.append(View(what, line_chart(curves, "round", what), Table(["round", *of], rows)))
    if not views:
        return missing(id, title, "Drift was not measured: diagnostics were switched off, or the run is an older one.")
    lead = (
        "Of each client's delta, trained minus received: its cosine with the mean delta of what it trained, near 1 "
        "where clients agree, and its norm."
    )
    return Section(id, title, lead, views)


def failures(run: RunRecord) -> Section:
    """Show who was missing or rejected, whose answers were dropped, and why; in all attempts of a round."""
    id, title = "failures", "Missing and rejected clients"
    found = [(line["round"], *event) for line in run.lines for event in events(line)]
    if not found:
        why = "In the rounds that ended, no client was missing or rejected, and no answer was dropped."
        return missing(id, title, why)
    kinds = [kind for kind in ("missing", "rejected", "dropped") if any(kind == event[2] for event in found)]
    in_round = Counter((round, kind) for round, _, kind, _ in found)
    of_client = Counter((client, kind) for _, client, kind, _ in found)
    rounds = [line["round"] for line in run.lines]
    curves = [Curve(kind, rounds, [in_round[round, kind] for round in rounds]) for kind in kinds]
    clients = sorted({client for _, client, _, _ in found})
    labels = [run.names.get(client, f"client {client}") for client in clients]
    bars = [Bars(kind, labels, [of_client[client, kind] for client in clients]) for kind in kinds]
    table = reasons(run, found)
    what = "how many" if len(kinds) > 1 else kinds[0]
    views = [
        View("in each round", line_chart(curves, "round", what, from_zero=True), table),
        View("each client", bar_chart(bars, "client", what), table),
    ]
    lead = "Missing: no answer. Rejected: an answer that cannot be used. Dropped: late, twice, or asked for by nobody."
    return Section(id, title, f"{lead} The numbers below have every reason.", views, wide=True)


def reasons(run: RunRecord, found: Sequence[tuple[int, int, str, str]]) -> Table:
    """List what happened to whom and why, the most frequent first, from (round, client, kind, reason) each."""
    when: dict[tuple[str, str, int], list[int]] = {}
    for round, client, kind, why in found:
        when.setdefault((kind, why, client), []).append(round)
    order = sorted(when.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        [run.names.get(client, f"client {client}"), kind, why, str(len(times)), listed(times)]
        for (kind, why, client), times in order[:MOST_REASONS]
    ]
    return Table(["client", "what", "why", "times", "rounds"], rows, len(order) - len(rows))


def events(line: Line) -> list[tuple[int, str, str]]:
    """List (client, kind, reason) of all attempts of a round."""
    found = []
    for attempt in (*line.get("repeated", ()), line):
        for kind in ("missing", "rejected"):
            found += [(int(client), kind, why) for client, why in attempt.get(kind, {}).items()]
        found += [(int(client), "dropped", why) for client, each in attempt.get("dropped", {}).items() for why in each]
    return found


def listed(rounds: Sequence[int]) -> str:
    """List up to six rounds by number."""
    shown = ", ".join(str(round) for round in rounds[:6])
    return shown + (f" … {rounds[-1]}" if len(rounds) > 6 else "")
