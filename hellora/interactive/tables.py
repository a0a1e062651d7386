"""What a run's folder tells, as tables of pandas."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from hellora.core.units import in_bytes
from hellora.reporting.quality import training_loss
from hellora.reporting.record import Client, Line, RunRecord


def history(run: RunRecord) -> pd.DataFrame:
    """Return a row for each round that has ended.

    Columns: round (from 0); the metrics, nan where a round was not evaluated, and those on validation data that may end
    the run early, as "validation_accuracy"; train_loss, the mean over examples; uplink_bytes and downlink_bytes;
    seconds, and simulated_seconds where they are known; how many clients were asked, and how many updates counted.
    """
    rows = []
    for line in run.lines:
        row = {"round": line["round"], **(line["metrics"] or {})}
        row |= {f"validation_{name}": value for name, value in (line.get("validation") or {}).items()}
        row |= {"train_loss": training_loss(line)}
        row |= {name: line[name] for name in ("uplink_bytes", "downlink_bytes", "seconds")}
        row |= {"simulated_seconds": line["simulated_seconds"]} if run.timed else {}
        rows.append(row | {"asked": len(line["cohort"]), "updated": len(line.get("updated", line["ranks"]))})
    return pd.DataFrame(rows)


def clients(run: RunRecord) -> pd.DataFrame:
    """Return a row for each client, by id.

    Columns: name; group, a number for each budget, the smallest first; budget in words; examples; rounds in which its
    update counted; layers and the largest rank that it trained in them; accuracy, where the run measured that.
    """
    budgets = sorted({text_key(client.budget) for client in run.clients})
    served = (run.summary or {}).get("clients", {})
    rows = []
    for client in run.clients:
        trained = [ranks for line in run.lines if (ranks := ranks_of(line, client)) is not None]
        layers = sorted({layer for ranks in trained for layer, rank in enumerate(ranks) if rank})
        rows.append(
            {
                "client": client.id,
                "name": client.name,
                "group": budgets.index(text_key(client.budget)),
                "budget": in_words(client.budget),
                "examples": client.examples,
                "rounds": len(trained),
                "layers": spans(layers),
                "rank": max((rank for ranks in trained for rank in ranks), default=0),
                "accuracy": served.get(str(client.id)),
            }
        )
    return pd.DataFrame(rows).set_index("client") if rows else pd.DataFrame()


def ranks_of(line: Line, client: Client) -> Sequence[int] | None:
    """Return the rank that a client trained in each layer in a round; None where no update of it counted."""
    if client.id not in line.get("updated", ()):
        return None
    ranks: Sequence[int] | None = line["ranks"].get(str(client.id))
    return ranks


def text_key(budget: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what budgets are sorted by; a limit that a budget lacks comes after all others."""
    limits = ("layers", "rank", "memory_bytes", "seconds", "uplink_bytes")
    values = [budget.get(name) for name in limits]
    return tuple((value is None, str(type(value)), 0 if value is None else value) for value in values)


def in_words(budget: Mapping[str, Any]) -> str:
    """Write a budget for a person, such as "2 layers, 200.0 MiB"; "all" without limits."""
    words: dict[str, Callable[[Any], str]] = {
        "layers": lambda value: f"{value} layer{'s' * (value != 1)}",
        "rank": lambda value: f"rank {value}",
        "memory_bytes": in_bytes,
        "seconds": lambda value: f"{value:g} s",
        "uplink_bytes": lambda value: f"{in_bytes(value)} up",
    }
    said = [say(budget[name]) for name, say in words.items() if budget.get(name) is not None]
    return ", ".join(said) or "all"


def spans(layers: Sequence[int]) -> str:
    """Write the numbers of layers as "0–3, 5"; "" of none."""
    found = []
    for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0]):
        numbers = [layer for _, layer in run]
        found.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}")
    return ", ".join(found)


def per_class(summary: Mapping[str, Any]) -> pd.DataFrame | None:
    """Return precision, recall, f1 and examples by the name of the class; None of a task without classes."""
    found = summary.get("per_class")
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("class") if found else None


def confusion(summary: Mapping[str, Any]) -> pd.DataFrame | None:
    """Return how many examples of each class (rows) are taken for each (columns), by name; None where nothing says so:
    of a task without classes, or of many."""
    if not (found := summary.get("confusion")):
        return None
    labels = found["labels"]
    index, columns = pd.Index(labels, name="class"), pd.Index(labels, name="taken for")
    return pd.DataFrame(found["counts"], index=index, columns=columns)
