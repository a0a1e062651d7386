"""Reckon what it costs a run to reach a target: rounds, bytes both ways, and seconds of its simulated devices.

The cost is what was spent up to the first evaluated round whose main metric is at the target or better; 0 where the run
began there. A run that never came there is censored: all that is known is that more than its whole cost is needed.
"""

from hellora.comparing.runs import Run
from hellora.core.metrics import LOWER_IS_BETTER

COSTS = {
    "rounds_to_target": "rounds to target",
    "bytes_to_target": "bytes to target",
    "seconds_to_target": "seconds to target",
}


def spent_until(run: Run, target: float) -> tuple[bool, dict[str, float]]:
    """Tell whether a run reached the target, and what it spent until then or, where it did not, in all.

    Returns:
        rounds, bytes and, where devices are simulated whose times are known, seconds, by column.
    """

    def reaches(metrics: dict[str, float] | None) -> bool:
        value = (metrics or {}).get(run.metric)
        return value is not None and (value <= target if run.metric in LOWER_IS_BETTER else value >= target)

    after = [i for i, line in enumerate(run.lines, 1) if reaches(line["metrics"])]
    reached = reaches(run.summary["initial"]) or bool(after)
    rounds = 0 if reaches(run.summary["initial"]) else after[0] if after else len(run.lines)
    spent = run.lines[:rounds]
    costs = {
        "rounds_to_target": float(rounds),
        "bytes_to_target": float(sum(line["uplink_bytes"] + line["downlink_bytes"] for line in spent)),
    }
    if all(line.get("simulated_clock") is not None for line in run.lines):
        costs["seconds_to_target"] = float(run.lines[rounds - 1]["simulated_clock"]) if rounds else 0.0
    return reached, costs
