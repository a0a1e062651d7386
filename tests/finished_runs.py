"""Finished runs of a comparison, as their folders would tell them."""

from collections.abc import Mapping, Sequence
from typing import Any

from hellora.comparing.runs import Cell, Run


def run_of(
    accuracy: Sequence[float | None],
    uplink: int = 10,
    groups: Mapping[int, float] | None = None,
    worst: float | None = 0.25,
    metric: str = "accuracy",
    evaluated_on: str = "the test split",
    peaks: Mapping[int, int] | None = None,
    clock: float | None = None,
) -> Run:
    """A run whose rounds end with these accuracies (None: not evaluated), each of `uplink` bytes and `clock` s."""
    lines = [
        {
            "round": i,
            "metrics": None if value is None else {metric: value},
            "clients": {str(client): {"peak_bytes": peak} for client, peak in (peaks or {}).items()},
            "uplink_bytes": uplink,
            "downlink_bytes": 3 * uplink,
            "seconds": 0.5,
            "simulated_clock": None if clock is None else clock * (i + 1),
        }
        for i, value in enumerate(accuracy)
    ]
    summary = {
        "initial": {metric: 0.1},
        "final": {metric: accuracy[-1]},
        "groups": [
            {"layers": layers, "rank": 8, "clients": 2, "metrics": {metric: value}}
            for layers, value in (groups or {}).items()
        ],
        "worst_client": worst,
        "clients": {} if worst is None else {"0": worst, "1": worst + 0.5},
        "uplink_bytes": uplink * len(lines),
        "data": {"evaluated_on": evaluated_on},
    }
    return Run(summary, lines)


def runs_of(table: Mapping[tuple[str, str], Sequence[float]], **options: Any) -> dict[Cell, Run]:
    """One run of one round per setting, method and seed 0, 1, …, with that accuracy."""
    return {
        Cell(setting, method, seed): run_of([value], **options)
        for (setting, method), values in table.items()
        for seed, value in enumerate(values)
    }


# ----------------------------------------------------------------------------------------------------------- statistics
