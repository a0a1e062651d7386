"""What a page cannot do without in a run's files: each field is there, and of its kind, or the file is damaged."""

from collections.abc import Mapping
from typing import Any

NUMBER, NONE = (int, float), type(None)
# The fields by their kinds.
OF_TABLE = {"seed": int, "rounds": int, "cohort": int, "model": dict, "data": dict}
OF_LINE = {
    "round": int,
    "cohort": list,
    "ranks": dict,
    "metrics": (dict, NONE),
    "clients": dict,
    "uplink_bytes": NUMBER,
    "downlink_bytes": NUMBER,
    "seconds": NUMBER,
}
OF_ANSWER = {"round": (int, NONE), "row": int, "prompt": str, "reference": str, "answer": str}
OF_SUMMARY = {
    "initial": dict,
    "final": dict,
    "groups": list,
    "clients": dict,
    "worst_client": (*NUMBER, NONE),
    "uplink_bytes": NUMBER,
    "data": dict,
}


def checked(fields: Any, kinds: Mapping[str, Any], where: str = "") -> None:
    """Raise ValueError where a field is missing or not of its kind."""
    if not isinstance(fields, dict):
        raise ValueError(f"{where}not a table of names and values")
    for key, kind in kinds.items():
        if key not in fields:
            raise ValueError(f"{where}{key} is missing")
        if not isinstance(fields[key], kind):
            raise ValueError(f"{where}{key} is {fields[key]!r:.40}")


def check_line(line: Any, where: str) -> None:
    """Raise ValueError where a line of rounds.jsonl is not one that a run wrote."""
    checked(line, OF_LINE, where)
    check_numbers(line["metrics"] or {}, f"{where}metrics: ")
    check_numbers({"simulated_clock": line.get("simulated_clock")}, where)
    check_scores(line.get("per_class") or {}, f"{where}per_class: ")
    if line.get("sample") is not None:
        check_sample(line["sample"], f"{where}sample: ")
    for client, values in line["clients"].items():
        checked(values, {}, f"{where}client {client}: ")
        check_numbers(values, f"{where}client {client}: ")
    asked, rows = {str(client) for client in line["cohort"]}, list(line["ranks"].values())
    layers = {len(row) for row in rows}
    if not line["ranks"].keys() <= asked or len(layers) > 1 or not all(isinstance(r, int) for row in rows for r in row):
        raise ValueError(f"{where}ranks are not those of the cohort, a row of all layers each")
    for name in ("energy", "layer_scores"):
        check_numbers(dict(enumerate(line.get(name) or ())), f"{where}{name}: ")
    measured = line.get("measured_modules") or {}
    checked(measured, dict.fromkeys(measured, list), f"{where}measured_modules: ")
    if any(len(counts) != 2 or not all(isinstance(count, int) for count in counts) for counts in measured.values()):
        raise ValueError(f"{where}measured_modules are not [in how many, of how many]")
    for attempt in (*(line.get("repeated") or ()), line):
        for name in ("missing", "rejected", "dropped"):
            checked(attempt.get(name, {}), {}, f"{where}{name}: ")


def check_sample(sample: Any, where: str) -> None:
    """Raise ValueError where something does not say of which sample of the test examples metrics are."""
    checked(sample, {"examples": int, "of": int, "intervals": dict}, where)
    for name, interval in sample["intervals"].items():
        if len(interval) != 2 or not all(isinstance(end, NUMBER) for end in interval):
            raise ValueError(f"{where}the interval of {name} is {interval!r:.40}")


def check_budget(budget: Any, where: str) -> None:
    """Raise ValueError where something is not a client's budget: numbers, or a rank for each layer."""
    checked(budget, {}, where)
    ranks = budget.get("rank")
    each = ranks if isinstance(ranks, list) else [ranks]
    check_numbers({**budget, "rank": None, **{f"rank of layer {i}": rank for i, rank in enumerate(each)}}, where)


def check_numbers(fields: Mapping[Any, Any], where: str) -> None:
    """Raise ValueError where something is no number, nor null."""
    for key, value in fields.items():
        if not isinstance(value, (*NUMBER, NONE)):
            raise ValueError(f"{where}{key} is {value!r:.40}")


def check_classes(summary: Mapping[str, Any]) -> None:
    """Raise ValueError where what a summary says of classes, if it does, is not what a run wrote."""
    found = summary.get("per_class", {})
    check_scores(found, "per_class: ")
    matrix = summary.get("confusion", {"labels": [], "counts": []})
    checked(matrix, {"labels": list, "counts": list}, "confusion: ")
    names, rows = matrix["labels"], matrix["counts"]
    if len(rows) != len(names) or any(not is_row(row, len(names)) for row in rows) or not {*names} <= found.keys():
        raise ValueError("confusion is no matrix of the classes")
    for pair in summary.get("most_confused", []):
        if len(pair) != 3 or not {*pair[:2]} <= found.keys() or not isinstance(pair[2], int):
            raise ValueError("most_confused is no list of [class, taken for, examples]")


def check_scores(found: Any, where: str) -> None:
    """Raise ValueError where something is not the scores of classes by their names."""
    checked(found, dict.fromkeys(found or (), dict), where)
    for name, scores in found.items():
        checked(scores, dict.fromkeys(("precision", "recall", "f1", "examples"), NUMBER), f"{where}{name}: ")


def is_row(row: Any, length: int) -> bool:
    """Tell whether something is a row of so many whole numbers."""
    return isinstance(row, list) and len(row) == length and all(isinstance(count, int) for count in row)
