"""These sections of one run show who trained what, what that made of the adapter, and at what cost. What a run did not
record is left out, with a line that says why.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hellora.core.units import in_bytes
from hellora.reporting.charts import Bars, Curve, bar_chart, heat_map, line_chart
from hellora.reporting.parts import Section, Steps, Table, View, missing
from hellora.reporting.quality import byte_unit
from hellora.reporting.record import Line, RunRecord


def allocation(run: RunRecord) -> Section:
    """Show the trained rank per client and layer, round by round."""
    id, title = "allocation", "Who trained what"
    layers = max((len(row) for line in run.lines for row in line["ranks"].values()), default=0)
    if not layers:
        return missing(id, title, "No round has ended yet.")
    place = {client: row for row, client in enumerate(run.names)}
    counted = [{client: row for client, row in line["ranks"].items() if is_counted(line, client)} for line in run.lines]
    ranks = [row for each in counted for row in each.values()]
    most = max((rank for row in ranks for rank in row), default=0)
    dtype = "u1" if most < 256 else "u2"
    names = list(run.names.values())
    steps = Steps(
        rounds=[line["round"] for line in run.lines],
        trained=[[place[int(client)] for client in each] for each in counted],
        ranks=np.array(ranks, dtype=f"<{dtype}").tobytes(),
        dtype=dtype,
        layers=layers,
        clients=names,
    )
    last = np.full((len(names), layers), np.nan)
    for client, row in counted[-1].items():
        last[place[int(client)]] = row
    figure = heat_map(last, numbered(layers), names, "layer", "client", "rank")
    figure.data[0].update(zmin=0, zmax=max(1, most), meta={"scale": "ranks"})
    lead = (
        "The rank that each client whose answer counted trained in each layer. Blank: not asked in this round, missing "
        "or rejected. Grey: frozen there."
    )
    return Section(id, title, lead, [View("", figure, Table(["client", *numbered(layers)], []))], steps, wide=True)


def is_counted(line: Line, client: str) -> bool:
    """Tell whether the client was not left behind in the end: asked, but missing or rejected."""
    return client not in line.get("missing", {}) and client not in line.get("rejected", {})


def numbered(count: int) -> list[str]:
    """Name layers by their numbers."""
    return [str(i) for i in range(count)]


def layer_scores(run: RunRecord) -> Section:
    """Show Fisher scores by layer, whenever they were measured."""
    id, title = "scores", "Fisher scores by layer"
    measured = [line for line in run.lines if any(score is not None for score in line.get("layer_scores") or ())]
    if not measured:
        return missing(id, title, "This run measured no layer scores: its allocator does not use them, or not yet.")
    scores = np.array([line["layer_scores"] for line in measured], dtype=float)  # null becomes nan
    sums = np.nansum(scores, axis=1, keepdims=True)
    shares = np.divide(scores, sums, out=np.full_like(scores, np.nan), where=sums > 0)
    layers, rounds = numbered(scores.shape[1]), [str(line["round"]) for line in measured]
    latest = [
        [layer, number(score), percent(share)]
        for layer, score, share in zip(layers, scores[-1], shares[-1], strict=True)
    ]
    views = [
        View(
            f"latest, round {rounds[-1]}",
            bar_chart([Bars("score", layers, gaps(scores[-1]))], "layer", "score"),
            Table(["layer", "score", "share"], latest),
        ),
        View(
            "over rounds",
            heat_map(shares.T, rounds, layers, "round", "layer", "share"),
            Table(["round", *(f"layer {layer}" for layer in layers)], by_round(rounds, scores)),
        ),
    ]
    lead = "The mean squared norm of a layer's gradient: how much a layer has to learn. Measured anew every few rounds."
    return Section(id, title, lead, views)


def memory(run: RunRecord) -> Section:
    """Show the most bytes that each client was predicted and measured to hold, beside its budget."""
    id, title = "memory", "Memory of each client"
    predicted = {client: max(v) for client, v in run.of_clients("predicted_peak_bytes").items()}
    peaks = {client: max(v) for client, v in run.of_clients("peak_bytes").items()}
    budgets = {c.id: c.budget["memory_bytes"] for c in run.clients if c.budget.get("memory_bytes")}
    columns = {"predicted": predicted, "measured": peaks, "budget": budgets}
    columns = {name: values for name, values in columns.items() if values}
    if not predicted and not peaks:
        why = "No memory was predicted, for no client has a budget in bytes or seconds, and none was measured."
        return missing(id, title, why)
    clients = [client for client in run.names if any(client in values for values in columns.values())]
    labels = [run.names[client] for client in clients]
    size, unit = byte_unit(max(max(values.values()) for values in columns.values()))
    bars = [
        Bars(name, labels, [values[c] / size if c in values else None for c in clients], as_marks=name == "budget")
        for name, values in columns.items()
    ]
    rows = [
        [run.names[c], *(in_bytes(int(values[c])) if c in values else "–" for values in columns.values())]
        for c in clients
    ]
    lead = "The most that training held at once in any round, above the interpreter and its libraries."
    return Section(
        id, title, lead, [View("", bar_chart(bars, "client", unit), Table(["client", *columns], rows))], wide=True
    )


def traffic(run: RunRecord) -> Section:
    """Show bytes up and down, in each round and in all."""
    id, title = "traffic", "Bytes up and down"
    if not run.lines:
        return missing(id, title, "No round has ended yet.")
    names = {"up": "uplink_bytes", "down": "downlink_bytes"}
    each = {name: [float(line[key]) for line in run.lines] for name, key in names.items()}
    summed = {name: run.total(key) for name, key in names.items()}
    views = []
    for label, series in (("in each round", each), ("in all", summed)):
        size, unit = byte_unit(max(max(values) for values in series.values()))
        rounds = [float(line["round"]) for line in run.lines]
        curves = [Curve(name, rounds, [value / size for value in values]) for name, values in series.items()]
        rows = [
            [str(line["round"]), *(in_bytes(int(values[i])) for values in series.values())]
            for i, line in enumerate(run.lines)
        ]
        views.append(View(label, line_chart(curves, "round", unit, from_zero=True), Table(["round", *series], rows)))
    return Section(id, title, "What travelled between server and clients, answers that did not count included.", views)


def spectrum(run: RunRecord) -> Section:
    """Show the share of the adapter's squared norm in each singular direction, and to how many these amount."""
    id, title = "spectrum", "Rank spectrum of the adapter"
    lines = [line for line in run.lines if sum(line.get("energy") or ()) > 0]
    if not lines:
        return missing(id, title, "The adapter's spectrum is not on record, or all of it is still 0.")
    energy = np.array([line["energy"] for line in lines], dtype=float)
    directions = [str(i + 1) for i in range(energy.shape[1])]
    rounds = [str(line["round"]) for line in lines]
    used = [effective_rank(row) for row in energy]
    views = [
        View(
            f"after round {rounds[-1]}",
            bar_chart([Bars("share", directions, list(energy[-1]))], "singular direction", "share"),
            Table(["direction", "share"], [[d, percent(e)] for d, e in zip(directions, energy[-1], strict=True)]),
        ),
        View(
            "over rounds",
            heat_map(energy.T, rounds, directions, "round", "direction", "share"),
            Table(["round", *directions], by_round(rounds, energy)),
        ),
        View(
            "effective rank",
            line_chart([Curve("effective rank", [float(r) for r in rounds], used)], "after round", "directions"),
            Table(["round", "effective rank"], [[r, f"{u:.2f}"] for r, u in zip(rounds, used, strict=True)]),
        ),
    ]
    lead = (
        "The share of the adapter's squared norm in its 1st, 2nd, … singular direction. Effective rank is exp of the "
        "entropy of the shares; where it falls, the adapter uses less of the rank that it has."
    )
    measured, of = (lines[-1].get("measured_modules") or {}).get("energy", [0, 0])
    if measured < of:
        lead += f" Measured in {measured} of {of} modules."
    return Section(id, title, lead, views)


def effective_rank(shares: Any) -> float:
    """Compute exp(−Σ p ln p), with p the shares of their sum: 1 = one direction, R = all R alike."""
    p = shares[shares > 0] / shares.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def by_round(rounds: Sequence[str], values: Any) -> list[list[str]]:
    """Make the rows of a table, one a round."""
    return [[round, *map(number, row)] for round, row in zip(rounds, values, strict=True)]


def number(value: float) -> str:
    """Write a number to four digits; a dash where it is none."""
    return f"{value:.4g}" if np.isfinite(value) else "–"


def percent(value: float) -> str:
    """Write a share in percent; a dash where it is none."""
    return f"{value:.1%}" if np.isfinite(value) else "–"


def gaps(values: Any) -> list[float | None]:
    """Leave a gap where a number is not finite, which JSON cannot say."""
    return [float(value) if np.isfinite(value) else None for value in values]
