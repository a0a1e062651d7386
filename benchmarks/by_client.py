"""What natural clients gain: `python benchmarks/by_client.py RUN …` evaluates finished runs on each client's test rows.

A run's clients are the values of a column (`data.partitioner = "column"`), and the test rows are cut from each of them.
Printed is, for every run, the loss of the base and of the adapter on the rows of each client. What a run cuts off
cannot be measured: `--max-length` measures on longer texts than it trained on.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hellora.core.algebra import starting_adapter
from hellora.experiments.config import read_begun
from hellora.experiments.prepare import prepare
from hellora.record.checkpoint import load_state
from hellora.record.run_folder import RunFolder


def gains(folder: Path, max_length: int | None = None) -> dict[str, tuple[float, float]]:
    """Return the loss before and after, in nats per token, by client."""
    run = RunFolder(folder)
    experiment = read_begun(run.experiment, ())
    if max_length is not None:
        experiment = replace(experiment, task=replace(experiment.task, max_length=max_length))
    setup = prepare(experiment)
    found = load_state(run.checkpoint)
    assert found is not None, f"{folder} has no state"
    before = starting_adapter(setup.base.spec, setup.base.initial_head(), setup.experiment.run.seed)
    owner = np.asarray(setup.corpus.test[setup.experiment.natural][:])
    losses = {}
    for name in np.unique(owner):
        places = np.flatnonzero(owner == name)
        rows, encoded = setup.corpus.test.select(places), setup.test.select(places)
        if encoded.num_tokens == 0:  # all answers were cut off
            print(f"{name}: nothing to measure")
            continue
        both = [
            setup.evaluate_adapter(adapter, rows, encoded, rows.select(())) for adapter in (before, found[0].adapter)
        ]
        losses[str(name)] = (both[0].metrics["loss"], both[1].metrics["loss"])
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="of the test texts [default: that of the run]")
    options = parser.parse_args(arguments)
    for folder in options.runs:
        found = gains(folder, options.max_length)
        print(f"\n{folder}\n{'before':>8}{'after':>8}{'gain':>8}")
        for name, (before, after) in sorted(found.items(), key=lambda item: item[1][0] - item[1][1]):
            print(f"{before:8.3f}{after:8.3f}{before - after:8.3f}  {name}", flush=True)


if __name__ == "__main__":
    main()
