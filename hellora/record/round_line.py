"""Each round becomes one line of rounds.jsonl."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hellora.core.state import Attempt, Diagnostics, RoundReport, select
from hellora.server.diagnostics import idle_rounds

Line = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What was measured after a round: the metrics, of which sample of the test examples, and of which classes."""

    metrics: Mapping[str, float] | None = None  # None: the round was not evaluated
    sample: Mapping[str, Any] | None = None  # None: of all test examples
    per_class: Mapping[str, Mapping[str, float]] | None = None  # scores by the classes' names; None: many, or none


def round_line(report: RoundReport, measured: Measured, seconds: float, before: Line | None) -> Line:
    """Make one line of rounds.jsonl. `ranks` has the trained rank per client and layer, 0 is frozen; `repeated` has the
    attempts before the one that counted, and `sums` the waves in which clients summed their features to solve the head;
    their bytes are counted. `layer_scores` are those of rounds that measured
    them. `simulated_clock` is the sum of `simulated_seconds` so far. `sample` says of how many test examples `metrics`
    and `per_class` are, with 95 % intervals; null where they are of all.
    """
    ranks = report.allocation.ranks.tolist()
    simulated = clock = None
    if report.simulated_seconds is not None:
        simulated = round(report.simulated_seconds, 3)
        clock = round((before["simulated_clock"] if before else 0.0) + simulated, 3)
    return {
        "round": report.round,
        **attempt_fields(report.counted),
        "ranks": {str(client): row for client, row in zip(report.counted.cohort, ranks, strict=True)},
        "policies": {str(client): policy.in_words for client, policy in report.policies.items()},
        "repeated": [attempt_fields(attempt) for attempt in report.attempts[:-1]],
        "sums": [attempt_fields(wave) for wave in report.sums],
        "metrics": measured.metrics,
        "sample": measured.sample,
        "per_class": measured.per_class,
        "clients": {str(client): dict(values) for client, values in report.client_metrics.items()},
        **diagnostic_fields(report.diagnostics),
        "idle_rounds": idle_rounds(
            report.allocation, report.counted.updated, before["idle_rounds"] if before else None
        ),
        "layer_scores": new_layer_scores(report),
        "left_out": left_out(report),
        "uplink_bytes": report.uplink_bytes,
        "downlink_bytes": report.downlink_bytes,
        "seconds": round(seconds, 3),
        "simulated_seconds": simulated,
        "simulated_clock": clock,
    }


def diagnostic_fields(found: Diagnostics | None) -> Line:
    """Return the diagnostics, null where they are switched off. `measured_modules` has [in how many, of how many]."""
    if found is None:
        return {"aggregation_error": None, "energy": None, "measured_modules": None}
    error, modules = found.aggregation_error, {"aggregation_error": found.error_modules, "energy": found.energy_modules}
    return {
        "aggregation_error": None if error is None else round(error, 6),
        "energy": [round(share, 6) for share in found.energy],
        "measured_modules": {name: list(counts) for name, counts in modules.items()},
    }


def new_layer_scores(report: RoundReport) -> list[float | None] | None:
    """Return the scores (layers,) of an allocator that measured them anew in this round; null for one not finite."""
    scores = select(report.state.strategies, "allocator")
    if "scores" not in scores or int(scores.get("refreshed", -1)) != report.round:
        return None
    return [float(f"{score:.6g}") if math.isfinite(score) else None for score in scores["scores"].tolist()]


def left_out(report: RoundReport) -> list[float] | None:
    """Return about which part of all examples the heads were right without them: the first, and the one that was solved
    after this round. None where that was not asked."""
    start = select(report.state.strategies, "start")
    if "right" not in start or int(start["solved"]) <= report.round:
        return None
    return [round(part, 6) for part in start["right"].tolist()]


def attempt_fields(attempt: Attempt) -> Line:
    return {
        "cohort": list(attempt.cohort),
        "updated": list(attempt.updated),
        "missing": {str(client): why for client, why in attempt.missing.items()},
        "rejected": {str(client): why for client, why in attempt.rejected.items()},
        "dropped": {str(client): list(why) for client, why in attempt.dropped.items()},
    }
