"""Does HeLoRA-KD beat its clients' local models? `python benchmarks/kd_against_local.py ../shared/data`.

For each data set: a tenth of the training split becomes public data, the rest goes to the clients. After the last round
three things are measured on the test split: every prototype and their ensemble; the models that the clients of that
round trained and sent, before anything was averaged; and models that the same clients would have had alone, trained
from the start with the same number of steps as the whole run gave them per round.

With --out, what is in the file already is not measured again, so that seeds can be added one by one.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import load_dataset

from hellora.client.evaluation import evaluate
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate
from hellora.core.types import Adapter, ClientProfile
from hellora.experiments.config import check
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.server.backend import Backend, Order
from hellora.server.outbox import Outbox
from hellora.server.rounds import allocate, estimates, federate

ROUNDS = 8
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "banking77": {"model": {"name": "minilm", "rank": 12}, "train": {"lr": 8e-3, "batch_size": 16, "steps": 15}},
    "cifar100_lite": {
        "task": {"name": "image_classification"},
        "model": {"name": "model_vit_cifar10_4l128", "rank": 12},
        "train": {"lr": 8e-3, "batch_size": 32, "steps": 10},
    },
}


class LastAnswers(Backend):
    """A backend that keeps the tasks and updates of the latest round."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.latest: list[tuple[ClientTask, ClientUpdate]] = []

    def clients(self) -> Sequence[ClientProfile]:
        return self.backend.clients()

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        self.latest = []
        of = {order.client: order for order in orders}
        for answer in self.backend.train(orders):
            if isinstance(answer, ClientUpdate):
                self.latest.append((of[answer.client].make(), answer))
            yield answer


def split_off_public_data(source: Path, folder: Path) -> None:
    """Write train, test and public files of a data set with `train*.parquet` and `test*.parquet`."""
    files = {split: str(next(source.glob(f"{split}*.parquet"))) for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files)
    cut = data["train"].train_test_split(test_size=0.1, seed=0)
    for name, rows in (("train", cut["train"]), ("public", cut["test"]), ("test", data["test"])):
        rows.to_parquet(str(folder / f"{name}.parquet"))


def measure(name: str, source: Path, seed: int) -> dict[str, Any]:
    """Test accuracies of one run on one data set."""
    with tempfile.TemporaryDirectory() as folder:
        split_off_public_data(source / name, Path(folder))
        table = {**EXPERIMENTS[name], "seed": seed, "rounds": ROUNDS, "cohort": 6}
        model = table["model"]["name"]
        table["model"] = {**table["model"], "name": str(source / model) if (source / model).is_dir() else model}
        table["data"] = {"name": folder, "public": "public", "clients": 12, "partitioner": "dirichlet", "alpha": 0.3}
        table["fleet"] = {"ranks": [4, 8, 12]}
        table["method"] = {"allocator": "everything", "aggregator": "mutual_distillation", "dispatcher": "prototype"}
        return run(prepare(check(name, table)))


def run(setup: Setup) -> dict[str, Any]:
    state = setup.initial_state()
    with setup.backend() as connected:
        backend = LastAnswers(connected)
        for report in federate(state, setup.federation, backend, setup):
            state = report.state
    found = setup.evaluate_prototypes(state)
    prototypes = {rank: metrics["accuracy"] for rank, metrics in found["prototypes"].items()}
    sent = [accuracy(setup, update.adapter) for _, update in backend.latest]
    alone = [accuracy(setup, trained_alone(setup, task)) for task in first_tasks(setup, backend)]
    return {
        "prototypes": prototypes,
        "ensemble": found["ensemble"]["accuracy"],
        "best prototype": max(prototypes.values()),
        "local models, as sent in the last round": mean(sent),
        "local models, trained alone": mean(alone),
        "threads": torch.get_num_threads(),
    }


def first_tasks(setup: Setup, backend: LastAnswers) -> list[ClientTask]:
    """The tasks that the clients of the latest round would have got in round 0."""
    wanted = {task.client for task, _ in backend.latest}
    fleet = tuple(profile for profile in setup.federation.fleet if profile.id in wanted)
    run = replace(setup.federation, fleet=fleet, cohort=len(fleet))
    state = setup.initial_state()
    context, allocation, _ = allocate(run, state, setup)
    orders = Outbox(run, state, context, allocation, estimates(run, allocation)).orders
    return [order.make() for order in orders]


def trained_alone(setup: Setup, task: ClientTask) -> Adapter:
    """A client's adapter after as many tasks as there were rounds, each going on from the last, with nobody else."""
    adapter = task.adapter
    for t in range(ROUNDS):
        adapter = setup.work.train(replace(task, adapter=adapter, seed=task.seed + t)).adapter
    return adapter


def accuracy(setup: Setup, adapter: Adapter) -> float:
    """On the test split."""
    size = setup.experiment.compute.eval_batch_size
    return evaluate(adapter, setup.base, setup.experiment.task, setup.corpus.test, size).metrics["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with banking77, cifar100_lite and the small models")
    parser.add_argument("--only", choices=EXPERIMENTS, help="one data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    runs = json.loads(options.out.read_text())["runs"] if options.out and options.out.exists() else []
    known = {(found["data"], found["seed"]) for found in runs}
    asked = [(name, seed) for seed in options.seeds for name in ([options.only] if options.only else EXPERIMENTS)]
    for name, seed in asked:
        if (name, seed) in known:
            continue
        runs.append({"data": name, "seed": seed, **measure(name, options.data, seed)})
        print(json.dumps(runs[-1], indent=1), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            seeds = " ".join(str(seed) for seed in sorted({found["seed"] for found in runs}))
            record = {"command": f"python benchmarks/kd_against_local.py {options.data} --seeds {seeds}", "runs": runs}
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
